"""The tile scheduler: which leftover tiles each of the programs past the batch writes.

Leftover tiles, those beyond ``own_tiles`` of each row, are numbered from 0 over the batch, and so are these
programs. There is no counter in memory: each finds its tiles from the lengths, a chunk of BATCH_BLOCK rows at
a time.

* Tables: program p takes the tiles p, p + programs, ... Programs that run at the same time write adjacent
  tiles, and nothing is counted in advance.
* Streams: program p takes a contiguous range. The lengths of the rows before its own have to be summed
  anyway, which also gives the number of tiles, and within a range a search is needed once per row. In tables
  this would cost more: programs that run at the same time would write far apart.
"""

import triton
import triton.language as tl

from .args import TABLE
from .rows import load_row, row_offset, tiles_left


@triton.jit
def count_tiles(zero, req, view, policy, C: tl.constexpr):
    """Returns the number of leftover tiles, in the dtype of ``zero``."""
    total = zero
    for chunk in range(0, req.batch, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        items = load_row(i, i < req.batch, req, view, policy, C).items
        total += tl.sum(tiles_left(i, items, req, view, policy, C) + zero, 0)
    return total


@triton.jit
def split_evenly(pid, num_programs, num_tiles):
    """Returns begin and end of the program's contiguous range of tiles. Sizes differ by at most one."""
    per_program = num_tiles // num_programs
    remainder = num_tiles - per_program * num_programs
    tile_idx = pid * per_program + tl.minimum(pid, remainder)
    return tile_idx, tile_idx + per_program + (pid < remainder).to(tl.int32)


@triton.jit
def find_tile(tile_idx, num_programs, num_tiles, req, view, policy, C: tl.constexpr):
    """Finds leftover tile ``tile_idx``: returns its row, its index in it, the `row_offset`, and ``has_more``.

    A stream has ``num_tiles`` of them. Those of a table are not counted: the row is ``batch`` if there is no
    such tile, and ``has_more`` is False only if tile ``tile_idx + num_programs`` is known not to exist.
    """
    b = req.batch
    idx = req.batch * 0
    offset = req.batch.to(tl.int64) * 0
    seen = tile_idx * 0
    chunk = req.batch * 0
    searching = chunk < req.batch
    has_more = searching
    while searching:
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        # in tables no offsets are summed, so row indices need no check here: a tile of a bad row is empty
        items = load_row(i, i < req.batch, req, view, policy, C, C.FORM == TABLE).items
        leftover = tiles_left(i, items, req, view, policy, C) + seen * 0  # in the dtype of the sum
        if C.FORM == TABLE:
            chunk_end = seen + tl.sum(leftover, 0)
        else:
            chunk_end = num_tiles
            if chunk + C.BATCH_BLOCK < req.batch:
                chunk_end = seen + tl.sum(leftover, 0)
        searching = (tile_idx >= chunk_end) & (chunk + C.BATCH_BLOCK < req.batch)
        has_more = (tile_idx + num_programs < chunk_end) | (chunk + C.BATCH_BLOCK < req.batch)
        is_before = leftover >= 0
        if tile_idx < chunk_end:
            tile_ends = seen + tl.cumsum(leftover, 0)
            is_before = tile_ends <= tile_idx
            b = chunk + tl.sum(is_before.to(tl.int32), 0)
            idx = (tile_idx - tl.max(tl.where(is_before, tile_ends, seen), 0)).to(tl.int32) + policy.own_tiles
        if C.FORM != TABLE and not C.INDPTR_IS_INPUT:
            offset += tl.sum(tl.where(is_before, items, 0).to(tl.int64), 0)
        seen = chunk_end
        chunk += C.BATCH_BLOCK
    if C.INDPTR_IS_INPUT:
        offset = row_offset(b, req, view, policy, C)
    return b, idx, offset, has_more
