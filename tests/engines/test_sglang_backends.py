"""TRTLLM MLA's steps in one launch, beside SGLang's own methods: ci/engines.sh."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_backends import CONTEXT, Backend, file_of, kernels, method, mode
from sglang_engine import kernel, launches, loaded, version

from xkv.integrations.patching.codes import code_of
from xkv.integrations.sglang import methods, table

__all__ = ["loaded"]  # the plugin is loaded here, too
pytestmark = pytest.mark.kernel
NEW = version == "0.5.23"


def trtllm_mla(device: str) -> Backend:
    backend = Backend(device, 32)
    new = lambda *shape: torch.full(shape, -9, dtype=torch.int32, device=device)  # noqa: E731
    meta = SimpleNamespace(
        seq_lens_k=new(4), global_seq_lens_k=new(4), block_kv_indices=new(4, CONTEXT // 32), seq_lens_q=new(4)
    )
    backend.decode_cuda_graph_metadata = {4: meta}
    return backend


def extracted(row: Any) -> Callable[..., Any]:
    return method(file_of("trtllm_mla"), *row.name.split("."), **kernels())


@pytest.mark.parametrize("row", table.METHODS, ids=lambda row: row.name)
def test_methods_are_known(row: Any) -> None:
    assert code_of(extracted(row)) in row.codes


@pytest.mark.parametrize("what", ["decode", "verify"])
def test_trtllm_mla_in_a_graph(what: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = extracted(table.METHODS[1])
    found, builds = [], []
    for run in (theirs, lambda *a, **k: methods.apply_cuda_graph_metadata(theirs, *a, **k)):
        backend = trtllm_mla(device)
        meta = backend.decode_cuda_graph_metadata[4]
        if what == "decode" and not NEW:
            meta.seq_lens_k = None
        plan = {"plan": None} if NEW else {}
        given = {"bs": 4, "req_pool_indices": backend.rows, "seq_lens": backend.lens}
        with launches(kernel("create_flashmla_kv_indices_triton")) as seen:
            run(backend, **plan, **given, forward_mode=mode(what))
        builds.append(list(seen))
        tensors = (meta.seq_lens_k, meta.block_kv_indices, meta.global_seq_lens_k if NEW else None)
        found.append([x for x in tensors if x is not None])
    assert builds == [[], []]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if NEW or what == "verify":
        more = 4 * (what == "verify")
        assert torch.equal(found[1][0], (backend.lens[:4] + more).int())


def test_trtllm_mla_eager(device: str) -> None:
    theirs = extracted(table.METHODS[0])
    backend = Backend(device, 32)
    args = [4, 34, backend.rows[:4], backend.lens[:4], torch.device(device)]
    args = [None, *args] if NEW else args
    with launches(kernel("create_flashmla_kv_indices_triton")) as seen:
        want = theirs(backend, *args)
        got = methods.create_block_kv_indices(theirs, backend, *args)
    assert seen == []
    assert got.dtype is want.dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("why", ["translated", "ranks"])
def test_what_is_left_to_theirs(why: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = trtllm_mla(device)
    backend.kv_index_translator.is_translating = why == "translated"
    ranks = SimpleNamespace(dcp_enabled=why == "ranks")
    monkeypatch.setitem(globals(), "get_parallel", lambda: ranks)
    ran = []

    def create(self, batch_size, max_blocks, req_pool_indices, seq_lens, device):
        ran.append(batch_size)

    def apply(self, bs, req_pool_indices, seq_lens, forward_mode):
        ran.append(bs)

    tensors = (backend.rows[:4], backend.lens[:4])
    methods.create_block_kv_indices(create, backend, 4, 34, *tensors, device)
    methods.apply_cuda_graph_metadata(apply, backend, 4, *tensors, forward_mode=mode("decode"))
    assert ran == [4, 4]
