"""SGLang's own kernels and call sites beside what replaced them, through its own loader: ci/engines.sh."""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import GPUS
from sglang_calls import CALLS, Call, assert_same, fits, original, twin

plugins = pytest.importorskip("sglang.srt.plugins", reason="no SGLang here: see ci/engines.sh")

import sglang  # noqa: E402
from sglang.version import __version__ as version  # noqa: E402

from xkv.integrations import finding, replacing  # noqa: E402
from xkv.integrations.sglang import table  # noqa: E402

CASES = 20 if GPUS else 6


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """As SGLang does it, from xkv's entry point on."""
    plugins.load_plugins()


def kernel(name: str) -> Any:
    found = places(name)
    if not found:
        pytest.skip(f"SGLang {version} has no {name}")
    return getattr(importlib.import_module(found[0].module), name)


@functools.cache
def places(name: str) -> list[finding.Found]:
    return finding.definitions("sglang", sglang.__path__, [name], table.FIRST)[name]


@contextmanager
def launches(it: Any) -> Iterator[list[Any]]:
    """What is launched of a replaced kernel's own code meanwhile."""
    run, seen = it.run, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["grid"])
        return run(*args, **kwargs)

    it.run = counted
    try:
        yield seen
    finally:
        del it.run


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
def test_equal_bit_for_bit(name: str, device: str) -> None:
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


def both(it: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call site leaves with ours, which it must launch, and with the original."""
    with launches(it) as seen:
        ours = run()
    assert seen == [], "the call site launched the original"
    cls = type(it)
    replacing.restore(it)
    try:
        with launches(it) as seen:
            theirs = run()
    finally:
        it.__class__ = cls
    assert len(seen) >= 1
    return ours, theirs


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
