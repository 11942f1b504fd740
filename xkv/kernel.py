"""THE Triton source: page tables, CSR indices and slot mappings in one launch, on every vendor.

One formula, for a token position ``t`` of the source row ``r``::

    token = source[r, t // S] * S + t % S        where token t lies in the KV cache
    page  = token // P                           what the backend wants

The kernel never asks what it runs on: page sizes, form and block shapes reach it in one constexpr
(`Config`), all else as unspecialised runtime integers, so that nothing compiles while serving.
``reference.py`` says the same in plain torch; ``build.py`` says what each argument means.

Work is cut into blocks of NUM_PAGE_PER_BLOCK items of one row. DIRECT: the programs write the first
blocks of all rows, one program a block, with no look at the other rows. BALANCE: what longer rows have
left is dealt out over all programs in turn, so that cost follows the live tokens, however skewed.
"""

import triton
import triton.language as tl

from xkv.kernel_args import (
    BAD_ID,
    BAD_LENGTH,
    BAD_MAP,
    BAD_QUERY,
    BAD_ROW,
    BAD_START,
    CSR,
    CUT,
    ID_MAX,
    INT32_MAX,
    LENGTH_MAX,
    OVERFLOW,
    SLOTS,
    TABLE,
    Config,
    Policy,
    Request,
    View,
)  # fmt: skip

__all__ = ["Config", "xkv_build"]


