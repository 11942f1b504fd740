"""The Triton kernel: page tables, CSR indices and slot mappings in one launch, on every vendor.

A tile is NUM_PAGE_PER_BLOCK consecutive items (entries of the output) of one row. Programs have one of three
jobs, which run side by side, so that none waits for another's:

* Sums (``prefix_sums.py``): the first programs write lengths, prefix sums and status; all programs pad a
  stream. They are a row of the grid, or of a few long rows a column (SUMS_IN_COLUMN).
* Own tiles: the programs of a row write its first ``own_tiles`` tiles, interleaved.
* Leftover tiles (``scheduler.py``; BALANCE): the programs past the batch divide the remaining tiles of longer
  rows evenly, so that the cost follows the live tokens, however skewed the lengths are.

An extension (``extension.py``) has sums, and two kinds of programs of several rows each: those of the last
entries, and those of what the rows' records say that they lack. Slots of query tokens whose rows can be told
from their index have tiles of tokens (``query_tokens.py``). ``tiles.py`` loads a tile and stores its ids,
which ``ids.py`` finds; loads are prefetched one tile ahead. ``rows.py`` computes what a row shows,
``args.py`` groups the arguments, and `xkv.params.Build` describes them.
"""

import triton
import triton.language as tl

from .args import ARGUMENTS, INT32_MAX, SLOTS, TABLE, Config, Grid, Policy, Request, Tile, View
from .extension import extend_rows
from .prefix_sums import write_sums
from .query_tokens import write_token_tiles
from .reports import report_first
from .rows import load_row, padded_end, row_tiles
from .scheduler import count_tiles, find_tile, load_chunk, row_offset, split_evenly
from .tiles import load_entries, translate_slots, write_row_tiles

__all__ = ["Config", "xkv_build"]


@triton.jit
def _write_leftover_tiles(pid, num_programs, first_error, req, view, policy, C: tl.constexpr):
    """Writes the share of program ``pid`` of ``num_programs``. Returns ``first_error``."""
    pid = pid.to(tl.int64) if C.INT64_TILES else pid
    chunk = load_chunk(req.batch * 0, pid * 0, req.batch.to(tl.int64) * 0, req, view, policy, C)
    tile_idx, tile_end = split_evenly(pid, num_programs, count_tiles(chunk, req, view, policy, C))
    while tile_idx < tile_end:
        chunk, b, idx, offset = find_tile(tile_idx, chunk, req, view, policy, C)
        row = load_row(b, b < req.batch, req, view, policy, C)
        end = row_tiles(b, row.items, row.known, req, view, policy, C)
        end = tl.minimum(idx + tile_end - tile_idx, end).to(tl.int32)
        tile = Tile(b, idx, row, load_entries(idx, row, req, view, policy, C), offset)
        first_error = write_row_tiles(tile, end, 1, first_error, req, view, policy, C)
        tile_idx += tl.maximum(end - idx, 1)
    return first_error


@triton.jit
def _write_tiles(grid, req, view, policy, HAS_SUMS: tl.constexpr, C: tl.constexpr):
    """Writes the ids: a program of a row its own tiles, a program past the batch leftover tiles."""
    b = grid.x - (HAS_SUMS and not C.SUMS_IN_COLUMN)  # the first programs write the sums
    idx, stride = grid.y, grid.num_y - C.SUMS_IN_COLUMN  # or the last one of each row
    # The loads of the first tile, masked: issued before any branch (a launch takes 0.08 us less).
    has_row = (b >= 0) & (b < req.batch)
    if C.SUMS_IN_COLUMN:
        has_row = has_row & (idx < stride)
    row = load_row(b, has_row, req, view, policy, C)
    entries = load_entries(idx, row, req, view, policy, C)
    first_error = tl.arange(0, C.NUM_PAGE_PER_BLOCK) * 0 + INT32_MAX
    if has_row:
        end = tl.minimum(row_tiles(b, row.items, row.known, req, view, policy, C), policy.own_tiles)
        tile = Tile(b, idx, row, entries, row_offset(b, req, view, policy, C))
        first_error = write_row_tiles(tile, end, stride, first_error, req, view, policy, C)
    if C.BALANCE:
        if b >= req.batch:
            pid = (b - req.batch) * stride + idx
            num_programs = (grid.num_x - HAS_SUMS - req.batch) * stride
            first_error = _write_leftover_tiles(pid, num_programs, first_error, req, view, policy, C)
    if C.REDUCE_STATUS and policy.status_ptr is not None:
        report_first(policy, first_error)


@triton.jit
def _write_own_sums(pid, num_programs, req, view, policy, C: tl.constexpr):
    """Writes lengths, prefix sums and status, if this program has some of them."""
    if pid * C.BATCH_BLOCK < tl.maximum(req.batch, 1):
        write_sums(pid, num_programs, req, view, policy, C)


