"""The Triton kernel of chosen tokens: the ids of the positions that each query token attends to.

A program has a tile of one query token's positions. Where ids are counted it has all of the token's tiles,
one after the other, so that ids can be packed in their order without atomics. The loads of a tile's positions
do not wait for those that find the request.
"""

import triton
import triton.language as tl

from .args import BAD_ID, BAD_LENGTH, BAD_ROW, ID_MAX, INT32_MAX
from .chosen_args import ARGUMENTS, Chosen
from .rows import load_int, load_word
from .shards import clip


@triton.jit
def _find_request(token, c, C: tl.constexpr):
    """Returns the request of a query token, -1 for none."""
    if c.to_req_ptr is not None:
        req = load_int(c.to_req_ptr, c.to_req_stride, token, token < c.num_tokens)
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
def _load_bounds(token, c, C: tl.constexpr):
    """Returns the source row of a query token, the length of that row, and why it was cut."""
    req = _find_request(token, c, C)
    is_request = (req >= 0) & (req < c.batch)
    row, high = req, req * 0
    if c.rows_ptr is not None:
        row, high, _ = load_word(c.rows_ptr, c.rows_stride, req, is_request)
    row_exists = is_request & (high == 0) & (row >= 0) & (row < c.src_rows)
    is_padding = (req < 0) | (is_request & (high < 0)) | (is_request & (high == 0) & (row < 0))
    reason = tl.where(row_exists | is_padding, 0, BAD_ROW)
    length = req * 0 + c.src_tokens
    if c.lens_ptr is not None:
        given = load_int(c.lens_ptr, c.lens_stride, req, is_request)
        length = clip(given, 0, c.src_tokens)
        reason = tl.where((reason == 0) & row_exists & (given != length), BAD_LENGTH, reason)
    return tl.where(row_exists, row, 0), tl.where(row_exists, length, 0), reason


@triton.jit
def _in_row(at, c, C: tl.constexpr):
    """Returns which places of a tile a query token has."""
    k = c.k
    if C.VEC_16B:
        k = k // 4 * 4  # as it is: so that Triton knows that each lane's places are all of one side
    return at + tl.arange(0, C.BLOCK) < k


@triton.jit
def _load_positions(token, at, c, C: tl.constexpr):
    """Loads the positions of the tile that begins at ``at``; -1 where there is none, also past int32."""
    row = c.pos_ptr + token.to(tl.int64) * c.pos_stride
    if C.VEC_16B:
        row = tl.multiple_of(row, 16)
    position = tl.load(row + at + tl.arange(0, C.BLOCK), mask=_in_row(at, c, C), other=-1)
    if position.dtype == tl.int64:
        position = tl.where((position >= 0) & (position <= INT32_MAX), position, -1).to(tl.int32)
    return position


