"""Writes everything but the ids: lengths, exclusive prefix sums over the batch, the status of each row."""

import triton
import triton.language as tl

from .args import CSR, INT32_MAX, OVERFLOW, TABLE, TRUNCATED
from .extension import store_records
from .integers import clip, remainder
from .reports import report
from .rows import load_row


@triton.jit
def _store_prefix_sum(ptr, i, inclusive_sum, limit, mask, C: tl.constexpr):
    tl.store(ptr + i + 1, tl.minimum(inclusive_sum, limit).to(tl.int32), mask=mask)
    if not C.INDPTR_IS_INPUT:
        tl.store(ptr + i, i * 0, mask=i == 0)


@triton.jit
def write_sums(pid, num_programs, req, view, policy, C: tl.constexpr):
    """Writes lengths, prefix sums and the status of the rows. Returns the length of a stream with padding.

    Every program that calls this reads the lengths of the whole batch, a chunk of BATCH_BLOCK rows at a time,
    and writes the outputs of its own chunks: no program waits for another's sum.
    """
    STREAM: tl.constexpr = C.FORM != TABLE
    SUM: tl.constexpr = tl.int32 if C.SUMS_FIT else tl.int64
    item_sum = (req.batch * 0).to(SUM)
    kv_sum = item_sum
    query_sum = (req.batch * 0).to(tl.int64)
    own_chunk = pid * C.BATCH_BLOCK
    SUMS_QUERIES: tl.constexpr = view.cu_q_ptr is not None and (
        req.query_ptr is not None or req.query_start_ptr is not None
    )
    first_chunk = 0
    step = C.BATCH_BLOCK
    if not STREAM and view.cu_k_ptr is None and not SUMS_QUERIES:  # no row needs those before it
        first_chunk = own_chunk
        step = num_programs * C.BATCH_BLOCK
    # at least one iteration: the prefix sums of an empty batch are [0]
    for chunk in range(first_chunk, tl.maximum(req.batch, 1), step):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        mask = i < req.batch
        rows = load_row(i, mask, req, view, policy, C)
        items = rows.items.to(SUM)
        kv_len = tl.where(mask, rows.kv_len, 0).to(SUM)
        query = tl.where(mask, rows.query, 0).to(tl.int64)
        if chunk == own_chunk:
            own_chunk += num_programs * C.BATCH_BLOCK
            report(policy, i, rows.reason, mask, C)
            stored_len = kv_len
            if STREAM:
                inclusive_sum = item_sum + tl.cumsum(items, 0)
                if not C.INDPTR_IS_INPUT:
                    is_cut = mask & (items > 0) & (inclusive_sum > view.capacity)
                    report(policy, i, TRUNCATED + i * 0, is_cut, C)
                if C.FORM == CSR:
                    room = clip(view.capacity - (inclusive_sum - items), 0, items)
                    stored_len = tl.minimum(kv_len, room * C.PAGE_SIZE)
                if view.indptr_ptr is not None and not C.INDPTR_IS_INPUT:
                    _store_prefix_sum(view.indptr_ptr, i, inclusive_sum, view.capacity, mask, C)
            if view.seqlens_ptr is not None:
                tl.store(view.seqlens_ptr + i, stored_len.to(tl.int32), mask=mask)
            if view.last_ptr is not None:
                last = tl.where(stored_len > 0, remainder(stored_len - 1, C.PAGE_SIZE) + 1, 0)
                last = tl.maximum(last, policy.min_last)
                tl.store(view.last_ptr + i, last.to(tl.int32), mask=mask)
            if view.offset_ptr is not None:
                offset = tl.where(rows.start < rows.end, rows.start - rows.first, 0)
                tl.store(view.offset_ptr + i, offset, mask=mask)
            if view.empty_ptr is not None:
                tl.store(view.empty_ptr + i, (rows.start >= rows.end).to(tl.int32), mask=mask)
            if view.record_ptr is not None and C.EXTENDS == 0:
                store_records(i, mask, rows, req, view, C)
                tl.store(view.record_ptr + i * 0, req.batch + i * 0, mask=i == 0)
            if view.cu_k_ptr is not None:
                inclusive_sum = kv_sum + tl.cumsum(kv_len, 0)
                if not C.SUMS_FIT:
                    report(policy, i, OVERFLOW + i * 0, mask & (inclusive_sum > INT32_MAX), C)
                _store_prefix_sum(view.cu_k_ptr, i, inclusive_sum, INT32_MAX, mask, C)
            if view.cu_q_ptr is not None:
                if SUMS_QUERIES:
                    inclusive_sum = query_sum + tl.cumsum(query, 0)
                else:
                    inclusive_sum = (i + 1).to(tl.int64) * req.query_len
                report(policy, i, OVERFLOW + i * 0, mask & (inclusive_sum > INT32_MAX), C)
                _store_prefix_sum(view.cu_q_ptr, i, inclusive_sum, INT32_MAX, mask, C)
        if STREAM and C.HAS_PADDING:  # the padding begins with what is returned
            item_sum += tl.sum(items, 0)
        if chunk + step < req.batch:  # a sum over the chunk takes as long as loading it, so only for another
            if STREAM and not C.HAS_PADDING:
                item_sum += tl.sum(items, 0)
            if view.cu_k_ptr is not None:
                kv_sum += tl.sum(kv_len, 0)
            if SUMS_QUERIES:
                query_sum += tl.sum(query, 0)
    return item_sum.to(tl.int64)
