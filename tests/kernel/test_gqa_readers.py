"""Real grouped-query attention over our metadata is attention over a dense cache: FlashInfer's, Aiter's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dense import (
    BATCH,
    DEVICE,
    SCALE,
    TOKENS,
    Cache,
    assert_gqa,
    build,
    lengths,
    make_cache,
    random_query,
    some_rows,
)

import xkv

HEADS, HEADS_KV, DIM = 8, 2, 128
TYPES = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16, "sm_scale": SCALE}

pytestmark = pytest.mark.gpu


def wrapper_of(name: str, backend: str, **options: Any) -> Any:
    flashinfer = pytest.importorskip("flashinfer", exc_type=ImportError)
    if backend == "fa3" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashInfer's fa3 is for sm90")
    workspace = torch.zeros(128 << 20, dtype=torch.uint8, device=DEVICE)
    return getattr(flashinfer, name)(workspace, "NHD", backend=backend, **options)


def gqa_cache(page_size: int) -> tuple[Cache, tuple[torch.Tensor, torch.Tensor]]:
    """The cache, and its keys and values ``[pages, page_size, HEADS_KV, DIM]``."""
    cache = make_cache(page_size, 2, HEADS_KV, DIM)
    keys, values = (x.contiguous() for x in cache.paged.unbind(2))
    return cache, (keys, values)


@pytest.mark.parametrize("page_size", [64, 16, 1])
@pytest.mark.parametrize("use_tensor_cores", [False, True])
def test_flashinfer_decode(page_size: int, use_tensor_cores: bool) -> None:
    wrapper = wrapper_of(
        "BatchDecodeWithPagedKVCacheWrapper", "auto", use_tensor_cores=use_tensor_cores
    )  # fmt: skip
    cache, paged = gqa_cache(page_size)
    rows, lens, meta = build("flashinfer_decode", cache, page_size, 1)
    wrapper.plan(
        meta.kv_indptr, meta.kv_indices, meta.kv_last_page_len, HEADS, HEADS_KV, DIM, page_size, **TYPES
    )
    query = random_query(1, HEADS, DIM)
    assert_gqa(wrapper.run(query, paged), query, cache, rows, lens)


@pytest.mark.parametrize("queries", [1, 4], ids=["decode", "verify"])
@pytest.mark.parametrize("page_size", [64, 16, 1])
@pytest.mark.parametrize("backend", ["fa2", "fa3"])
def test_flashinfer_prefill(backend: str, page_size: int, queries: int) -> None:
    wrapper = wrapper_of("BatchPrefillWithPagedKVCacheWrapper", backend)
    cache, paged = gqa_cache(page_size)
    rows, lens, meta = build("flashinfer_prefill", cache, page_size, queries)
    wrapper.plan(
        meta.qo_indptr, meta.kv_indptr, meta.kv_indices, meta.kv_last_page_len, HEADS, HEADS_KV, DIM,
        page_size, causal=True, **TYPES,
    )  # fmt: skip
    query = random_query(queries, HEADS, DIM)
    assert_gqa(wrapper.run(query, paged), query, cache, rows, lens)


@pytest.mark.parametrize("page_size", [16, 1])
def test_flashinfer_decode_in_a_graph(page_size: int) -> None:
    """The plan gets the host's sums and no ids; the captured build writes what the captured kernel reads."""
    name = "BatchDecodeWithPagedKVCacheWrapper"
    cache, paged = gqa_cache(page_size)
    builder = xkv.MetadataBuilder(
        "flashinfer_decode", cache.req_to_token, max_batch_size=BATCH, max_context_len=TOKENS,
        page_size=page_size,
    )  # fmt: skip
    rows, lens = some_rows(), torch.tensor(lengths(), device=DEVICE)
    meta = builder.build(rows, lens)
    ours = (meta.kv_indptr, meta.kv_indices, meta.kv_last_page_len)
    buffers = zip(("indptr", "indices", "last_page_len"), ours, strict=True)
    wrapper = wrapper_of(
        name, "auto", use_cuda_graph=True, use_tensor_cores=True,
        **{f"paged_kv_{each}_buffer": buffer for each, buffer in buffers},
    )  # fmt: skip

    def plan(host_lens: list[int]) -> None:
        host = torch.tensor(host_lens, dtype=torch.int32)
        indptr = torch.nn.functional.pad((-(-host // page_size)).cumsum(0), (1, 0)).int()
        last = (host - 1) % page_size + 1
        wrapper.plan(indptr, meta.kv_indices[:0], last, HEADS, HEADS_KV, DIM, page_size, **TYPES)

    plan(lengths())
    query = random_query(1, HEADS, DIM)
    out = torch.empty_like(query)
    wrapper.run(query, paged, out=out)  # loads what it needs, outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        builder.build(rows, lens)
        wrapper.run(query, paged, out=out)
    for part in range(3):
        host_lens = lengths(part)
        rows.copy_(some_rows())
        lens.copy_(torch.tensor(host_lens))
        plan(host_lens)
        for buffer in (*ours, out):
            buffer.fill_(0)  # so that only the replay can have written what is found
        graph.replay()
        assert_gqa(out, query, cache, rows, host_lens)
    builder.check()


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("backend", ["aiter_pa", "aiter_pa_ragged"])
def test_aiter_paged_attention(backend: str, page_size: int) -> None:
    aiter = pytest.importorskip("aiter", exc_type=ImportError)
    cache, paged = gqa_cache(page_size)
    rows, lens, meta = build(backend, cache, page_size, 1)
    query = random_query(1, HEADS, DIM)
    out = torch.empty_like(query)
    parts = BATCH * HEADS * math.ceil(TOKENS / 256)  # of 256 tokens
    workspace = torch.empty(parts * (DIM * query.element_size() + 8), dtype=torch.uint8, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    if backend == "aiter_pa":
        aiter.paged_attention_v1(
            out, workspace, query, *paged, SCALE, meta.page_table, meta.cu_seqlens_q, meta.cache_seqlens,
            meta.max_seq_len, None, "auto", "NHD", 0.0, one, one,
        )  # fmt: skip
    else:
        aiter.paged_attention_ragged(
            out, workspace, query, *paged, SCALE, meta.kv_indptr, meta.kv_indices, meta.kv_last_page_len,
            page_size, math.ceil(TOKENS / 256), None, "auto", "NHD", 0.0, one, one,
        )  # fmt: skip
    assert_gqa(out, query, cache, rows, lens)


@pytest.mark.parametrize("queries", [1, 4], ids=["decode", "verify"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_aiter_batch_prefill(page_size: int, queries: int) -> None:
    aiter = pytest.importorskip("aiter", exc_type=ImportError)
    cache, paged = gqa_cache(page_size)
    rows, lens, meta = build("aiter_batch_prefill", cache, page_size, queries)
    query = random_query(queries, HEADS, DIM)
    out = aiter.mha_batch_prefill_func(
        query, *paged, meta.qo_indptr, meta.kv_indptr, meta.kv_indices, queries, max(lens),
        softmax_scale=SCALE, causal=True, kv_last_page_lens=meta.kv_last_page_len,
    )  # fmt: skip
    assert_gqa(out, query, cache, rows, lens)
