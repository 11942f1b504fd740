"""The kernel's rows: what of a row may be read and written, and what of it is reported."""

import triton
import triton.language as tl

from .args import (
    BAD_LENGTH,
    BAD_QUERY,
    BAD_ROW,
    BAD_START,
    INT32_MAX,
    LENGTH_MAX,
    SLOTS,
    TABLE,
    TRUNCATED,
    UNALIGNED_START,
    Row,
)


@triton.jit
def clip(x, low, high):
    """X, cut to [low, high]."""
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _load_word(ptr, step, i, mask):
    """An int32 (step 1) or the low half of an int64 (step 2), and the high half; one kernel for both."""
    low = tl.load(ptr + i * step, mask=mask, other=0)
    high = tl.load(ptr + (i * step + 1), mask=mask & (step == 2), other=0)
    sign = low >> 31
    return low, tl.where(step == 2, high, sign), sign


@triton.jit
def _load_int(ptr, step, i, mask):
    """A length or position of either width, cut so that sums of four fit in int32."""
    low, high, sign = _load_word(ptr, step, i, mask)
    far = tl.where(high < 0, -LENGTH_MAX, LENGTH_MAX)
    return clip(tl.where(high == sign, low, far), -LENGTH_MAX, LENGTH_MAX)


@triton.jit
def report(policy, b, reason, mask, C: tl.constexpr):
    """Keeps the smallest (row, reason): deterministic, and free where nothing is wrong."""
    if policy.status_ptr is not None:
        mask = mask & (reason > 0)
        word = b * 256 + reason  # less than 2**25, as batches are less than 2**17
        if C.REDUCE_STATUS:
            report_first(policy, tl.where(mask, word, INT32_MAX))
        else:
            tl.atomic_min(policy.status_ptr + word * 0, word.to(tl.int64), mask=mask, sem="relaxed")


@triton.jit
def report_first(policy, words):
    """One atomic for all lanes: with one each, AMD's back end makes a reduction of its own of them."""
    least = tl.min(words, 0)
    tl.atomic_min(policy.status_ptr, least.to(tl.int64), mask=least < INT32_MAX, sem="relaxed")


@triton.jit
def load_row(b, mask, req, view, policy, C: tl.constexpr, TRUSTED: tl.constexpr = False):
    """The `Row` b of the batch (a scalar or a vector).

    TRUSTED: the source row is not looked at, and what has none keeps its items.
    """
    row = b * 0
    known = row == 0
    if not TRUSTED:
        row, high, _ = _load_word(req.rows_ptr, req.rows_step, b, mask)
        known = (high == 0) & (row >= 0) & (row < req.src_rows)
    length = _load_int(req.lens_ptr, req.lens_step, b, mask)
    delta = length * 0 + req.delta
    if req.delta_ptr is not None:
        delta += _load_int(req.delta_ptr, req.delta_step, b, mask)
    length += delta
    asked = length * 0
    if req.query_ptr is not None:
        asked += _load_int(req.query_ptr, req.query_step, b, mask)
        length += asked * req.query_sign
    query = tl.maximum(asked, 0)
    end = tl.where(known, clip(length, 0, req.src_tokens), 0)
    # an empty row's index is never looked at: engines leave anything there
    reason = tl.where(end == length, 0, tl.where(known | (length <= 0), BAD_LENGTH, BAD_ROW))
    if C.FORM == SLOTS:
        first = length - query
        start = first
        items = query
        kv_len = end
        reason = tl.where((reason == 0) & ((asked < 0) | (asked > length)), BAD_QUERY, reason)
    else:
        start = length * 0
        if view.window is not None:
            window = view.window
            if req.query_ptr is not None and not C.WINDOW_IS_PREFIX_ONLY:
                # from what the first query token sees on; where the query tokens are taken off the length,
                # the delta stands for them
                span = tl.where(req.query_sign < 0, tl.maximum(query, delta), query)
                window += tl.maximum(span, 1) - 1
            start = tl.maximum(end - window, 0)
        if view.start_ptr is not None:
            wanted = _load_int(view.start_ptr, view.start_step, b, mask)
            bad = (wanted < 0) | (wanted > tl.maximum(length, 0))
            reason = tl.where((reason == 0) & bad, BAD_START, reason)
            inside = (wanted > start) & (wanted < end) & (wanted % C.PAGE_SIZE != 0)
            start = clip(wanted, start, end)
        if req.query_ptr is not None:
            reason = tl.where((reason == 0) & (asked < 0), BAD_QUERY, reason)
        first = start // C.PAGE_SIZE * C.PAGE_SIZE
        kv_len = tl.where(start < end, end - first, 0)
        if policy.min_len is not None:
            kv_len = tl.maximum(kv_len, policy.min_len)
        items = (kv_len + C.PAGE_SIZE - 1) // C.PAGE_SIZE
        if C.FORM == TABLE:
            reason = tl.where((reason == 0) & (items > view.capacity), TRUNCATED, reason)
            items = tl.minimum(items, view.capacity)
            kv_len = tl.minimum(kv_len, items * C.PAGE_SIZE)
        if C.STARTS_ARE_ALIGNED and view.start_ptr is not None:
            reason = tl.where((reason == 0) & inside, UNALIGNED_START, reason)
    return Row(row, first, start, end, tl.where(mask, items, 0), kv_len, query, reason)


@triton.jit
def fill_end(items, view, policy):
    """How far a row or a stream is written: to the end of its tile, and at least one tile."""
    # a division in 32 bits: in 64 it is a function of a hundred instructions on the way to the first store
    tiles = (tl.maximum(items, 1).to(tl.int32) - 1) // policy.tail + 1
    return tl.minimum(tiles.to(tl.int64) * policy.tail, view.capacity)


@triton.jit
def written_entries(b, items, req, view, policy, C: tl.constexpr):
    """Entries of a table's row that are written, those of its tail's fill included."""
    if C.TAIL:  # an empty row has a tile to fill, a row past the batch has none
        items = tl.where(b < req.batch, fill_end(items, view, policy), 0).to(tl.int32)
    return items


@triton.jit
def row_tiles(b, items, req, view, policy, C: tl.constexpr):
    """Tiles of a row, those of its tail's fill included."""
    if C.FORM == TABLE:
        items = written_entries(b, items, req, view, policy, C)
    items = tl.minimum(items, view.capacity)
    return (items + C.NUM_PAGE_PER_BLOCK - 1) // C.NUM_PAGE_PER_BLOCK


@triton.jit
def tiles_left(b, items, req, view, policy, C: tl.constexpr):
    """Tiles of a row that its own programs leave."""
    return tl.maximum(row_tiles(b, items, req, view, policy, C) - policy.own_tiles, 0)


@triton.jit
def row_offset(b, req, view, policy, C: tl.constexpr):
    """Exclusive prefix sum of the items: where row b begins in the stream. 0 in tables."""
    total = req.batch.to(tl.int64) * 0
    if C.FORM != TABLE and C.INDPTR_IS_INPUT:
        total += tl.load(view.indptr_ptr + b, mask=b < req.batch, other=0)
    elif C.FORM != TABLE:
        for chunk in range(0, tl.minimum(b, req.batch), C.BATCH_BLOCK):
            i = chunk + tl.arange(0, C.BATCH_BLOCK)
            rows = load_row(i, i < tl.minimum(b, req.batch), req, view, policy, C)
            total += tl.sum(rows.items.to(tl.int64), 0)
    return total
