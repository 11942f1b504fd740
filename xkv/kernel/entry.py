"""The Triton kernel: page tables, CSR indices and slot mappings in one launch, on every vendor.

A tile is NUM_PAGE_PER_BLOCK consecutive items (entries of the output) of one row. Each program runs:

* Sums (``prefix_sums.py``): the first programs write lengths, prefix sums and status; all programs pad a
  stream.
* Phase 1, own tiles: the first ``own_tiles`` tiles of one row, interleaved among the programs of that row.
* Phase 2, leftover tiles (``scheduler.py``; BALANCE): the remaining tiles of longer rows are divided evenly
  among all programs, so that the cost follows the live tokens, however skewed the lengths are.

``tiles.py`` loads, translates and stores a tile; loads are prefetched one tile ahead. ``rows.py`` computes
what a row shows, ``args.py`` groups the arguments, and `xkv.params.Build` describes them.
"""

import triton
import triton.language as tl

from .args import ARGUMENTS, INT32_MAX, TABLE, Config, Policy, Request, Tile, View
from .prefix_sums import write_sums
from .rows import load_row, padded_end, report_first, row_offset, row_tiles
from .scheduler import count_tiles, find_tile, split_evenly
from .tiles import load_entries, store_tile

__all__ = ["Config", "xkv_build"]


@triton.jit
def _write_tiles(pid, num_programs, req, view, policy, HAS_SUMS: tl.constexpr, C: tl.constexpr):
    """Writes the ids: the program's own tiles first, then its share of the leftover tiles."""
    STREAM: tl.constexpr = C.FORM != TABLE
    b = tl.program_id(0)
    if HAS_SUMS:
        # The first programs write the sums. Their row is the one past the batch, which is empty: they go on
        # to phase 2 at once.
        b = tl.where(b == 0, req.batch, b - 1)
    row = load_row(b, b < req.batch, req, view, policy, C)
    entries = load_entries(tl.program_id(1), row, req, view, policy, C)
    num_own = tl.minimum(row_tiles(b, row.items, req, view, policy, C), policy.own_tiles)
    # Leftover tiles are numbered from 0 on over the batch.
    first_idx = pid.to(tl.int64) if C.INT64_TILES else pid
    num_tiles = first_idx * 0
    if C.BALANCE and STREAM:
        num_tiles, offset = count_tiles(b, num_tiles, req, view, policy, C)
    else:
        offset = row_offset(b, req, view, policy, C)
    tile = Tile(b, tl.program_id(1), row, entries, offset)
    row_tile_end, tile_stride = num_own, tl.num_programs(1)
    tile_idx, tile_end = first_idx, num_tiles
    if C.BALANCE and STREAM:
        tile_idx, tile_end = split_evenly(pid, num_programs, num_tiles)
    first_error = tl.arange(0, C.NUM_PAGE_PER_BLOCK) * 0 + INT32_MAX
    has_more = b <= req.batch
    has_tile = has_more
    while has_tile:
        # The row's next own tile, if there is one.
        next_b, next_idx, next_offset, next_row = tile.b, tile.idx + tile_stride, tile.row_offset, tile.row
        has_tile = next_idx < row_tile_end
        if C.BALANCE and not STREAM:
            # Tables: leftover tiles one by one, num_programs apart.
            if (next_idx >= row_tile_end) & has_more:
                next_b, next_idx, next_offset, has_more = find_tile(
                    tile_idx, num_programs, num_tiles, req, view, policy, C
                )
                tile_idx += num_programs
                has_tile = next_b < req.batch
        if C.BALANCE and STREAM:
            # Streams: a contiguous range of leftover tiles; a row's part of it needs one search.
            if (next_idx >= row_tile_end) & (tile_idx < tile_end):
                next_b, next_idx, next_offset, _ = find_tile(
                    tile_idx, num_programs, num_tiles, req, view, policy, C
                )
                has_tile = next_b < req.batch
                next_row = load_row(next_b, has_tile, req, view, policy, C)
                row_tile_end = row_tiles(next_b, next_row.items, req, view, policy, C)
                row_tile_end = tl.minimum(next_idx + tile_end - tile_idx, row_tile_end).to(tl.int32)
                tile_stride = 1
                tile_idx += tl.maximum(row_tile_end - next_idx, 1)
        # Prefetch: the next tile's loads are issued before this tile is stored.
        next_entries = tile.entries
        if has_tile:
            if not STREAM:
                next_row = load_row(next_b, has_tile, req, view, policy, C)
            next_entries = load_entries(next_idx, next_row, req, view, policy, C)
        first_error = store_tile(tile, first_error, req, view, policy, C)
        tile = Tile(next_b, next_idx, next_row, next_entries, next_offset)
    if C.REDUCE_STATUS and policy.status_ptr is not None:
        report_first(policy, first_error)


