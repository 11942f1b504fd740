"""The Triton kernel of chosen tokens: the ids of the positions that each query token attends to.

A program has a tile of one query token's positions. Where ids are counted it has all of the token's tiles,
one after the other, so that ids can be packed in their order without atomics. The loads of a tile's positions
do not wait for those that find the request.
"""

import triton
import triton.language as tl

from .chosen_args import ARGUMENTS, Chosen
from .chosen_tiles import in_row, load_bounds, load_positions, report_token, store_ids, translate


@triton.jit
def _write_tile(token, at, c, C: tl.constexpr):
    """Writes the ids of one tile, each at its position's place."""
    position = load_positions(token, at, c, C)
    row, length, reason = load_bounds(token, c, C)
    page, valid, bad = translate(position, row, length, c, C)
    report_token(token, reason, bad, c)
    value = tl.where(valid, page, c.missing_id.to(page.dtype))
    store_ids(token, at, value, in_row(at, c, C), c, C)


@triton.jit
def _store_count(token, count, mask, c):
    """Stores how many places of a query token the reader has to look at."""
    if c.counts_ptr is not None:
        if c.dummy is not None:
            count = tl.maximum(count, 1)
        tl.store(c.counts_ptr + token, count, mask=mask)


@triton.jit
def _pack(token, at, count, page, valid, c, C: tl.constexpr):
    """Writes a tile's ids behind the ``count`` before them. Returns how many there are with them.

    Each position has a place of its own: the n-th with an id is the n-th of the row, the n-th without one the
    n-th from the row's end. So what is behind the ids is written too, and no store waits for their number.
    """
    j = at + tl.arange(0, C.BLOCK)
    found = valid.to(tl.int32)
    num_found = count + tl.cumsum(found, 0)
    place = num_found + tl.where(valid, -1, c.k - 1 - j)
    missing = c.missing_id.to(page.dtype)
    if c.dummy is not None:  # a position without an id has the first place only if no other has one
        missing = tl.where(place == 0, c.dummy.to(page.dtype), missing)
    # widened last: where lanes have vectors, places change lanes through shared memory, and not pointers
    out = c.out_ptr + token.to(tl.int64) * c.out_stride + place.to(tl.int64)
    tl.store(out, tl.where(valid, page, missing), mask=in_row(at, c, C), eviction_policy=C.EVICTION)
    if not C.VEC_16B:  # the last lane of the last tile has the count; it need not wait for other warps
        is_last = j == (C.BLOCK if C.ONE_TILE else (c.k + C.BLOCK - 1) // C.BLOCK * C.BLOCK) - 1
        _store_count(token + (j - j), num_found, is_last, c)
    return tl.max(num_found, 0)


@triton.jit
def _store_in_place(token, at, count, page, valid, c, C: tl.constexpr):
    """Writes a tile's ids, each at its position's place, given how many there are with those behind them."""
    value = tl.where(valid, page, c.missing_id.to(page.dtype))
    if c.dummy is not None:  # in the first place, if there is no id
        is_first = at + tl.arange(0, C.BLOCK) == 0
        value = tl.where(is_first & (count == 0), c.dummy.to(page.dtype), value)
    store_ids(token, at, value, in_row(at, c, C), c, C)


@triton.jit
def _write_counted(token, at, count, row, length, reason, position, c, C: tl.constexpr):
    """Writes one tile of a row whose ids are counted. Returns ``count`` with those of the tile."""
    page, valid, bad = translate(position, row, length, c, C)
    report_token(token, reason, bad, c)
    if C.COMPACT:
        count = _pack(token, at, count, page, valid, c, C)
    else:
        count += tl.sum(valid.to(tl.int32), 0)
        _store_in_place(token, at, count, page, valid, c, C)
    return count


@triton.jit
def _write_row(token, c, C: tl.constexpr):
    """Writes all ids of a query token, tile by tile, and counts them.

    The tiles go from the first to the last where ids are packed, and the other way round where they are not:
    what is written at the first place may depend on the count.
    """
    num_tiles = (c.k + C.BLOCK - 1) // C.BLOCK
    at = num_tiles * 0
    if not C.ONE_TILE and not C.COMPACT:
        at = (num_tiles - 1) * C.BLOCK
    position = load_positions(token, at, c, C)
    row, length, reason = load_bounds(token, c, C)
    count = _write_counted(token, at, token * 0, row, length, reason, position, c, C)
    if not C.ONE_TILE:
        for _ in range(1, num_tiles):
            at += C.BLOCK if C.COMPACT else -C.BLOCK
            position = load_positions(token, at, c, C)
            count = _write_counted(token, at, count, row, length, reason, position, c, C)
    if C.VEC_16B or not C.COMPACT:
        _store_count(token, count, None, c)


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
    if C.WHOLE_ROWS:
        _write_row(token, c, C)
    else:
        _write_tile(token, tl.program_id(1) * C.BLOCK, c, C)