@triton.jit
def _clip(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _load_int(ptr, i, mask):
    """A length or position of either width, cut so that sums of four fit in int32."""
    return _clip(tl.load(ptr + i, mask=mask, other=0), -LENGTH_MAX, LENGTH_MAX).to(tl.int32)


@triton.jit
def _report(policy, b, reason, mask):
    """Keeps the smallest (row, reason): deterministic, and free where nothing is wrong."""
    if policy.status_ptr is not None:
        word = b.to(tl.int64) * 256 + reason
        tl.atomic_min(policy.status_ptr + word * 0, word, mask=mask & (reason > 0), sem="relaxed")


@triton.jit
def _describe(b, mask, req, view, policy, C: tl.constexpr):
    """Row b of the batch (a scalar or a vector), cut to what may be read and, in tables, written.

    Returns the source row, the first position, the end, the items, the length that the backend sees,
    the query length, and why it had to be cut (0: it was not).
    """
    row = tl.load(req.rows_ptr + b, mask=mask, other=0).to(tl.int64)
    length = _load_int(req.lens_ptr, b, mask) + req.delta
    if req.delta_ptr is not None:
        length += _load_int(req.delta_ptr, b, mask)
    asked = length * 0
    if req.query_ptr is not None:
        asked += _load_int(req.query_ptr, b, mask)
        length += asked * req.query_sign
    query = tl.maximum(asked, 0)
    known = (row >= 0) & (row < req.src_rows)
    end = tl.where(known, _clip(length, 0, req.src_tokens), 0)
    # an empty row's index is never looked at: engines leave anything there
    reason = tl.where(end == length, 0, tl.where(known | (length <= 0), BAD_LENGTH, BAD_ROW))
    if C.FORM == SLOTS:
        first = length - query
        items = query
        kv_len = end
        reason = tl.where((reason == 0) & ((asked < 0) | (asked > length)), BAD_QUERY, reason)
    else:
        start = length * 0
        if view.window is not None:
            start = tl.maximum(end - view.window, 0)
        if view.start_ptr is not None:
            wanted = _load_int(view.start_ptr, b, mask)
            bad = (wanted < 0) | (wanted > tl.maximum(length, 0))
            reason = tl.where((reason == 0) & bad, BAD_START, reason)
            start = _clip(wanted, start, end)
        first = start // C.PAGE_SIZE * C.PAGE_SIZE
        kv_len = tl.where(start < end, end - first, 0)
        if policy.min_len is not None:
            kv_len = tl.maximum(kv_len, policy.min_len)
        items = (kv_len + C.PAGE_SIZE - 1) // C.PAGE_SIZE
        if C.FORM == TABLE:
            reason = tl.where((reason == 0) & (items > view.capacity), CUT, reason)
            items = tl.minimum(items, view.capacity)
            kv_len = tl.minimum(kv_len, items * C.PAGE_SIZE)
    return row, first, end, tl.where(mask, items, 0), kv_len, query, reason


@triton.jit
def _written(items, view, policy):
    """How far a row or a stream is written: to the end of its tile, and at least one tile."""
    tiles = (tl.maximum(items.to(tl.int64), 1) + policy.tail - 1) // policy.tail
    return tl.minimum(tiles * policy.tail, view.capacity)


@triton.jit
def _left(items, mask, view, policy, C: tl.constexpr):
    """Blocks of a row that the direct pass leaves."""
    if C.TAIL and C.FORM == TABLE:
        items = _written(items, view, policy).to(tl.int32)
    items = tl.minimum(items, view.capacity)
    blocks = (items + C.NUM_PAGE_PER_BLOCK - 1) // C.NUM_PAGE_PER_BLOCK
    if C.DIRECT:
        blocks = tl.maximum(blocks - tl.num_programs(1), 0)
    return tl.where(mask, blocks, 0)


@triton.jit
def _translate(token, have, map_ptr, map_len, PAGE: tl.constexpr):
    """Token -> map[token // PAGE] * PAGE + token % PAGE; which were found, which lie outside."""
    page = token // PAGE
    inside = have & (page < map_len)
    target = tl.load(map_ptr + page, mask=inside, other=-1).to(tl.int64)
    found = inside & (target >= 0) & (target < ID_MAX)
    return tl.where(found, target, 0) * PAGE + token % PAGE, found, have & (page >= map_len)


@triton.jit
def _emit(b, block, base, described, req, view, policy, C: tl.constexpr):
    """Writes one block of row b; ``base`` counts the items of the rows before it in the stream."""
    row, first, end, items, _, _, _ = described
    done = block * C.NUM_PAGE_PER_BLOCK
    if C.FORM == TABLE:
        out_row = view.out_ptr + b * view.out_stride.to(tl.int64)
        written = _written(items, view, policy).to(tl.int32) if C.TAIL else items
    else:
        out_row = view.out_ptr + base
        items = _clip(view.capacity - base, 0, items).to(tl.int32)
        written = items
    # Scalars first: what is left to the vectors is a compare, a load, a select and a store an item.
    j = tl.arange(0, C.NUM_PAGE_PER_BLOCK)
    at = first + done * C.PAGE_SIZE
    live = j < items - done
    EXACT: tl.constexpr = C.FORM != SLOTS and policy.min_len is None
    if not EXACT:  # items may stand for tokens that the row does not have
        live = live & (at + j * C.PAGE_SIZE >= 0) & (at + j * C.PAGE_SIZE < end)
    src_row = req.src_ptr + row * req.src_stride
    ALIGNED: tl.constexpr = C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0
    if ALIGNED:
        source = src_row + at // C.SOURCE_PAGE_SIZE + j * (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)
    else:
        source = src_row + (at + j * C.PAGE_SIZE) // C.SOURCE_PAGE_SIZE
    if EXACT and not C.TAIL:
        entry = tl.load(source, mask=live)
    else:
        entry = tl.load(source, mask=live, other=-1)
    have = entry >= 0
    outside = j < 0
    if ALIGNED and view.token_map_ptr is None and view.page_map_ptr is None:
        page = entry // (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)  # the formula, no wider than an id
    else:
        have = have & live & (entry.to(tl.int64) < ID_MAX)
        token = tl.where(have, entry, 0).to(tl.int64) * C.SOURCE_PAGE_SIZE
        token += (at + j * C.PAGE_SIZE) % C.SOURCE_PAGE_SIZE
        if view.token_map_ptr is not None:
            token, have, lost = _translate(token, have, view.token_map_ptr, view.token_map_len, 1)
            outside = outside | lost
        if view.page_map_ptr is not None:
            token, have, lost = _translate(
                token, have, view.page_map_ptr, view.page_map_len, C.MAP_PAGE_SIZE
            )
            outside = outside | lost
        page = token // C.PAGE_SIZE
    if page.dtype == tl.int64 and view.out_ptr.dtype.element_ty == tl.int32:
        have = have & (page <= INT32_MAX)
    if policy.status_ptr is not None:
        bad = live & ~have & (outside | (policy.expect_all != 0))
        _report(policy, b + j * 0, tl.where(outside, BAD_MAP, BAD_ID), bad)
    stand_in = policy.missing_id
    if C.TAIL:
        stand_in = tl.where(j < items - done, stand_in, policy.tail_fill)
    value = tl.where(have, page, stand_in.to(page.dtype)).to(view.out_ptr.dtype.element_ty)
    tl.store(out_row + done + j, value, mask=j < written - done)


@triton.jit
def _before(b, req, view, policy, C: tl.constexpr):
    """Items of all rows before b: where row b begins in the stream."""
    total = req.batch.to(tl.int64) * 0
    for chunk in range(0, b, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        _, _, _, items, _, _, _ = _describe(i, i < b, req, view, policy, C)
        total += tl.sum(items.to(tl.int64), 0)
    return total


@triton.jit
def _balance(p, programs, req, view, policy, C: tl.constexpr):
    """The blocks that the direct pass leaves, counted over the batch: block u falls to u % programs."""
    seen = req.batch * 0
    if C.WIDE:
        seen = seen.to(tl.int64)
    u = p + seen
    items_seen = req.batch.to(tl.int64) * 0
    for chunk in range(0, req.batch, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        mask = i < req.batch
        _, _, _, items, _, _, _ = _describe(i, mask, req, view, policy, C)
        left = _left(items, mask, view, policy, C) + seen * 0  # as wide as their sum
        upto = seen
        seen += tl.sum(left, 0)
        if u < seen:
            sums = upto + tl.cumsum(left, 0)
            while u < seen:
                passed = sums <= u
                b = chunk + tl.sum(passed.to(tl.int32), 0)
                block = (u - tl.max(tl.where(passed, sums, upto), 0)).to(tl.int32)
                if C.DIRECT:
                    block += tl.num_programs(1)
                base = items_seen
                if C.FORM != TABLE:
                    base += tl.sum(tl.where(passed, items, 0).to(tl.int64), 0)
                described = _describe(b, b < req.batch, req, view, policy, C)
                _emit(b, block, base, described, req, view, policy, C)
                u += programs
        if C.FORM != TABLE:
            items_seen += tl.sum(items.to(tl.int64), 0)


@triton.jit
def _store_prefix_sum(ptr, i, upto, limit, mask):
    tl.store(ptr + i + 1, tl.minimum(upto, limit).to(tl.int32), mask=mask)
    tl.store(ptr + i, i * 0, mask=i == 0)


@triton.jit
def _write_sums(p, programs, req, view, policy, C: tl.constexpr):
    """Lengths, prefix sums and reports; one program writes a chunk. Returns the stream's length."""
    STREAM: tl.constexpr = C.FORM != TABLE
    item_sum = req.batch.to(tl.int64) * 0
    kv_sum = item_sum
    query_sum = item_sum
    # an empty batch has prefix sums too: [0]
    for chunk in range(0, tl.maximum(req.batch, 1), C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        mask = i < req.batch
        _, _, _, items, kv_len, query, reason = _describe(i, mask, req, view, policy, C)
        items = items.to(tl.int64)
        kv_len = tl.where(mask, kv_len, 0).to(tl.int64)
        query = tl.where(mask, query, 0).to(tl.int64)
        if (chunk // C.BATCH_BLOCK) % programs == p:
            _report(policy, i, reason, mask)
            kept = kv_len
            if STREAM:
                upto = item_sum + tl.cumsum(items, 0)
                _report(policy, i, CUT + i * 0, mask & (items > 0) & (upto > view.capacity))
                if C.FORM == CSR:
                    room = _clip(view.capacity - (upto - items), 0, items)
                    kept = tl.minimum(kv_len, room * C.PAGE_SIZE)
                if view.indptr_ptr is not None:
                    _store_prefix_sum(view.indptr_ptr, i, upto, view.capacity, mask)
            if view.seqlens_ptr is not None:
                tl.store(view.seqlens_ptr + i, kept.to(tl.int32), mask=mask)
            if view.last_ptr is not None:
                last = tl.where(kept > 0, (kept - 1) % C.PAGE_SIZE + 1, 0)
                last = tl.maximum(last, policy.min_last)
                tl.store(view.last_ptr + i, last.to(tl.int32), mask=mask)
            if view.cu_k_ptr is not None:
                upto = kv_sum + tl.cumsum(kv_len, 0)
                _report(policy, i, OVERFLOW + i * 0, mask & (upto > INT32_MAX))
                _store_prefix_sum(view.cu_k_ptr, i, upto, INT32_MAX, mask)
            if view.cu_q_ptr is not None:
                if req.query_ptr is None:
                    upto = (i + 1).to(tl.int64) * req.query_len
                else:
                    upto = query_sum + tl.cumsum(query, 0)
                _report(policy, i, OVERFLOW + i * 0, mask & (upto > INT32_MAX))
                _store_prefix_sum(view.cu_q_ptr, i, upto, INT32_MAX, mask)
        if STREAM:
            item_sum += tl.sum(items, 0)
        if view.cu_k_ptr is not None:
            kv_sum += tl.sum(kv_len, 0)
        if view.cu_q_ptr is not None and req.query_ptr is not None:
            query_sum += tl.sum(query, 0)
    return item_sum


@triton.jit
def _build(req, view, policy, C: tl.constexpr):
    """One view, whole: direct blocks, what they leave, then lengths and prefix sums, the tail."""
    STREAM: tl.constexpr = C.FORM != TABLE
    SUMS: tl.constexpr = (
        view.seqlens_ptr is not None or view.cu_k_ptr is not None or view.indptr_ptr is not None
        or view.last_ptr is not None or view.cu_q_ptr is not None or policy.status_ptr is not None
    )  # fmt: skip
    programs = tl.num_programs(0) * tl.num_programs(1)
    p = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)

    if C.DIRECT:
        for b in range(tl.program_id(0), req.batch, tl.num_programs(0)):
            base = req.batch.to(tl.int64) * 0
            if STREAM:
                base = _before(b, req, view, policy, C)
            described = _describe(b, True, req, view, policy, C)
            _emit(b, tl.program_id(1), base, described, req, view, policy, C)
    if C.BALANCE:
        _balance(p, programs, req, view, policy, C)

    # the last programs have the least to do above: let them write the sums
    last = programs - 1 - p
    if C.TAIL and STREAM:
        total = tl.minimum(_write_sums(last, programs, req, view, policy, C), view.capacity)
        end = _written(total, view, policy)
        for at in range(total + p * C.NUM_PAGE_PER_BLOCK, end, programs * C.NUM_PAGE_PER_BLOCK):
            o = at + tl.arange(0, C.NUM_PAGE_PER_BLOCK)
            fill = (o * 0 + policy.tail_fill).to(view.out_ptr.dtype.element_ty)
            tl.store(view.out_ptr + o, fill, mask=o < end)
    elif SUMS:
        if last * C.BATCH_BLOCK < tl.maximum(req.batch, 1):
            _write_sums(last, programs, req, view, policy, C)


# No argument but the last is specialised: not on its value, a pointer's alignment or a storage's size
# (which on AMD would choose 32-bit offsets). What was compiled once serves every call.
@triton.jit(do_not_specialize=list(range(46)))
def xkv_build(
    src_ptr, src_stride: "i64", src_rows: "i64", src_tokens: "i32",
    rows_ptr, lens_ptr, batch: "i32", delta_ptr, delta: "i32",
    # integers without a type may be None, which an annotated one may not
    query_ptr, query_sign, query_len,
    start_ptr, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
    out_ptr, out_stride: "i64", capacity: "i32",
    seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, cu_q_ptr,
    # a second view of the same form and page size: the sliding window beside the whole
    start2_ptr, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
    out2_ptr, out_stride2, capacity2,
    seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr,
    min_len, min_last, tail, tail_fill, missing_id: "i32", expect_all, status_ptr, C: tl.constexpr,
):  # fmt: skip
    """Grid (programs a block, direct blocks a row, views). ``build.Build`` describes the arguments."""
    req = Request(
        src_ptr, src_stride, src_rows, src_tokens, rows_ptr, lens_ptr, batch, delta_ptr, delta,
        query_ptr, query_sign, query_len,
    )  # fmt: skip
    policy = Policy(min_len, min_last, tail, tail_fill, missing_id, expect_all, status_ptr)
    if tl.program_id(2) == 0:
        view = View(
            start_ptr, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
            out_ptr, out_stride, capacity, seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, cu_q_ptr,
        )  # fmt: skip
        _build(req, view, policy, C)
    elif out2_ptr is not None:
        view2 = View(
            start2_ptr, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
            out2_ptr, out_stride2, capacity2, seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, None,
        )  # fmt: skip
        _build(req, view2, policy, C)
