"""The ops that SGLang 0.5.23 issues for a step of each backend: what is timed beside one build.

Written after reading sglang/srt/layers/attention/; each function names its file and method. It
issues what a CUDA-graph replay issues there, op by op, and leaves the index kernel to `SGLang`. Left
out is what xkv does not build either, so that theirs is rather too cheap than too dear: split
schedules and the copies of them, masks, write locations, the host arrays of a plan, and what runs
once a layer inside of the graph (which the cases' notes tell).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .inputs import Inputs, Step
from .sglang import SGLang

Results = dict[str, Tensor]  # by the names of xkv.Metadata's fields
Sequence = Callable[[Step], Results]


def flashmla(at: Inputs, sglang: SGLang) -> Sequence:
    """flashmla_backend.py, _apply_decode_target_verify_metadata."""
    table = at.ints(at.batch, (at.capacity + 64) // 64)
    build = sglang.page_table(at, table)

    def issue(step: Step) -> Results:
        lens = step.lens[: at.batch]
        if at.drafts:
            lens = lens + at.drafts
        build(step.rows[: at.batch], lens)
        return {"page_table": table, "cache_seqlens": lens.to(torch.int32)}

    return issue


def cutlass_mla(at: Inputs, sglang: SGLang) -> Sequence:
    """cutlass_mla_backend.py of 0.5.13, init_forward_metadata_out_graph; 0.5.23 has none."""
    table = at.ints(at.batch, (at.capacity + at.page_size) // at.page_size)
    build = sglang.page_table(at, table)

    def issue(step: Step) -> Results:
        build(step.rows[: at.batch], step.lens[: at.batch])
        return {"page_table": table}

    return issue


def trtllm_mla(at: Inputs, sglang: SGLang) -> Sequence:
    """trtllm_mla_backend.py, _apply_cuda_graph_metadata; the width by _calc_padded_blocks."""
    unit = math.lcm(128 // at.page_size, 4096 // at.page_size)
    table = at.ints(at.batch, -(-at.capacity // at.page_size // unit) * unit)
    build = sglang.page_table(at, table)
    all_lens, lens_k = at.ints(at.batch), at.ints(at.batch)

    def issue(step: Step) -> Results:
        lens = step.lens
        if at.drafts:
            torch.add(lens[: at.batch], at.drafts, out=all_lens)
            lens = lens_k.copy_(all_lens)
        else:
            lens_k.copy_(lens[: at.batch])
        build(step.rows[: at.batch], lens)
        return {"page_table": table, "cache_seqlens": lens_k}

    return issue


def _fused(at: Inputs, kernel: Callable[..., None]) -> Sequence:
    """One kernel of theirs for all but cu_seqlens_q, which is set once."""
    table, cache_seqlens = at.ints(at.batch, -(-at.capacity // at.page_size)), at.ints(at.batch)
    cu_seqlens_k, cu_seqlens_q = at.ints(at.batch + 1), at.query_starts()

    def issue(step: Step) -> Results:
        rows, lens = step.rows[: at.batch], step.lens[: at.batch]
        kernel(at, rows, lens, cache_seqlens, cu_seqlens_k, table)
        return {
            "page_table": table, "cache_seqlens": cache_seqlens,
            "cu_seqlens_k": cu_seqlens_k, "cu_seqlens_q": cu_seqlens_q,
        }  # fmt: skip

    return issue


def trtllm_mha(at: Inputs, sglang: SGLang) -> Sequence:
    """trtllm_mha_backend.py, _apply_cuda_graph_metadata."""
    return _fused(at, sglang.trtllm_mha)


def flash_attention(at: Inputs, sglang: SGLang) -> Sequence:
    """flashattention_backend.py, _apply_cuda_graph_metadata and _set_decode_page_metadata."""
    return _fused(at, sglang.flash_attention)


def flashinfer_mla(at: Inputs, sglang: SGLang) -> Sequence:
    """flashinfer_mla_backend.py: FlashInferMLAIndicesUpdaterDecode.call_begin_forward.

    Verify: FlashInferMLAIndicesUpdaterPrefill.call_begin_forward, generate_attn_arg_prefill of
    speculative/eagle_info.py, and the copies to the wrapper's buffers in fast_mla_prefill_plan.
    """
    batch, queries = at.batch, at.query_starts()
    kv_indices = at.ints(batch * at.capacity)
    kv_indptr, kv_lens, qo_indptr = at.ints(batch + 1), at.ints(batch), at.ints(batch + 1)

    def decode(step: Step) -> Results:
        lens = step.lens[:batch]
        int32_lens = lens.to(torch.int32)
        kv_indptr[1 : batch + 1] = torch.cumsum(lens, dim=0)
        indptr = kv_indptr[: batch + 1]
        sglang.tokens(at, step.rows[:batch], lens, indptr, kv_indices)
        return {
            "kv_indptr": indptr, "kv_indices": kv_indices,
            "cache_seqlens": int32_lens, "cu_seqlens_q": queries[: batch + 1],
        }  # fmt: skip

    @functools.cache
    def host(step: Step) -> tuple[Tensor, ...]:
        """What is copied to the device; made beforehand, as the plan reads it on either side."""
        pin = at.source.is_cuda
        lens = step.host_lens.to(torch.int32) + at.drafts
        indptr = torch.zeros(batch + 1, dtype=torch.int32)
        indptr[1:] = torch.cumsum(lens, dim=0)
        return tuple(x.pin_memory() if pin else x for x in (queries.cpu(), indptr, lens))

    def verify(step: Step) -> Results:
        rows, lens = step.rows[:batch], step.lens[:batch]
        device = rows.device
        torch.arange(0, (1 + batch) * at.drafts, step=at.drafts, dtype=torch.int32, device=device)
        indptr = torch.zeros((batch + 1,), dtype=torch.int32, device=device)
        lens = lens + at.drafts
        indptr[1:] = torch.cumsum(lens, dim=0)
        ids = torch.empty(step.total + at.drafts * batch, dtype=torch.int32, device=device)
        blocks = sglang.spec_blocks(at, step.total)
        sglang.tokens(at, rows, lens, indptr, ids, blocks)
        host_queries, host_indptr, host_lens = host(step)
        qo_indptr.copy_(host_queries, non_blocking=True)
        kv_indptr.copy_(host_indptr, non_blocking=True)
        kv_indices[: len(ids)].copy_(ids, non_blocking=True)
        kv_lens.copy_(host_lens, non_blocking=True)
        return {
            "kv_indptr": kv_indptr, "kv_indices": kv_indices,
            "cache_seqlens": kv_lens, "cu_seqlens_q": qo_indptr,
        }  # fmt: skip

    return verify if at.drafts else decode


def triton(at: Inputs, sglang: SGLang) -> Sequence:
    """triton_backend.py, _update_decode_kv_buffers and _update_target_verify_buffers."""
    batch = at.batch
    kv_indptr, qo_indptr = at.ints(batch + 1), at.ints(batch + 1)
    kv_indices = at.ints(batch * at.capacity, dtype=torch.int64)

    def issue(step: Step) -> Results:
        lens = step.lens[:batch]
        results = {"kv_indices": kv_indices}
        if at.drafts:
            results["cu_seqlens_q"] = _uniform(at, qo_indptr)
        indptr = results["kv_indptr"] = kv_indptr[: batch + 1]
        indptr[1:] = torch.cumsum(lens, dim=0)
        sglang.tokens(at, step.rows[:batch], lens, indptr, kv_indices)
        return results

    return issue


def _uniform(at: Inputs, qo_indptr: Tensor) -> Tensor:
    """The query starts of a verify, as the Triton and Aiter backends make them in every step."""
    starts = qo_indptr[: at.batch + 1]
    starts[: at.batch + 1] = torch.arange(
        0, (1 + at.batch) * at.drafts, step=at.drafts, dtype=torch.int32, device=qo_indptr.device
    )
    return starts


def aiter_mla(at: Inputs, sglang: SGLang) -> Sequence:
    """aiter_backend.py, _apply_cuda_graph_metadata, with use_mla."""
    batch = at.batch
    kv_indptr, qo_indptr = at.ints(batch + 1), at.ints(batch + 1)
    kv_indices, last_page_len = at.ints(batch * at.capacity), at.ints(batch) + 1

    def issue(step: Step) -> Results:
        rows, lens = step.rows, step.lens
        if at.drafts:
            starts = _uniform(at, qo_indptr)
            lens = lens + at.drafts
        blocks = sglang.spec_blocks(at, None) if at.drafts else 1
        kv_indptr[1 : batch + 1] = torch.cumsum(lens, dim=0)
        indptr = kv_indptr[: batch + 1]
        sglang.tokens(at, rows, lens, indptr, kv_indices, blocks)
        if not at.drafts:
            starts = qo_indptr[: batch + 1]
            starts[1 : batch + 1] = torch.cumsum(last_page_len[:batch], dim=0)
        return {
            "kv_indptr": indptr, "kv_indices": kv_indices,
            "kv_last_page_len": last_page_len[:batch], "cu_seqlens_q": starts,
        }  # fmt: skip

    return issue


def aiter_unified(at: Inputs, sglang: SGLang) -> Sequence:
    """aiter_backend.py, _apply_cuda_graph_metadata, _transform_table_1_to_real.

    Verify: with _use_unified_verify, _build_verify_unified_metadata; the CSR before it goes unread.
    """
    batch, size = at.batch, at.page_size
    table, queries = at.ints(batch, -(-at.capacity // size)), at.query_starts()
    kv_indptr, qo_indptr, kv_indices = at.ints(batch + 1), at.ints(batch + 1), at.ints(0)
    if at.drafts:
        kv_indices = at.ints(batch * at.capacity)

    def decode(step: Step) -> Results:
        longest = step.host_lens.max().item()
        tokens = at.source[step.rows[:batch], :longest]
        strided = torch.arange(0, tokens.shape[1], size, device=tokens.device, dtype=torch.int32)
        pages = tokens[:, strided] // size
        table[: pages.shape[0], : pages.shape[1]].copy_(pages)
        return {"page_table": table, "cu_seqlens_q": queries[: batch + 1]}

    def verify(step: Step) -> Results:
        rows, lens = step.rows, step.lens
        _uniform(at, qo_indptr)
        indptr = kv_indptr[: batch + 1]
        indptr[1 : batch + 1] = torch.cumsum(lens, dim=0)
        sglang.tokens(at, rows, lens, indptr, kv_indices, sglang.spec_blocks(at, None))
        starts = _uniform(at, qo_indptr)
        sglang.aiter_unified(at, rows, lens, table[:batch])
        return {"page_table": table, "cu_seqlens_q": starts}

    return verify if at.drafts else decode
