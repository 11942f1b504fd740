"""Loads a row's bounds, cut to what may be read and written, and reports what was cut."""

import triton
import triton.language as tl

from .args import (
    BAD_LENGTH,
    BAD_QUERY,
    BAD_ROW,
    BAD_START,
    LENGTH_MAX,
    SLOTS,
    TABLE,
    TRUNCATED,
    UNALIGNED_START,
    Row,
)
from .integers import clip, is_index, quotient, quotient_of, remainder
from .shards import local_length, whole_length


@triton.jit
def load_word(ptr, stride, i, mask):
    """Loads an int32 (stride 1) or int64 (stride 2) as its low and high half, and the low half's sign.

    Without a stride it is an int32, as the kernel was compiled for; without a pointer, ``i`` itself.
    """
    if stride is None:
        low = i
        if ptr is not None:
            low = tl.load(ptr + i, mask=mask, other=0)
        sign = low >> 31
        high = sign
    else:
        low = tl.load(ptr + i * stride, mask=mask, other=0)
        high = tl.load(ptr + (i * stride + 1), mask=mask & (stride == 2), other=0)
        sign = low >> 31
        high = tl.where(stride == 2, high, sign)
    return low, high, sign


@triton.jit
def load_int(ptr, stride, i, mask):
    """Loads a length or position of either width, clipped so that sums of four fit in int32."""
    low, high, sign = load_word(ptr, stride, i, mask)
    saturated = tl.where(high < 0, -LENGTH_MAX, LENGTH_MAX)
    return clip(tl.where(high == sign, low, saturated), -LENGTH_MAX, LENGTH_MAX)


@triton.jit
def _load_difference(ptr, b, mask):
    """Returns what row b has of prefix sums, clipped like a length."""
    begin = tl.load(ptr + b, mask=mask, other=0).to(tl.int64)
    end = tl.load(ptr + b + 1, mask=mask, other=0).to(tl.int64)
    begin, end = clip(begin, -LENGTH_MAX, LENGTH_MAX), clip(end, -LENGTH_MAX, LENGTH_MAX)
    return clip(end - begin, -LENGTH_MAX, LENGTH_MAX).to(tl.int32)


@triton.jit
def _given_tokens(b, mask, req, view):
    """Returns the index of row b's first given position, how many the row has, and why some were cut.

    The prefix sums are an input, and not trusted. A row that begins before 0 has none.
    """
    begin = tl.load(view.indptr_ptr + b, mask=mask, other=0).to(tl.int64)
    end = tl.load(view.indptr_ptr + b + 1, mask=mask, other=0).to(tl.int64)
    room = tl.minimum(view.capacity, req.positions_len)
    reason = tl.where((begin < 0) | (end < begin), BAD_QUERY, tl.where(end > room, TRUNCATED, 0))
    first = clip(begin, 0, room).to(tl.int32)
    query = tl.maximum(clip(end, 0, room).to(tl.int32) - first, 0)
    query = tl.where(begin < 0, 0, query)
    return first, query, reason


@triton.jit
def _branch(branch, prefix, C: tl.constexpr):
    """Returns the first position that is a branch's own, and how far behind it is in the source row.

    At larger pages each branch begins with its own copy of the prefix's last, partial page.
    """
    tokens = remainder(prefix, C.DRAFT_PAGE_SIZE) + C.DRAFT_STEPS
    pages = quotient(tokens + C.DRAFT_PAGE_SIZE - 1, C.DRAFT_PAGE_SIZE)
    return quotient(prefix, C.PAGE_SIZE) * C.PAGE_SIZE, branch * pages * C.DRAFT_PAGE_SIZE


