"""MetadataBuilders over a small source, their steps, and the metadata that they must give."""

from __future__ import annotations

import random

import building
import torch
from conftest import INTERPRETED

import xkv
from xkv import dispatch
from xkv.cli.check import oracle
from xkv.params import CSR, TABLE, Build, View

# of a user's own: what no spec of xkv's has
OWN = {
    spec.name: spec
    for spec in (
        xkv.BackendSpec(
            "own table", "table", (8, 32), 32, ("cu_seqlens_q", "kv_last_page_len"), id_dtype="int64",
            width_tokens=64, packed=True, pad_to_tokens=64, pad_id=3, min_seq_len=8, skips_tokens=True,
        ),
        xkv.BackendSpec(
            "own csr", "csr", (1, 4), 4, ("cache_seqlens", "kv_indptr"), pad_to_tokens=16, pad_entries=7,
            pad_id=5, min_seq_len=1,
        ),
    )
}  # fmt: skip
SPECS = dispatch.specs_of("cpu") | OWN
# FlashInfer's wrappers and Aiter's attention ask for no output that others do not: the plain tier has them
_LIKE_OTHERS = (
    "flashinfer_decode",
    "flashinfer_prefill",
    "aiter_pa",
    "aiter_pa_ragged",
    "aiter_batch_prefill",
)
NAMES = sorted(name for name in SPECS if not (INTERPRETED and name in _LIKE_OTHERS))
PAGE_SIZES = [(name, p) for name in NAMES for p in SPECS[name].page_sizes if p <= 128]
CONTEXT = 1000
LENS = [300, 0, 897, 64, 1]


def source(device: str, unit: int, source_page_size: int = 1) -> torch.Tensor:
    width = -(-(CONTEXT + 4) // source_page_size)
    return building.paged_source(
        random.Random(0), 9, width, max(unit, source_page_size), source_page_size, torch.int32, device
    )


def make(name: str, device: str, page_size: int | None = None, **options: object):
    unit = page_size or SPECS[name].page_size
    table = source(device, unit, options.get("source_page_size", 1))
    return xkv.MetadataBuilder(
        OWN.get(name, name), table, max_batch_size=8, max_context_len=CONTEXT, page_size=page_size, **options
    )


def batch(device: str, lens: list[int] = LENS) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor([(3 * n + 1) % 9 for n in range(len(lens))], device=device)
    return rows, torch.tensor(lens, device=device)


def check(builder, meta, rows, begins: list[int], ends: list[int], window_map=None) -> None:
    """All that the metadata holds is what the oracle makes of the rows' first tokens and their ends."""
    spec, page_size, table = builder.spec, builder.page_size, builder.spec.form == "table"
    got = {name: getattr(meta, name).cpu() for name in spec.outputs if name != "cu_seqlens_q"}
    got["out"] = (meta.page_table if table else meta.kv_indices).cpu()
    want = {name: x.clone() for name, x in got.items()}
    token_map = None if window_map is None else window_map.cpu()
    view = View(kv_start=torch.tensor(begins), token_map=token_map, **want)
    build = Build(
        builder.req_to_token.cpu(), rows.cpu(), torch.tensor(ends), TABLE if table else CSR, page_size,
        builder.source_page_size, page_size, (view,), min_seq_len=spec.min_seq_len,
        min_last_page_len=spec.min_last_page_len, missing_id=spec.pad_id,
        pad_value=spec.pad_id if spec.pad_to_tokens else None,
        pad_to_multiple_of=spec.pad_to_multiple_of(page_size),
    )  # fmt: skip
    oracle.run(build)
    for name, x in got.items():
        assert torch.equal(x, want[name]), name


def check_queries(builder, meta, want: list[int]) -> None:
    """The query starts are these, where the backend reads any."""
    has = "cu_seqlens_q" in builder.spec.outputs
    assert (None if meta.cu_seqlens_q is None else meta.cu_seqlens_q.tolist()) == (want if has else None)