@triton.jit
def _build(req, view, policy, C: tl.constexpr):
    """Writes one view: lengths and prefix sums, the padding of a stream, then the ids."""
    STREAM: tl.constexpr = C.FORM != TABLE
    HAS_SUMS: tl.constexpr = (
        view.seqlens_ptr is not None or view.cu_k_ptr is not None
        or (view.indptr_ptr is not None and not C.INDPTR_IS_INPUT)
        or view.last_ptr is not None or view.offset_ptr is not None or view.cu_q_ptr is not None
        or policy.status_ptr is not None
    )  # fmt: skip
    num_programs = tl.num_programs(0) * tl.num_programs(1)
    pid = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)

    if C.HAS_PADDING and STREAM:
        total = tl.minimum(write_sums(pid, num_programs, req, view, policy, C), view.capacity)
        end = padded_end(total, view, policy)
        for at in range(total + pid * C.NUM_PAGE_PER_BLOCK, end, num_programs * C.NUM_PAGE_PER_BLOCK):
            o = at + tl.arange(0, C.NUM_PAGE_PER_BLOCK)
            padding = (o * 0 + policy.pad_value).to(view.out_ptr.dtype.element_ty)
            tl.store(view.out_ptr + o, padding, mask=o < end)
    elif HAS_SUMS:
        if pid * C.BATCH_BLOCK < tl.maximum(req.batch, 1):
            write_sums(pid, num_programs, req, view, policy, C)
    _write_tiles(pid, num_programs, req, view, policy, HAS_SUMS, C)
    if C.USE_PDL and not C.PDL_TRIGGER_EARLY:
        tl.extra.cuda.gdc_launch_dependents()


# Only the last argument is specialized. No other is, by value, alignment or storage size (which on AMD would
# select 32-bit offsets), so that a compiled kernel serves every call of its signature.
@triton.jit(do_not_specialize=ARGUMENTS)
def xkv_build(
    src_ptr, src_stride: "i64", src_rows: "i32", src_tokens: "i32",
    rows_ptr, rows_stride: "i32", lens_ptr, lens_stride: "i32", batch: "i32",
    # without an annotation, as these may be None
    delta_ptr, delta_stride, delta: "i32", query_ptr, query_stride, query_sign, query_len,
    start_ptr, start_stride, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
    out_ptr, out_stride: "i64", capacity: "i32",
    seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, offset_ptr, cu_q_ptr,
    # a second view of the same form and page size: the sliding window
    start2_ptr, start_stride2, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
    out2_ptr, out_stride2, capacity2,
    seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, offset2_ptr,
    min_len, min_last, pad_multiple, pad_value, missing_id: "i32", report_missing, status_ptr,
    own_tiles: "i32", C: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, and one for the sums; programs per row; views). `params.Build` describes the arguments."""
    if C.USE_PDL:
        # the previous kernel may still run: nothing is read or written before it has ended
        tl.extra.cuda.gdc_wait()
    if C.PDL_TRIGGER_EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    req = Request(
        src_ptr, src_stride, src_rows, src_tokens, rows_ptr, rows_stride, lens_ptr, lens_stride, batch,
        delta_ptr, delta_stride, delta, query_ptr, query_stride, query_sign, query_len,
    )  # fmt: skip
    policy = Policy(
        min_len, min_last, pad_multiple, pad_value, missing_id, report_missing, status_ptr, own_tiles
    )  # fmt: skip
    view = View(
        start_ptr, start_stride, window, token_map_ptr, token_map_len, page_map_ptr, page_map_len,
        out_ptr, out_stride, capacity, seqlens_ptr, cu_k_ptr, indptr_ptr, last_ptr, offset_ptr, cu_q_ptr,
    )  # fmt: skip
    if out2_ptr is None:
        _build(req, view, policy, C)
    elif tl.program_id(2) == 0:
        _build(req, view, policy, C)
    else:
        view2 = View(
            start2_ptr, start_stride2, window2, token_map2_ptr, token_map_len2, page_map2_ptr, page_map_len2,
            out2_ptr, out_stride2, capacity2, seqlens2_ptr, cu_k2_ptr, indptr2_ptr, last2_ptr, offset2_ptr,
            None,
        )  # fmt: skip
        _build(req, view2, policy, C)