@triton.jit
def load_row(b, mask, req, view, policy, C: tl.constexpr):
    """Loads row b of the batch (a scalar or a vector) as a `Row`."""
    request = b
    if C.TOPK > 0:
        request = b // C.TOPK  # with `quotient` ptxas takes 96 registers instead of 72
    row, high, _ = load_word(req.rows_ptr, req.rows_stride, request, mask)
    row_exists = mask & (high == 0) & is_index(row, req.src_rows)
    length = load_int(req.lens_ptr, req.lens_stride, request, mask)
    given_length = length
    delta = length * 0 + req.delta
    if req.delta_ptr is not None:
        delta += load_int(req.delta_ptr, req.delta_stride, request, mask)
    length += delta
    given_local = length
    if C.LENS_ARE_LOCAL:
        before = length * 0
        if view.start_ptr is not None:
            before = load_int(view.start_ptr, view.start_stride, request, mask)
        length = whole_length(length, tl.maximum(before, 0), req, C)
    prefix = tl.maximum(length, 0)
    branch_start, branch_shift = length * 0, length * 0
    if C.TOPK > 0:
        length += view.draft_step
        branch_start, branch_shift = _branch(b - request * C.TOPK, prefix, C)
    query_len = length * 0
    if req.query_ptr is not None:
        query_len += load_int(req.query_ptr, req.query_stride, b, mask)
        length += query_len * req.query_sign
    elif req.query_start_ptr is not None:
        query_len += _load_difference(req.query_start_ptr, b, mask)
    elif C.FORM == SLOTS and req.query_len is not None:
        query_len += req.query_len
    query = tl.maximum(query_len, 0)
    sink_items = length * 0
    end = tl.where(row_exists, clip(length, 0, req.src_tokens), 0)
    if C.TOPK > 0:  # of a branch that the source has no room for, the prefix's whole pages are left
        fits = length.to(tl.int64) + branch_shift <= req.src_tokens
        end = tl.where(fits, end, tl.minimum(end, branch_start))
    newest = query
    if req.query_ptr is None and req.query_start_ptr is None and req.query_len is not None:
        newest += req.query_len
    past = clip(tl.minimum(given_length, length - newest), 0, end)
    # an empty row's index is not checked: engines leave stale values there
    reason = tl.where(end == length, 0, tl.where(row_exists | (length <= 0), BAD_LENGTH, BAD_ROW))
    if C.FORM == SLOTS:
        if C.INDPTR_IS_INPUT:
            is_padding = (row == -1) & (high == -1)
            first, query, why = _given_tokens(b, mask, req, view)
            row = tl.where(row_exists, row, tl.where(is_padding, -1, 0))
            reason = tl.where((reason == 0) | is_padding, why, reason)
            if req.max_position is not None:
                end = tl.minimum(end, req.max_position)
        else:
            first = length - query
            bad = (query_len < 0) | (query_len > length)
            if req.query_ptr is None:  # as many in every row: one of length 0 is padding
                bad = bad & (length != 0)
            reason = tl.where((reason == 0) & bad, BAD_QUERY, reason)
        start = first
        items = query
        kv_len = local_length(end, req, C)
    else:
        start = length * 0
        if view.window is not None:
            window = view.window
            if (req.query_ptr is not None or req.query_start_ptr is not None) and not C.WINDOW_IS_PREFIX_ONLY:
                # the window begins with what the first query token sees; if the query tokens are subtracted
                # from the length, the delta adds them back
                span = query
                if req.query_ptr is not None:
                    span = tl.where(req.query_sign < 0, tl.maximum(query, delta), query)
                window += tl.maximum(span, 1) - 1
            start = tl.maximum(end - window, 0)
            if C.TOPK > 0 and C.WINDOW_IS_PREFIX_ONLY:
                start = tl.minimum(tl.maximum(prefix - window, 0), end)
        if view.start_ptr is not None:
            kv_start = load_int(view.start_ptr, view.start_stride, request, mask)
            bad = (kv_start < 0) | (kv_start > tl.maximum(length, 0))
            reason = tl.where((reason == 0) & bad, BAD_START, reason)
            is_cut = kv_start > start
            start = clip(kv_start, start, end)
        if req.query_ptr is not None or req.query_start_ptr is not None:
            reason = tl.where((reason == 0) & (query_len < 0), BAD_QUERY, reason)
        start, end = local_length(start, req, C), local_length(end, req, C)
        if C.LENS_ARE_LOCAL and view.start_ptr is None and req.query_ptr is None and C.TOPK == 0:
            # not by way of the whole row, which no output needs then
            end = tl.where(row_exists, clip(given_local, 0, local_length(req.src_tokens, req, C)), 0)
        first = quotient(start, C.PAGE_SIZE) * C.PAGE_SIZE
        if C.WINDOW_IS_ABSOLUTE:
            first = first * 0
        elif C.HAS_SINKS:
            sink_end = tl.minimum(local_length(length * 0 + view.sink, req, C), end)
            is_apart = first > sink_end  # otherwise the sinks and the window are one range
            first, start = tl.where(is_apart, first, 0), tl.where(is_apart, start, 0)
            sink_items = tl.where(is_apart, quotient(sink_end, C.PAGE_SIZE), 0)
        kv_len = tl.where(start < end, end - first, 0) + sink_items * C.PAGE_SIZE
        if policy.min_len is not None:
            kv_len = tl.maximum(kv_len, policy.min_len)
        items = quotient(kv_len + C.PAGE_SIZE - 1, C.PAGE_SIZE)
        if C.CLAMPS_TAIL:
            row = tl.where(row_exists, row, -1)
            items = tl.maximum(_load_difference(view.indptr_ptr, b, mask), 0)
        if C.FORM == TABLE and C.WRITES_IDS:
            reason = tl.where((reason == 0) & (items > view.capacity), TRUNCATED, reason)
            items = tl.minimum(items, view.capacity)
            kv_len = tl.minimum(kv_len, items * C.PAGE_SIZE)
        if C.STARTS_ARE_ALIGNED and view.start_ptr is not None:
            unaligned = is_cut & (start < end) & (start != first)
            reason = tl.where((reason == 0) & unaligned, UNALIGNED_START, reason)
    if C.FORM == SLOTS or C.CLAMPS_TAIL or policy.min_len is not None:  # else what is no row has none
        items = tl.where(mask, items, 0)
    return Row(
        row, first, start, end, items, sink_items, kv_len, query, reason, branch_start, branch_shift, past,
        length * 0,
    )  # fmt: skip


