"""SGLang's own kernels and call sites beside what replaced them, through its own loader: ci/engines.sh."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import GPUS
from sglang_calls import CALLS, Call, assert_same, fits, original, twin
from sglang_engine import both, kernel, launches, loaded, version

from xkv.integrations.patching import replacing
from xkv.integrations.sglang import draft

__all__ = ["loaded"]  # the plugin is loaded here
CASES = 20 if GPUS else 6


def calls(name: str, device: str, seed: int) -> Iterator[tuple[Any, Call]]:
    it, rng = kernel(name), random.Random(f"{name} {seed}")
    for _ in range(CASES):
        call = CALLS[name](rng, device)
        if fits(it, call):
            yield it, call


@pytest.mark.parametrize("name", CALLS)
def test_replaced_by_the_engines_own_loader(name: str) -> None:
    assert replacing.replaced(kernel(name))


@pytest.mark.kernel
@pytest.mark.parametrize("name", CALLS)
def test_equal_bit_for_bit(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "PREPARED_AT", 1)  # each call has buffers of its own
    theirs = tried = 0
    for it, call in calls(name, device, 1):
        want, again = twin(call), twin(call)
        original(it)(want.grid)(**want.args)
        with launches(it) as seen:
            it[call.grid](**call.args)
        assert_same(call, want)
        if GPUS:  # of the same kind: from what was remembered of the first
            it[again.grid](**again.args)
            assert_same(again, want)
        theirs += len(seen)
        tried += 1
    assert theirs <= tried // 2, "the original ran nearly always"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_equal_in_a_graph(name: str, device: str) -> None:
    """Captured with one batch's contents, replayed with another's."""
    for it, call in calls(name, device, 2):
        with launches(it) as seen:
            it[call.grid](**twin(call).args)  # compiles
        if seen:
            continue
        lens = next(v for k, v in call.args.items() if k in LENS)
        later, graph = lens.clone(), torch.cuda.CUDAGraph()
        lens.fill_(1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.graph(graph, stream=stream):
            it[call.grid](**call.args)
        lens.copy_(later)
        want = twin(call)
        original(it)(want.grid)(**want.args)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(call, want)


LENS = ("page_kernel_lens_ptr", "chunk_seq_lens_ptr", "seq_lens_ptr")


def test_grids_of_large_pages() -> None:
    module = __import__(type_module("create_flashmla_kv_indices_triton"), fromlist=["x"])
    assert module.get_num_page_per_block_flashmla(64) == 64
    assert module.get_num_page_per_block_flashmla(8192) == 1
    assert module.get_num_kv_index_blocks_flashmla(100, 48) == 2
    assert module.get_num_kv_index_blocks_flashmla(100, 8192) == 100


def type_module(name: str) -> str:
    return str(kernel(name).fn.__module__)


@pytest.mark.kernel
def test_call_site_of_trtllm_mha(device: str) -> None:
    if version == "0.5.13":
        pytest.skip("0.5.13 has none")
    from sglang.kernels.ops.attention import trtllm_mha_page_table as module

    call = CALLS["create_trtllm_mha_kv_indices_triton"](random.Random(5), device).args

    def run() -> torch.Tensor:
        out = torch.full_like(call["page_table_ptr"], -9)
        module.build_trtllm_mha_page_table(
            call["req_to_token_ptr"], call["req_pool_indices_ptr"], call["seq_lens_ptr"], out,
            call["PAGE_SIZE"],
        )  # fmt: skip
        return out

    assert torch.equal(*both(module.create_trtllm_mha_kv_indices_triton, run))


@pytest.mark.kernel
def test_call_site_of_trtllm_mha_in_a_graph(device: str) -> None:
    if version == "0.5.13":
        pytest.skip("0.5.13 has none")
    from sglang.kernels.ops.attention import trtllm_mha_graph_metadata as module

    call = CALLS["update_trtllm_mha_graph_metadata_kernel"](random.Random(5), device).args

    def run() -> torch.Tensor:
        bs, out = call["bs"], torch.full_like(call["page_table_ptr"], -9)
        lens, sums = (torch.full((bs + n,), -9, dtype=torch.int32, device=device) for n in (0, 1))
        module.update_trtllm_mha_graph_metadata(
            req_pool_indices=call["req_pool_indices_ptr"], seq_lens=call["seq_lens_ptr"],
            req_to_token=call["req_to_token_ptr"], cache_seqlens=lens, cu_seqlens_k=sums, page_table=out,
            bs=bs, seqlen_offset=0, max_seq_pages=out.shape[1], page_size=call["PAGE_SIZE"],
        )  # fmt: skip
        return torch.cat([out.flatten(), lens, sums])

    assert torch.equal(*both(module.update_trtllm_mha_graph_metadata_kernel, run))


@pytest.mark.kernel
def test_call_site_that_imported_the_name(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One-shot MHA: a module that has the kernel by ``from ... import``."""
    from sglang.srt.model_executor import forward_batch_deepseek_mha_mixin as module

    call = CALLS["create_chunked_prefix_cache_kv_indices"](random.Random(6), device).args
    size = call["chunk_cu_seq_lens_ptr"].shape[0] - 1
    lens = call["chunk_seq_lens_ptr"][:size]
    pool = SimpleNamespace(req_to_token=call["req_to_token_ptr"].contiguous())
    monkeypatch.setattr(module, "get_req_to_token_pool", lambda: pool)
    if hasattr(module, "get_attn_backend"):
        monkeypatch.setattr(module, "get_attn_backend", lambda: SimpleNamespace(kv_index_translator=None))
    mixin = module.ForwardBatchDeepSeekMHAMixin

    def run() -> torch.Tensor:
        batch = SimpleNamespace(
            batch_size=size, req_pool_indices=call["req_pool_indices_ptr"][:size], seq_lens=lens,
            seq_lens_cpu=lens.cpu(), mha_one_shot_kv_indices=None,
        )  # fmt: skip
        return mixin.fetch_mha_one_shot_kv_indices(batch)

    assert torch.equal(*both(module.create_flashinfer_kv_indices_triton, run))