@triton.jit
def _translate(position, row, length, c, C: tl.constexpr):
    """Returns the ids of positions, which of them there are, and which have a token without an id."""
    live = (position >= 0) & (position < (length + C.UNIT - 1) // C.UNIT)
    token = tl.where(live, position, 0) * C.UNIT
    ROUND: tl.constexpr = C.SHARD_SIZE * C.SHARD_INTERLEAVE
    if C.SHARD_SIZE > 1:
        live = live & (token // C.SHARD_INTERLEAVE % C.SHARD_SIZE == c.shard_rank)
        if not C.SOURCE_IS_GLOBAL:
            token = token // ROUND * C.SHARD_INTERLEAVE + token % C.SHARD_INTERLEAVE
    src_row = c.src_ptr + row.to(tl.int64) * c.src_stride
    entry = tl.load(src_row + token // C.SOURCE_PAGE_SIZE, mask=live, other=-1)
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
        offset = token % C.SOURCE_PAGE_SIZE // C.PAGE_SIZE
        if c.out_ptr.dtype.element_ty == tl.int32:  # in 32 bits, of entries whose ids fit in them
            valid = valid & (entry <= INT32_MAX // UNITS)
            if UNITS & (UNITS - 1) != 0 or C.SOURCE_PAGE_SIZE // C.PAGE_SIZE != UNITS:
                valid = valid & ((entry < INT32_MAX // UNITS) | (offset <= INT32_MAX % UNITS))
        page = entry.to(c.out_ptr.dtype.element_ty) * UNITS + offset
    if page.dtype == tl.int64 and c.out_ptr.dtype.element_ty == tl.int32:
        valid = valid & (page <= INT32_MAX)
    return page.to(c.out_ptr.dtype.element_ty), valid, live & ~valid


@triton.jit
def _report(token, reason, bad, c):
    """Keeps the smallest (token, reason) in the status word."""
    if c.status_ptr is not None:
        missing = tl.max(bad.to(tl.int32), 0) > 0
        reason = tl.where((reason == 0) & missing, BAD_ID, reason)
        if reason > 0:
            tl.atomic_min(c.status_ptr, token.to(tl.int64) * 256 + reason, sem="relaxed")


@triton.jit
def _store(token, at, value, mask, c, C: tl.constexpr):
    row = c.out_ptr + token.to(tl.int64) * c.out_stride
    if C.VEC_16B:
        row = tl.multiple_of(row, 16)
    tl.store(row + at + tl.arange(0, C.BLOCK), value, mask=mask)


@triton.jit
def _write_tile(token, at, c, C: tl.constexpr):
    """Writes the ids of one tile, each at its position's place."""
    position = _load_positions(token, at, c, C)
    row, length, reason = _load_bounds(token, c, C)
    page, valid, bad = _translate(position, row, length, c, C)
    _report(token, reason, bad, c)
    value = tl.where(valid, page, c.missing_id.to(page.dtype))
    _store(token, at, value, _in_row(at, c, C), c, C)


@triton.jit
def _store_count(token, count, c):
    if c.counts_ptr is not None:
        if c.dummy is not None:
            count = tl.maximum(count, 1)
        tl.store(c.counts_ptr + token, count)


@triton.jit
def _with_dummy(value, at_first, count, c):
    """Returns the values, the first of which is the dummy if there is no id."""
    if c.dummy is not None:
        value = tl.where(at_first & (count == 0), c.dummy.to(value.dtype), value)
    return value


@triton.jit
def _fill_rest(token, count, c, C: tl.constexpr):
    """Writes what stands behind the packed ids of a query token. They are few, as a rule: in small steps."""
    STEP: tl.constexpr = max(C.BLOCK // 8, 32)
    out = c.out_ptr + token.to(tl.int64) * c.out_stride
    for at in range(count, c.k, STEP):
        j = at + tl.arange(0, STEP)
        value = (j * 0 + c.missing_id).to(c.out_ptr.dtype.element_ty)
        tl.store(out + j, _with_dummy(value, j == 0, count, c), mask=j < c.k)


@triton.jit
def _write_small_row(token, c, C: tl.constexpr):
    """Writes all ids of a query token whose positions are one tile, and counts them."""
    position = _load_positions(token, token * 0, c, C)
    row, length, reason = _load_bounds(token, c, C)
    page, valid, bad = _translate(position, row, length, c, C)
    _report(token, reason, bad, c)
    found = valid.to(tl.int32)
    count = tl.sum(found, 0)
    if C.COMPACT:
        out = c.out_ptr + token.to(tl.int64) * c.out_stride
        tl.store(out + (tl.cumsum(found, 0) - found), page, mask=valid)
        _fill_rest(token, count, c, C)
    else:
        value = tl.where(valid, page, c.missing_id.to(page.dtype))
        value = _with_dummy(value, tl.arange(0, C.BLOCK) == 0, count, c)
        _store(token, token * 0, value, _in_row(token * 0, c, C), c, C)
    _store_count(token, count, c)


@triton.jit
def _write_row(token, c, C: tl.constexpr):
    """Writes all ids of a query token, tile by tile, and counts them.

    The tiles go from the first to the last where ids are packed, and the other way round where they are not:
    what is written at the first place may depend on the count.
    """
    out = c.out_ptr + token.to(tl.int64) * c.out_stride
    num_tiles = (c.k + C.BLOCK - 1) // C.BLOCK
    at = num_tiles * 0
    if not C.COMPACT:
        at = (num_tiles - 1) * C.BLOCK
    position = _load_positions(token, at, c, C)
    row, length, reason = _load_bounds(token, c, C)
    count = token * 0
    for n in range(0, num_tiles):
        page, valid, bad = _translate(position, row, length, c, C)
        _report(token, reason, bad, c)
        found = valid.to(tl.int32)
        if C.COMPACT:
            tl.store(out + (count + tl.cumsum(found, 0) - found), page, mask=valid)
            count += tl.sum(found, 0)
        else:
            count += tl.sum(found, 0)
            value = tl.where(valid, page, c.missing_id.to(page.dtype))
            value = _with_dummy(value, at + tl.arange(0, C.BLOCK) == 0, count, c)
            _store(token, at, value, _in_row(at, c, C), c, C)
        at += C.BLOCK if C.COMPACT else -C.BLOCK
        if n + 1 < num_tiles:
            position = _load_positions(token, at, c, C)
    if C.COMPACT:
        _fill_rest(token, count, c, C)
    _store_count(token, count, c)


# As in entry.py, only the last argument is specialized.
@triton.jit(do_not_specialize=ARGUMENTS)
def xkv_translate(
    num_tokens: "i32", k: "i32", pos_ptr, pos_stride: "i64", src_ptr, src_stride: "i64", src_rows: "i32",
    src_tokens: "i32", batch: "i32", out_ptr, out_stride: "i64", missing_id: "i32",
    # without an annotation, as these may be None
    to_req_ptr, to_req_stride, starts_ptr, starts_stride, rows_ptr, rows_stride, lens_ptr, lens_stride,
    shard_rank, counts_ptr, dummy, status_ptr, C: tl.constexpr,
):  # fmt: skip
    """Grid: (query tokens; tiles of one). `xkv.chosen.ChosenTokens` describes the arguments."""
    if C.USE_PDL:
        tl.extra.cuda.gdc_wait()  # as in entry.py
        tl.extra.cuda.gdc_launch_dependents()
    c = Chosen(
        num_tokens, k, pos_ptr, pos_stride, src_ptr, src_stride, src_rows, src_tokens, batch, out_ptr,
        out_stride, missing_id, to_req_ptr, to_req_stride, starts_ptr, starts_stride, rows_ptr, rows_stride,
        lens_ptr, lens_stride, shard_rank, counts_ptr, dummy, status_ptr,
    )  # fmt: skip
    token = tl.program_id(0)
    if C.WHOLE_ROWS and C.ONE_TILE:
        _write_small_row(token, c, C)
    elif C.WHOLE_ROWS:
        _write_row(token, c, C)
    else:
        _write_tile(token, tl.program_id(1) * C.BLOCK, c, C)
