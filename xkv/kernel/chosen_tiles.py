"""Loads a tile of a query token's chosen positions, and translates and stores their ids."""

import triton
import triton.language as tl

from .args import BAD_ID, BAD_LENGTH, BAD_ROW, ID_MAX, INT32_MAX
from .integers import clip
from .rows import load_int, load_word


@triton.jit
def _find_request(token, c, C: tl.constexpr):
    """Returns the request of a query token, -1 for none."""
    if c.to_req_ptr is not None:
        low, high, sign = load_word(c.to_req_ptr, c.to_req_stride, token, token < c.num_tokens)
        req = tl.where(high == sign, low, tl.where(high < 0, -1, INT32_MAX))
    elif c.starts_ptr is not None:
        # the requests that end at the token or before it
        req = token * 0
        for chunk in range(0, c.batch, C.BATCH_BLOCK):
            i = chunk + tl.arange(0, C.BATCH_BLOCK)
            end = load_int(c.starts_ptr, c.starts_stride, i + 1, i < c.batch)
            req += tl.sum(((i < c.batch) & (end <= token)).to(tl.int32), 0)
        req = tl.where(req < c.batch, req, -1)  # behind the last request there is padding
        begin = load_int(c.starts_ptr, c.starts_stride, tl.maximum(req, 0), req >= 0)
        req = tl.where(begin <= token, req, -1)
    else:
        req = token
    return req


@triton.jit
def load_bounds(token, c, C: tl.constexpr):
    """Returns the source row of a query token, the length of that row, and why it was cut."""
    req = _find_request(token, c, C)
    is_request = (req >= 0) & (req < c.batch)
    row, high, _ = load_word(c.rows_ptr, c.rows_stride, req, is_request)
    row_exists = is_request & (high == 0) & (row >= 0) & (row < c.src_rows)
    is_padding = (req < 0) | (is_request & (high < 0))
    reason = tl.where(row_exists | is_padding, 0, BAD_ROW)
    length = req * 0 + c.src_tokens
    if c.lens_ptr is not None:
        given = load_int(c.lens_ptr, c.lens_stride, req, is_request)
        length = clip(given, 0, c.src_tokens)
        reason = tl.where((reason == 0) & row_exists & (given != length), BAD_LENGTH, reason)
    return tl.where(row_exists, row, 0), tl.where(row_exists, length, 0), reason


@triton.jit
def in_row(at, c, C: tl.constexpr):
    """Returns which places of a tile a query token has."""
    if C.FULL_TILES:
        mask = tl.full([C.BLOCK], True, tl.int1)
    else:
        k = c.k
        if C.VEC_16B:
            k = k >> 2 << 2  # as it is: so that Triton knows that each lane's places are all of one side
        mask = at + tl.arange(0, C.BLOCK) < k
    return mask


@triton.jit
def load_positions(token, at, c, C: tl.constexpr):
    """Loads the positions of the tile that begins at ``at``; -1 where there is none, also past int32.

    Of many query tokens positions and ids leave the caches first: each is accessed once, and entries of the
    source are read again.
    """
    row = c.pos_ptr + token.to(tl.int64) * c.pos_stride
    if C.VEC_16B:
        row = tl.multiple_of(row, 16)
    places = row + at + tl.arange(0, C.BLOCK)
    position = tl.load(places, mask=in_row(at, c, C), other=-1, eviction_policy=C.EVICTION)
    if position.dtype == tl.int64:
        position = tl.where((position >= 0) & (position <= INT32_MAX), position, -1).to(tl.int32)
    return position


@triton.jit
def translate(position, row, length, c, C: tl.constexpr):
    """Returns the ids of positions, which of them there are, and which have a token without an id.

    Unsigned, what is negative is past every end, and a division by a power of two is one instruction alone.
    """
    position = position.to(tl.uint32, bitcast=True)
    # what the source has behind the row's end is loaded too, so that the load need not wait for the length
    inside = position < ((c.src_tokens + C.UNIT - 1) // C.UNIT).to(tl.uint32)
    live = position < ((length + C.UNIT - 1) // C.UNIT).to(tl.uint32)  # which is inside
    token = position * C.UNIT
    ROUND: tl.constexpr = C.SHARD_SIZE * C.SHARD_INTERLEAVE
    if C.SHARD_SIZE > 1:
        is_own = token // C.SHARD_INTERLEAVE % C.SHARD_SIZE == c.shard_rank.to(tl.uint32)
        inside, live = inside & is_own, live & is_own
        if not C.SOURCE_IS_GLOBAL:
            token = token // ROUND * C.SHARD_INTERLEAVE + token % C.SHARD_INTERLEAVE
    # of 64-bit products of what is not negative, one part fewer
    src_row = c.src_ptr + row.to(tl.uint32, bitcast=True).to(tl.int64) * c.src_stride
    entry = tl.load(src_row + token // C.SOURCE_PAGE_SIZE, mask=inside)  # else anything: it is not live
    valid = live & (entry >= 0)
    if entry.dtype == tl.int64:
        valid = valid & (entry < ID_MAX)
    if C.SOURCE_IS_GLOBAL:  # of single tokens
        slot = tl.where(valid, entry, 0).to(tl.int64)
        page = (slot // ROUND * C.SHARD_INTERLEAVE + slot % C.SHARD_INTERLEAVE) // C.PAGE_SIZE
    elif C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0 and C.BLOCK_STRIDE == C.SOURCE_PAGE_SIZE:
        page = entry // (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)  # in the dtype of an entry
    else:
        UNITS: tl.constexpr = C.BLOCK_STRIDE // C.PAGE_SIZE
        offset = (token % C.SOURCE_PAGE_SIZE // C.PAGE_SIZE).to(tl.int32)
        if c.out_ptr.dtype.element_ty == tl.int32:  # in 32 bits, of entries whose ids fit in them
            valid = valid & (entry <= INT32_MAX // UNITS)
            if UNITS & (UNITS - 1) != 0 or C.SOURCE_PAGE_SIZE // C.PAGE_SIZE != UNITS:
                valid = valid & ((entry < INT32_MAX // UNITS) | (offset <= INT32_MAX % UNITS))
        page = entry.to(c.out_ptr.dtype.element_ty) * UNITS + offset
    if page.dtype == tl.int64 and c.out_ptr.dtype.element_ty == tl.int32:
        valid = valid & (page <= INT32_MAX)
    return page.to(c.out_ptr.dtype.element_ty), valid, live & ~valid


@triton.jit
def report_token(token, reason, bad, c):
    """Keeps the smallest (token, reason) in the status word."""
    if c.status_ptr is not None:
        missing = tl.max(bad.to(tl.int32), 0) > 0
        reason = tl.where((reason == 0) & missing, BAD_ID, reason)
        if reason > 0:
            tl.atomic_min(c.status_ptr, token.to(tl.int64) * 256 + reason, sem="relaxed")


@triton.jit
def store_ids(token, at, value, mask, c, C: tl.constexpr):
    """Stores what stands at the places of the tile that begins at ``at``."""
    row = c.out_ptr + token.to(tl.int64) * c.out_stride
    if C.VEC_16B:
        row = tl.multiple_of(row, 16)
    tl.store(row + at + tl.arange(0, C.BLOCK), value, mask=mask, eviction_policy=C.EVICTION)
