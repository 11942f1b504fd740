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
def _store_count(token, count, c):
    if c.counts_ptr is not None:
        if c.dummy is not None:
            count = tl.maximum(count, 1)
        tl.store(c.counts_ptr + token, count)


@triton.jit
def _missing(j, c):
    return (j * 0 + c.missing_id).to(c.out_ptr.dtype.element_ty)


@triton.jit
def _with_dummy(value, at_first, count, c):
    """Returns the values, the first of which is the dummy if there is no id."""
    if c.dummy is not None:
        value = tl.where(at_first & (count == 0), c.dummy.to(value.dtype), value)
    return value


@triton.jit
def _fill_rest(token, count, c, C: tl.constexpr):
    """Writes what stands behind the packed ids of a query token whose positions are one tile."""
    j = tl.arange(0, C.BLOCK)
    value = _with_dummy(_missing(j, c), j == 0, count, c)
    first = (count + 3) // 4  # in fours, so that a lane's are all of one side
    store_ids(token, token * 0, value, (j // 4 >= first) & in_row(token * 0, c, C), c, C)
    j = count + tl.arange(0, 4)
    out = c.out_ptr + token.to(tl.int64) * c.out_stride
    tl.store(out + j, _missing(j, c), mask=(j < first * 4) & (j < c.k))


@triton.jit
def _write_small_row(token, c, C: tl.constexpr):
    """Writes all ids of a query token whose positions are one tile, and counts them."""
    position = load_positions(token, token * 0, c, C)
    row, length, reason = load_bounds(token, c, C)
    page, valid, bad = translate(position, row, length, c, C)
    report_token(token, reason, bad, c)
    found = valid.to(tl.int32)
    count = tl.sum(found, 0)
    if C.COMPACT:
        row_out = c.out_ptr + token.to(tl.int64) * c.out_stride
        tl.store(row_out + (tl.cumsum(found, 0) - found), page, mask=valid)
        _fill_rest(token, count, c, C)
    else:
        value = tl.where(valid, page, c.missing_id.to(page.dtype))
        value = _with_dummy(value, tl.arange(0, C.BLOCK) == 0, count, c)
        store_ids(token, token * 0, value, in_row(token * 0, c, C), c, C)
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
    position = load_positions(token, at, c, C)
    row, length, reason = load_bounds(token, c, C)
    count = token * 0
    for n in range(0, num_tiles):
        page, valid, bad = translate(position, row, length, c, C)
        report_token(token, reason, bad, c)
        found = valid.to(tl.int32)
        if C.COMPACT:
            tl.store(out + (count + tl.cumsum(found, 0) - found), page, mask=valid)
            count += tl.sum(found, 0)
        else:
            count += tl.sum(found, 0)
            value = tl.where(valid, page, c.missing_id.to(page.dtype))
            value = _with_dummy(value, at + tl.arange(0, C.BLOCK) == 0, count, c)
            store_ids(token, at, value, in_row(at, c, C), c, C)
        at += C.BLOCK if C.COMPACT else -C.BLOCK
        if n + 1 < num_tiles:
            position = load_positions(token, at, c, C)
    if C.COMPACT:
        for at in range(count, c.k, C.BLOCK):
            j = at + tl.arange(0, C.BLOCK)
            tl.store(out + j, _with_dummy(_missing(j, c), j == 0, count, c), mask=j < c.k)
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
