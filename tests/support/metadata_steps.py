"""MetadataBuilders over a small source, their steps, and the metadata that they must give."""

from __future__ import annotations

import random

import building
import torch

import xkv
from xkv import dispatch
from xkv.cli.check import oracle
from xkv.params import CSR, TABLE, Build, View

NAMES = sorted(dispatch.specs_of("cpu"))
PAGE_SIZES = [(name, p) for name in NAMES for p in dispatch.specs_of("cpu")[name].page_sizes if p <= 128]
CONTEXT = 1000
LENS = [300, 0, 897, 64, 1]


def source(device: str, unit: int, source_page_size: int = 1) -> torch.Tensor:
    width = -(-(CONTEXT + 4) // source_page_size)
    return building.paged_source(
        random.Random(0), 9, width, max(unit, source_page_size), source_page_size, torch.int32, device
    )


def make(name: str, device: str, page_size: int | None = None, **options: object):
    unit = page_size or dispatch.specs_of("cpu")[name].page_size
    table = source(device, unit, options.get("source_page_size", 1))
    return xkv.MetadataBuilder(
        name, table, max_batch_size=8, max_context_len=CONTEXT, page_size=page_size, **options
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
        builder.source_page_size, page_size, (view,), min_last_page_len=spec.min_last_page_len,
        missing_id=spec.pad_id, pad_value=0 if spec.pad_to_tokens else None,
        pad_to_multiple_of=spec.pad_to_multiple_of(page_size),
    )  # fmt: skip
    oracle.run(build)
    for name, x in got.items():
        assert torch.equal(x, want[name]), name
