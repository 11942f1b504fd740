"""THE Triton source: page tables, CSR indices and slot mappings in one launch, on every vendor.

One formula, for a token position ``t`` of the source row ``r``::

    token = source[r, t // S] * S + t % S        where token t lies in the KV cache
    page  = token // P                           what the backend wants

The kernel never asks what it runs on: page sizes, form and block shapes reach it in one constexpr
(`Config`), all else as unspecialised runtime integers, so that nothing compiles while serving.
``rows.py`` holds what is known of a row, ``tiles.py`` what is done to a block of it,
``scheduler.py`` who writes what long rows have left; ``xkv.reference`` says the same in plain torch;
``xkv.params`` says what each argument means.

Work is cut into blocks of NUM_PAGE_PER_BLOCK items of one row. The direct pass writes the first blocks of
every row, by programs of its own. BALANCE: what longer rows have left is counted over the batch while the
direct reads are on their way, and dealt out over all programs, so that cost follows the live tokens, however
skewed.
"""

import triton
import triton.language as tl

from .args import CSR, CUT, INT32_MAX, OVERFLOW, TABLE, Config, Policy, Request, View
from .rows import before, clip, describe, fill_end, report, report_least, row_blocks
from .scheduler import run_of, seek, survey
from .tiles import load_block, store_block

__all__ = ["Config", "xkv_build"]


@triton.jit
def _write_blocks(p, programs, req, view, policy, SUMS: tl.constexpr, C: tl.constexpr):
    """All of the ids: a program's own row first, then its share of what other rows have left.

    The next block is looked for and read before this one is written: one is always on its way.
    """
    STREAM: tl.constexpr = C.FORM != TABLE
    b = tl.program_id(0)
    block = tl.program_id(1)
    if SUMS:
        # The first programs, which write the sums, have no row of their own but one past the batch, which
        # has no items: they began first, and then help out.
        b = tl.where(b == 0, req.batch, b - 1)
    mine = describe(b, b < req.batch, req, view, policy, C)
    row, first, end, items = mine.source, mine.first, mine.end, mine.items
    entry = load_block(block, row, first, end, items, req, view, policy, C)
    stop = tl.minimum(row_blocks(b, items, req, view, policy, C), policy.direct)
    step = tl.num_programs(1)
    u = p
    if C.WIDE:
        u = p.to(tl.int64)
    total = u * 0
    end_u = total
    if C.BALANCE and STREAM:
        total, base = survey(b, total, req, view, policy, C)
        u, end_u = run_of(p, programs, total)
    else:
        base = before(b, req, view, policy, C)
    worst = tl.arange(0, C.NUM_PAGE_PER_BLOCK) * 0 + INT32_MAX
    again = b <= req.batch
    more = again
    while more:
        next_b, next_block, next_base = b, block + step, base
        next_first, next_end, next_items, next_entry = first, end, items, entry
        more = next_block < stop
        if C.BALANCE and not STREAM:
            if (next_block >= stop) & again:
                next_b, next_block, next_base, again = seek(u, programs, total, req, view, policy, C)
                u += programs
                more = next_b < req.batch
        if C.BALANCE and STREAM:
            if (next_block >= stop) & (u < end_u):
                next_b, next_block, next_base, _ = seek(u, programs, total, req, view, policy, C)
                more = next_b < req.batch
                found = describe(next_b, more, req, view, policy, C)
                row, next_first, next_end, next_items = found.source, found.first, found.end, found.items
                # its neighbours in the row are the program's too
                stop = row_blocks(next_b, next_items, req, view, policy, C)
                stop = tl.minimum(next_block + end_u - u, stop).to(tl.int32)
                step = 1
                u += tl.maximum(stop - next_block, 1)
        if more:
            if not STREAM:
                found = describe(next_b, more, req, view, policy, C)
                row, next_first, next_end, next_items = found.source, found.first, found.end, found.items
            next_entry = load_block(next_block, row, next_first, next_end, next_items, req, view, policy, C)
        worst = store_block(b, block, base, first, end, items, entry, worst, req, view, policy, C)
        b, block, base = next_b, next_block, next_base
        first, end, items, entry = next_first, next_end, next_items, next_entry
    if C.REPORT_ONCE and policy.status_ptr is not None:
        report_least(policy, worst)


@triton.jit
def _store_prefix_sum(ptr, i, upto, limit, mask, C: tl.constexpr):
    tl.store(ptr + i + 1, tl.minimum(upto, limit).to(tl.int32), mask=mask)
    if not C.SUMS_GIVEN:
        tl.store(ptr + i, i * 0, mask=i == 0)