@triton.jit
def build_view(grid, req, view, policy, IS_LAST: tl.constexpr, C: tl.constexpr):
    """Writes one view: lengths and prefix sums, the padding of a stream, then the ids.

    Of a table the ids come first, so that programs without sums need not jump over the code of those: up to
    7 % of a table of 256 x ~4K tokens at page size 1.
    """
    STREAM: tl.constexpr = C.FORM != TABLE
    SUMS_FIRST: tl.constexpr = STREAM or C.EXTENDS > 0
    HAS_SUMS: tl.constexpr = (
        view.seqlens_ptr is not None or view.cu_k_ptr is not None
        or (view.indptr_ptr is not None and not C.INDPTR_IS_INPUT)
        or view.last_ptr is not None or view.offset_ptr is not None or view.empty_ptr is not None
        or view.cu_q_ptr is not None or view.record_ptr is not None or policy.status_ptr is not None
    )  # fmt: skip
    TILES_OF_TOKENS: tl.constexpr = C.FORM == SLOTS and req.query_ptr is None
    num_programs = grid.num_x * grid.num_y
    pid = grid.x * grid.num_y + grid.y
    if C.SUMS_IN_COLUMN:
        pid = tl.where(grid.y == grid.num_y - 1, 0, grid.y + 1) * grid.num_x + grid.x

    total = req.batch.to(tl.int64) * 0
    limit = total + view.capacity
    if C.HAS_PADDING and STREAM and not TILES_OF_TOKENS and not C.INDPTR_IS_INPUT:
        total = write_sums(pid, num_programs, req, view, policy, C)
    elif HAS_SUMS and SUMS_FIRST:
        _write_own_sums(pid, num_programs, req, view, policy, C)
    if C.HAS_PADDING and STREAM:
        if C.INDPTR_IS_INPUT:
            total = tl.maximum(tl.load(view.indptr_ptr + req.batch).to(tl.int64), 0)
        elif TILES_OF_TOKENS:
            total += req.query_len.to(tl.int64) * req.batch
        total = tl.minimum(total, view.capacity)
        limit = total  # so that what sums that decrease claim past it is padding alone
        end = padded_end(total, view, policy)
        for at in range(total + pid * C.NUM_PAGE_PER_BLOCK, end, num_programs * C.NUM_PAGE_PER_BLOCK):
            o = at + tl.arange(0, C.NUM_PAGE_PER_BLOCK)
            padding = (o * 0 + policy.pad_value).to(view.out_ptr.dtype.element_ty)
            tl.store(view.out_ptr + o, padding, mask=o < end)
            if view.query_seqlens_ptr is not None:
                tl.store(view.query_seqlens_ptr + o, (o * 0).to(tl.int32), mask=o < end)
    if req.loc_ptr is not None and IS_LAST:
        translate_slots(pid, num_programs, req, view, C)
    if not C.WRITES_IDS:
        pass
    elif C.EXTENDS > 0:
        if (grid.x >= HAS_SUMS) & (grid.y == 0):
            extend_rows(grid.x - HAS_SUMS, req, view, policy, C)
    elif TILES_OF_TOKENS:
        pid -= HAS_SUMS * grid.num_y
        if pid >= 0:
            write_token_tiles(pid, num_programs - HAS_SUMS * grid.num_y, limit, req, view, policy, C)
    else:
        _write_tiles(grid, req, view, policy, HAS_SUMS, C)
    if HAS_SUMS and not SUMS_FIRST:
        _write_own_sums(pid, num_programs, req, view, policy, C)


# Only the last argument is specialized. No other is, by value, alignment or storage size (which on AMD would
# select 32-bit offsets), so that a compiled kernel serves every call of its signature.
@triton.jit(do_not_specialize=ARGUMENTS)
def xkv_build(
    batch: "i32", rows_stride, rows_ptr, lens_ptr, lens_stride: "i32", delta: "i32",  # rows: may be None
    src_ptr, src_stride: "i64", src_rows: "i32", src_tokens: "i32",
    # without an annotation, as these may be None
    delta_ptr, delta_stride, query_ptr, query_stride, query_sign, query_len, shard_rank,
    positions_ptr, positions_stride, positions_len, max_position,
    loc_ptr, loc_len, loc_out_ptr, loc_out_len,
    start_ptr, start_stride, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
    out_ptr, out_stride: "i64", capacity: "i32",
    seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, offset_ptr, empty_ptr, record_ptr, cu_q_ptr,
    # a second view of the same form and page size: the sliding window
    start2_ptr, start_stride2, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
    out2_ptr, out_stride2, capacity2,
    seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, offset2_ptr, empty2_ptr, record2_ptr,
    min_len, min_last, pad_multiple, pad_value, missing_id: "i32", report_missing, status_ptr,
    own_tiles: "i32", C: tl.constexpr,
):  # fmt: skip
    """Grid: (sums, rows, leftover tiles; programs per row; views). `params.Build` describes the arguments."""
    if C.USE_PDL:
        # the previous kernel may still run: nothing is read or written before it has ended
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # the next kernel waits too, if it may start before this ends
    req = Request(
        batch, rows_stride, rows_ptr, lens_ptr, lens_stride, delta, src_ptr, src_stride, src_rows, src_tokens,
        delta_ptr, delta_stride, query_ptr, query_stride, query_sign, query_len, shard_rank,
        positions_ptr, positions_stride, positions_len, max_position,
        loc_ptr, loc_len, loc_out_ptr, loc_out_len, None,
    )  # fmt: skip
    policy = Policy(
        min_len, min_last, pad_multiple, pad_value, missing_id, report_missing, status_ptr, own_tiles
    )  # fmt: skip
    view = View(
        start_ptr, start_stride, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
        out_ptr, out_stride, capacity, seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, offset_ptr, empty_ptr,
        record_ptr, cu_q_ptr, None, None, None,
    )  # fmt: skip
    grid = Grid(tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1))
    if out2_ptr is None:
        build_view(grid, req, view, policy, True, C)
    elif tl.program_id(2) == 0:
        build_view(grid, req, view, policy, False, C)
    else:
        view2 = View(
            start2_ptr, start_stride2, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
            out2_ptr, out_stride2, capacity2, seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, offset2_ptr,
            empty2_ptr, record2_ptr, None, None, None, None,
        )  # fmt: skip
        build_view(grid, req, view2, policy, True, C)