@triton.jit
def padded_end(items, view, policy):
    """Where the padding of a row or a stream ends: at a multiple of ``pad_multiple``, at least one of it."""
    # a 32-bit division: in 64 bits it is a function of a hundred instructions before the first store
    multiples = quotient_of(tl.maximum(items, 1).to(tl.int32) - 1, policy.pad_multiple) + 1
    return tl.minimum(multiples.to(tl.int64) * policy.pad_multiple, view.capacity)


@triton.jit
def written_entries(b, items, known, req, view, policy, C: tl.constexpr):
    """Entries of a table's row behind its known ones that are written, padding included."""
    if C.HAS_PADDING:  # an empty row has padding, a row past the batch has none
        items = tl.where(b < req.batch, padded_end(items + known, view, policy) - known, 0).to(tl.int32)
    return items


@triton.jit
def row_tiles(b, items, known, req, view, policy, C: tl.constexpr):
    """Tiles of a row behind its known entries, padding included."""
    if C.FORM == TABLE:
        items = written_entries(b, items, known, req, view, policy, C)
    items = tl.minimum(items, view.capacity)
    return quotient(items + C.NUM_PAGE_PER_BLOCK - 1, C.NUM_PAGE_PER_BLOCK)


@triton.jit
def tiles_left(b, items, req, view, policy, C: tl.constexpr):
    """Leftover tiles of a row: those that are not its own tiles."""
    return tl.maximum(row_tiles(b, items, items * 0, req, view, policy, C) - policy.own_tiles, 0)