@triton.jit
def _write_sums(p, programs, req, view, policy, C: tl.constexpr):
    """Lengths, prefix sums and reports; one program writes a chunk. Returns the stream's length."""
    STREAM: tl.constexpr = C.FORM != TABLE
    item_sum = req.batch.to(tl.int64) * 0
    kv_sum = item_sum
    query_sum = item_sum
    turn = p * C.BATCH_BLOCK
    # an empty batch has prefix sums too: [0]
    for chunk in range(0, tl.maximum(req.batch, 1), C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        mask = i < req.batch
        rows = describe(i, mask, req, view, policy, C)
        items = rows.items.to(tl.int64)
        kv_len = tl.where(mask, rows.kv_len, 0).to(tl.int64)
        query = tl.where(mask, rows.query, 0).to(tl.int64)
        if chunk == turn:
            turn += programs * C.BATCH_BLOCK
            report(policy, i, rows.reason, mask, C)
            kept = kv_len
            if STREAM:
                upto = item_sum + tl.cumsum(items, 0)
                report(policy, i, CUT + i * 0, mask & (items > 0) & (upto > view.capacity), C)
                if C.FORM == CSR:
                    room = clip(view.capacity - (upto - items), 0, items)
                    kept = tl.minimum(kv_len, room * C.PAGE_SIZE)
                if view.indptr_ptr is not None and not C.SUMS_GIVEN:
                    _store_prefix_sum(view.indptr_ptr, i, upto, view.capacity, mask, C)
            if view.seqlens_ptr is not None:
                tl.store(view.seqlens_ptr + i, kept.to(tl.int32), mask=mask)
            if view.last_ptr is not None:
                last = tl.where(kept > 0, (kept - 1) % C.PAGE_SIZE + 1, 0)
                last = tl.maximum(last, policy.min_last)
                tl.store(view.last_ptr + i, last.to(tl.int32), mask=mask)
            if view.offset_ptr is not None:
                offset = tl.where(rows.start < rows.end, rows.start - rows.first, 0)
                tl.store(view.offset_ptr + i, offset, mask=mask)
            if view.cu_k_ptr is not None:
                upto = kv_sum + tl.cumsum(kv_len, 0)
                report(policy, i, OVERFLOW + i * 0, mask & (upto > INT32_MAX), C)
                _store_prefix_sum(view.cu_k_ptr, i, upto, INT32_MAX, mask, C)
            if view.cu_q_ptr is not None:
                if req.query_ptr is None:
                    upto = (i + 1).to(tl.int64) * req.query_len
                else:
                    upto = query_sum + tl.cumsum(query, 0)
                report(policy, i, OVERFLOW + i * 0, mask & (upto > INT32_MAX), C)
                _store_prefix_sum(view.cu_q_ptr, i, upto, INT32_MAX, mask, C)
        if STREAM:
            item_sum += tl.sum(items, 0)
        if view.cu_k_ptr is not None:
            kv_sum += tl.sum(kv_len, 0)
        if view.cu_q_ptr is not None and req.query_ptr is not None:
            query_sum += tl.sum(query, 0)
    return item_sum


@triton.jit
def _build(req, view, policy, C: tl.constexpr):
    """One view, whole: lengths and prefix sums, the stream's tail, then the ids."""
    STREAM: tl.constexpr = C.FORM != TABLE
    SUMS: tl.constexpr = (
        view.seqlens_ptr is not None or view.cu_k_ptr is not None
        or (view.indptr_ptr is not None and not C.SUMS_GIVEN)
        or view.last_ptr is not None or view.offset_ptr is not None or view.cu_q_ptr is not None
        or policy.status_ptr is not None
    )  # fmt: skip
    programs = tl.num_programs(0) * tl.num_programs(1)
    p = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)

    if C.TAIL and STREAM:
        total = tl.minimum(_write_sums(p, programs, req, view, policy, C), view.capacity)
        end = fill_end(total, view, policy)
        for at in range(total + p * C.NUM_PAGE_PER_BLOCK, end, programs * C.NUM_PAGE_PER_BLOCK):
            o = at + tl.arange(0, C.NUM_PAGE_PER_BLOCK)
            fill = (o * 0 + policy.tail_fill).to(view.out_ptr.dtype.element_ty)
            tl.store(view.out_ptr + o, fill, mask=o < end)
    elif SUMS:
        if p * C.BATCH_BLOCK < tl.maximum(req.batch, 1):
            _write_sums(p, programs, req, view, policy, C)
    _write_blocks(p, programs, req, view, policy, SUMS, C)
    if C.OVERLAP and not C.EARLY:
        tl.extra.cuda.gdc_launch_dependents()


# No argument but the last is specialised: not on its value, a pointer's alignment or a storage's size
# (which on AMD would choose 32-bit offsets). What was compiled once serves every call.
@triton.jit(do_not_specialize=list(range(55)))
def xkv_build(
    src_ptr, src_stride: "i64", src_rows: "i32", src_tokens: "i32",
    rows_ptr, rows_step: "i32", lens_ptr, lens_step: "i32", batch: "i32",
    # integers without a type may be None, which an annotated one may not
    delta_ptr, delta_step, delta: "i32", query_ptr, query_step, query_sign, query_len,
    start_ptr, start_step, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
    out_ptr, out_stride: "i64", capacity: "i32",
    seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, offset_ptr, cu_q_ptr,
    # a second view of the same form and page size: the sliding window beside the whole
    start2_ptr, start_step2, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
    out2_ptr, out_stride2, capacity2,
    seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, offset2_ptr,
    min_len, min_last, tail, tail_fill, missing_id: "i32", expect_all, status_ptr,
    direct: "i32", C: tl.constexpr,
):  # fmt: skip
    """Grid (rows and one for the sums, programs a row, views). `params.Build` describes the arguments."""
    if C.OVERLAP:
        # launched before the kernel before it has ended: nothing is read or written until it has
        tl.extra.cuda.gdc_wait()
    if C.EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    req = Request(
        src_ptr, src_stride, src_rows, src_tokens, rows_ptr, rows_step, lens_ptr, lens_step, batch,
        delta_ptr, delta_step, delta, query_ptr, query_step, query_sign, query_len,
    )  # fmt: skip
    policy = Policy(min_len, min_last, tail, tail_fill, missing_id, expect_all, status_ptr, direct)
    view = View(
        start_ptr, start_step, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
        out_ptr, out_stride, capacity, seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, offset_ptr, cu_q_ptr,
    )  # fmt: skip
    if out2_ptr is None:
        _build(req, view, policy, C)
    elif tl.program_id(2) == 0:
        _build(req, view, policy, C)
    else:
        view2 = View(
            start2_ptr, start_step2, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
            out2_ptr, out_stride2, capacity2, seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, offset2_ptr,
            None,
        )  # fmt: skip
        _build(req, view2, policy, C)
