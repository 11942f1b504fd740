"""Real attention over our metadata is attention over a dense cache; and a step is one kernel."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from dense import (
    BATCH,
    CKV,
    DEVICE,
    HEADS,
    KPE,
    SCALE,
    TOKENS,
    Cache,
    assert_gqa,
    assert_mla,
    build,
    lengths,
    make_cache,
    random_query,
    some_rows,
)
from test_gpu import kernels

import xkv
from xkv import dispatch

pytestmark = pytest.mark.gpu


def flashinfer_wrapper(backend: str, **options: Any) -> Any:
    flashinfer = pytest.importorskip("flashinfer", exc_type=ImportError)
    if backend == "fa3" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashInfer's fa3 is for sm90")
    workspace = torch.empty(128 << 20, dtype=torch.int8, device=DEVICE)
    return flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace, backend=backend, **options)


def mla_inputs(query: torch.Tensor, cache: Cache) -> list[torch.Tensor]:
    """The query's two parts, and the cache's, as views of one cache."""
    parts = [query[..., :CKV].contiguous(), query[..., CKV:].contiguous()]
    return [*parts, cache.paged[..., :CKV], cache.paged[..., CKV:]]


@pytest.mark.parametrize("queries", [1, 4], ids=["decode", "verify"])
@pytest.mark.parametrize("page_size", [64, 1])
@pytest.mark.parametrize("backend", ["fa2", "fa3"])
def test_flashinfer_mla(backend: str, page_size: int, queries: int) -> None:
    wrapper = flashinfer_wrapper(backend)
    cache = make_cache(page_size, CKV + KPE)
    rows, lens, meta = build("flashinfer_mla", cache, page_size, queries)
    wrapper.plan(
        meta.qo_indptr, meta.kv_indptr, meta.kv_indices, meta.kv_len_arr,
        HEADS, CKV, KPE, page_size, queries > 1, SCALE, torch.bfloat16, torch.bfloat16,
    )  # fmt: skip
    query = random_query(queries, HEADS, CKV + KPE)
    assert_mla(wrapper.run(*mla_inputs(query, cache)), query, cache, rows, lens)


@pytest.mark.parametrize("page_size", [64, 1])
@pytest.mark.parametrize("backend", ["fa2", "fa3"])
def test_flashinfer_mla_in_a_graph(backend: str, page_size: int) -> None:
    """The captured build writes what the captured attention reads, replay by replay."""
    flashinfer_wrapper(backend)  # skips
    cache = make_cache(page_size, CKV + KPE)
    builder = xkv.MetadataBuilder(
        "flashinfer_mla", cache.req_to_token, max_batch_size=BATCH, max_context_len=TOKENS,
        page_size=page_size,
    )  # fmt: skip
    rows, lens = some_rows(), torch.tensor(lengths(), device=DEVICE)
    meta = builder.build(rows, lens)
    names = ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr")
    ours = {name: getattr(meta, name) for name in names}
    wrapper = flashinfer_wrapper(backend, use_cuda_graph=True, **ours)

    def plan(host_lens: list[int]) -> dict[str, torch.Tensor]:
        """The split schedule, from the host's lengths; no ids, those are the kernel's to read."""
        kv_len_arr = torch.tensor(host_lens, dtype=torch.int32)
        kv_indptr = torch.nn.functional.pad((-(-kv_len_arr // page_size)).cumsum(0), (1, 0)).int()
        known = {"qo_indptr": torch.arange(BATCH + 1, dtype=torch.int32), "kv_indptr": kv_indptr}
        wrapper.plan(
            known["qo_indptr"], kv_indptr, meta.kv_indices[:0], kv_len_arr,
            HEADS, CKV, KPE, page_size, False, SCALE, torch.bfloat16, torch.bfloat16,
        )  # fmt: skip
        return known | {"kv_len_arr": kv_len_arr}

    plan(lengths())
    query = random_query(1, HEADS, CKV + KPE)
    inputs, out = mla_inputs(query, cache), torch.empty_like(query[..., :CKV].contiguous())
    wrapper.run(*inputs, out=out)  # loads what it needs, outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        builder.build(rows, lens)
        wrapper.run(*inputs, out=out)
    for part in range(3):
        host_lens = lengths(part)
        rows.copy_(some_rows())
        lens.copy_(torch.tensor(host_lens))
        planned = plan(host_lens)  # copies into our buffers
        for buffer in (*ours.values(), out):
            buffer.fill_(0)  # so that only the replay can have written what is found
        graph.replay()
        for name, want in planned.items():
            assert torch.equal(ours[name].cpu(), want), name
        assert_mla(out, query, cache, rows, host_lens)
    builder.check()


@pytest.mark.parametrize("queries", [1, 4], ids=["decode", "verify"])
def test_torch_varlen_attn(queries: int) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if "block_table" not in inspect.signature(varlen.varlen_attn).parameters:
        pytest.skip(f"varlen_attn of torch {torch.__version__} has no block_table")
    page_size, heads, heads_kv, dim = 256, 8, 2, 128  # 256: what torch's FlashAttention 2 takes
    cache = make_cache(page_size, 2, heads_kv, dim)
    rows, lens, meta = build("flash_attention", cache, page_size, queries)
    query = random_query(queries, heads, dim)
    out = varlen.varlen_attn(
        query, *(x.contiguous() for x in cache.paged.unbind(2)),
        meta.cu_seqlens_q, meta.cu_seqlens_k, queries, max(lens),
        scale=SCALE, window_size=(-1, 0), enable_gqa=True,
        seqused_k=meta.cache_seqlens, block_table=meta.page_table,
    )  # fmt: skip
    assert_gqa(out, query, cache, rows, lens)


@pytest.mark.parametrize("queries", [1, 4], ids=["decode", "verify"])
def test_flashmla(queries: int) -> None:
    flash_mla = pytest.importorskip("flash_mla", exc_type=ImportError)
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashMLA's dense decode is for sm90")
    heads = 64
    cache = make_cache(64, CKV + KPE)
    rows, lens, meta = build("flashmla", cache, 64, queries)
    query = random_query(queries, heads, CKV + KPE)
    schedule = flash_mla.get_mla_metadata(meta.cache_seqlens, queries * heads, 1)
    out, _ = flash_mla.flash_mla_with_kvcache(
        query.view(BATCH, queries, heads, -1), cache.paged[:, :, None], meta.page_table,
        meta.cache_seqlens, CKV, *schedule, softmax_scale=SCALE, causal=True,
    )  # fmt: skip
    assert_mla(out, query, cache, rows, lens)


def test_aiter_mla() -> None:
    mla = pytest.importorskip("aiter.mla", exc_type=ImportError)
    cache = make_cache(1, CKV + KPE)
    # the length of kv_indices decides how the work is split
    rows, lens, meta = build("aiter_mla", cache, 1, 1, max_tokens=sum(lengths()))
    query = random_query(1, HEADS, CKV + KPE)
    out = torch.empty_like(query[..., :CKV].contiguous())
    mla.mla_decode_fwd(
        query, cache.paged.view(-1, 1, 1, CKV + KPE), out, meta.qo_indptr, meta.kv_indptr,
        meta.kv_indices, meta.kv_last_page_len, 1, sm_scale=SCALE,
    )  # fmt: skip
    assert_mla(out, query, cache, rows, lens)


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("queries", [1, 4], ids=["decode", "verify"])
def test_aiter_unified(queries: int, page_size: int) -> None:
    where = "aiter.ops.triton.attention.unified_attention"
    unified = pytest.importorskip(where, exc_type=ImportError)
    heads, heads_kv, dim = 8, 2, 128
    cache = make_cache(page_size, 2, heads_kv, dim)
    rows, lens, meta = build("aiter_unified", cache, page_size, queries)
    assert meta.page_table is not None
    query = random_query(queries, heads, dim)
    keys, values = (x.contiguous() for x in cache.paged.unbind(2))
    out = torch.empty_like(query)
    unified.unified_attention(
        q=query, k=keys, v=values, out=out, cu_seqlens_q=meta.cu_seqlens_q,
        seqused_k=meta.cache_seqlens, max_seqlen_q=queries,
        max_seqlen_k=meta.page_table.shape[1] * page_size, softmax_scale=SCALE, causal=True,
        window_size=(-1, -1), block_table=meta.page_table, softcap=0.0,
        q_descale=None, k_descale=None, v_descale=None,
    )  # fmt: skip
    assert_gqa(out, query, cache, rows, lens)


# what the builder is made with, and what a build is asked for; True: a tensor of query lengths
MODES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "decode": ({}, {}),
    "verify": ({}, {"seq_lens_delta": 4, "query_lens": 4}),
    "ragged verify": ({}, {"query_lens": True, "query_lens_sign": 1}),
    "draft extend": ({}, {"query_lens": True, "query_lens_sign": -1, "seq_lens_delta": 4}),
    "sliding window": ({"sliding_window": 100}, {}),
    "page ids": ({"source_page_size": 16}, {}),
}


@pytest.mark.usefixtures("every_backend")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", dispatch.specs_of("cpu"))
def test_a_step_is_one_kernel(backend: str, mode: str) -> None:
    """And neither a copy nor a fill, whatever the backend (the other vendor's too) and the mode."""
    made, asked = MODES[mode]
    unit = made.get("source_page_size", 1)
    source = torch.randint(1 << 20, (8, 2048 // unit), dtype=torch.int32, device=DEVICE)
    builder = xkv.MetadataBuilder(backend, source, max_batch_size=8, max_context_len=2048, **made)
    rows = torch.arange(8, device=DEVICE)
    lens = torch.tensor([5, 64, 1, 2000, 700, 129, 9, 1024], device=DEVICE)
    queries = torch.tensor([1, 4, 1, 2, 3, 4, 1, 0], device=DEVICE)
    asked = {name: queries if value is True else value for name, value in asked.items()}
    builder.build(rows, lens, **asked)  # compiles
    assert kernels(lambda: builder.build(rows, lens, **asked)) == ["xkv_build"]
    builder.check()
