"""docs/sglang-*.patch: they apply, and what they change comes to the same: ci/engines.sh."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_backends import CONTEXT, Backend, file_of, kernels, method, mode, only
from sglang_engine import both, kernel, launches, loaded, version

import xkv

__all__ = ["loaded"]  # the plugin is loaded here, too
pytestmark = pytest.mark.kernel
PATCHES = Path(__file__).resolve().parents[2] / "docs"


def flashmla(path: Path, device: str, what: str, builder: bool) -> tuple[list[torch.Tensor], Any]:
    """Runs two steps of FlashMLA's; returns its table's live rows and what it gives its scheduler.

    With a builder the second is an extension, as the requests are the same, but for a draft extend.
    """
    lens = []

    def get_mla_metadata(x: torch.Tensor, heads: int, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        lens.append(x)
        return torch.zeros(3, 8, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)

    backend = Backend(device, 64)
    backend.xkv_builder = None
    backend.cuda_graph_kv_indices = torch.ones(6, 17, dtype=torch.int32, device=device)
    if builder:
        backend.xkv_builder = xkv.MetadataBuilder(
            "flashmla", backend.req_to_token, max_batch_size=6, max_context_len=CONTEXT
        )
        none = torch.zeros(6, dtype=torch.int32, device=device)
        backend.cuda_graph_kv_indices = backend.xkv_builder.build(none, none).page_table
        backend.xkv_batch, extend, extended = None, backend.xkv_builder.extend, []
        backend.xkv_builder.extend = lambda *a, **k: extended.append(a) or extend(*a, **k)
    backend.cuda_graph_mla_metadata = torch.zeros(4, 8, dtype=torch.int32)
    backend.cuda_graph_draft_extend_seq_lens_k = torch.ones(6, dtype=torch.int32, device=device)
    backend.cuda_graph_num_splits = torch.zeros(7, dtype=torch.int32)
    backend.cuda_graph_mla_metadata_view = None
    step = method(
        path, "FlashMLABackend", "_apply_decode_target_verify_metadata", **kernels(),
        get_mla_metadata=get_mla_metadata, FlashMLADecodeMetadata=lambda *a: a,
    )  # fmt: skip
    forward_mode, more = mode(what), {"rids": ["a", "b", "c", "d"]} if builder else {}
    for n in range(2):
        step(
            backend, plan=None, bs=4, req_pool_indices=backend.rows, seq_lens=backend.lens + n,
            seq_lens_cpu=None, forward_mode=forward_mode, **more,
        )  # fmt: skip
    if builder:
        assert len(extended) == (what != "extend")
    pages = -(-lens[1] // 64)
    rows = zip(backend.cuda_graph_kv_indices, pages.tolist(), strict=False)
    return [row[:n].clone() for row, n in rows], lens[1]


@only("0.5.23")
@pytest.mark.parametrize("what", ["decode", "verify", "extend"])
def test_call_site_of_flashmla(what: str, device: str) -> None:
    it = kernel("create_flashmla_kv_indices_triton")
    (ours, _), (theirs, _) = both(it, lambda: flashmla(file_of("flashmla"), device, what, False))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the backends with this version's patch applied."""
    patch = PATCHES / f"sglang-{version}.patch"
    root = tmp_path_factory.mktemp("patched")
    where = root / "sglang/srt/layers/attention"
    where.mkdir(parents=True)
    for name in ("flashmla", "aiter", "cutlass_mla"):
        if file_of(name).exists():
            (where / file_of(name).name).write_bytes(file_of(name).read_bytes())
    for name in ("cuda_graph_runner.py", "runner/decode_cuda_graph_runner.py"):
        path = file_of("flashmla").parents[1] / "../model_executor" / name
        if path.exists():
            runner = root / "sglang/srt/model_executor" / name
            runner.parent.mkdir(parents=True, exist_ok=True)
            runner.write_bytes(path.read_bytes())
    done = subprocess.run(
        ["git", "apply", "--verbose", str(patch)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return where


@only("0.5.23")
@pytest.mark.parametrize("what", ["decode", "verify", "extend"])
def test_patched_flashmla(what: str, patched: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = kernel("create_flashmla_kv_indices_triton")
    if device == "cpu":  # where torch has no streams
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    theirs, lens = flashmla(file_of("flashmla"), device, what, False)
    with launches(it) as seen:
        ours, fused = flashmla(patched / "flashmla_backend.py", device, what, True)
    assert seen == []
    assert fused.dtype is torch.int32
    assert torch.equal(fused, lens.int())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@only("0.5.13")
def test_patched_cutlass_mla(patched: Path, device: str) -> None:
    def step(path: Path, **more: Any) -> Any:
        backend = Backend(device, 128)
        backend.cuda_graph_kv_indices = torch.ones(6, 9, dtype=torch.int32, device=device)
        backend.cuda_graph_mla_workspace = backend.xkv_rids = None
        for name, make in more.items():
            setattr(backend, name, make(backend))
        run = method(
            path, "CutlassMLABackend", "init_forward_metadata_out_graph", **kernels(128),
            CutlassMLADecodeMetadata=lambda workspace, ids: SimpleNamespace(table=ids),
        )  # fmt: skip
        batch = SimpleNamespace(
            batch_size=4, forward_mode=mode("decode"), spec_info=None, req_pool_indices=backend.rows,
            seq_lens=backend.lens, rids=["a", "b", "c", "d"],
        )  # fmt: skip
        for in_capture in (True, False):
            run(backend, batch, in_capture=in_capture)
            batch.seq_lens = batch.seq_lens + 1
        return backend

    make = lambda x: xkv.MetadataBuilder(  # noqa: E731
        "cutlass_mla", x.req_to_token, max_batch_size=6, max_context_len=CONTEXT, page_size=128
    )
    want = step(file_of("cutlass_mla"))
    got = step(patched / "cutlass_mla_backend.py", xkv_builder=make)
    lens = want.lens[:4] + 1  # of the second step
    assert torch.equal(got.forward_metadata.seq_lens, lens.int())
    for b, n in enumerate((-(-lens // 128)).tolist()):
        assert torch.equal(got.forward_metadata.table[b, :n], want.forward_metadata.table[b, :n])


@only("0.5.23")
@pytest.mark.parametrize("pages", [False, True], ids=["mla", "page table"])
def test_patched_aiter(pages: bool, patched: Path, device: str) -> None:
    """Decode, up to what it hands on to its kernels."""

    def step(path: Path) -> Any:
        backend = Backend(device, 16)
        vars(backend).update({
            "kv_indptr": torch.zeros(7, dtype=torch.int32, device=device), "kv_last_page_len": None,
            "decode_uses_page_table": pages, "use_sliding_window_kv_pool": False, "use_mla": False,
            "dcp_world_size": 1, "qo_indptr_unified_decode": torch.arange(7, device=device),
            "_transform_table_1_to_real": lambda x: transform(backend, x),
            "_get_kv_indices_scratch": lambda n, at: torch.full((n,), -9, dtype=torch.int32, device=at),
        })  # fmt: skip
        names = kernels() | {
            "create_flashinfer_kv_indices_triton": kernel("create_flashinfer_kv_indices_triton"),
            "ForwardMetadata": lambda *a, **k: a, "reset_verify_attn_plan_cache": lambda: None,
        }  # fmt: skip
        transform = method(path, "AiterAttnBackend", "_transform_table_1_to_real", **names)
        lens = backend.lens[:4]
        batch = SimpleNamespace(
            batch_size=4, forward_mode=mode("decode"), spec_info=None, req_pool_indices=backend.rows[:4],
            seq_lens=lens, seq_lens_sum=int(lens.sum()), seq_lens_cpu=lens.cpu(), out_cache_loc=None,
        )  # fmt: skip
        batch.forward_mode.is_idle = lambda: False
        method(path, "AiterAttnBackend", "init_forward_metadata", **names)(backend, batch)
        return backend.forward_metadata[:3]

    theirs, ours = step(file_of("aiter")), step(patched / "aiter_backend.py")
    if pages:
        (a, b) = (x[1] for x in (theirs, ours))
        assert a.shape == b.shape
        lens = Backend(device, 16).lens[:4]
        for row, n in enumerate((-(-lens // 16)).tolist()):
            assert torch.equal(a[row, :n], b[row, :n])
    else:
        assert torch.equal(theirs[0], ours[0])
        assert torch.equal(theirs[1], ours[1])
