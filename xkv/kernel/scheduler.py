"""The tile scheduler: which leftover tiles a program writes once it is done with its own.

The tiles that ``own_tiles`` leaves are numbered from 0 on over the batch. There is no counter in memory: each
program finds its tiles from the lengths, a chunk of BATCH_BLOCK rows at a time.

* Tables: program p takes the tiles p, p + programs, ... What is written at one time lies side by side, and
  nothing is counted before it is needed.
* Streams: program p takes a contiguous range. The rows before its own have to be summed up anyway, and the
  number of tiles falls out of that pass; within a range a search is needed only where a row begins. In tables
  this would cost more: the ranges lie far from what other programs write at that time.
"""

import triton
import triton.language as tl

from .args import TABLE
from .rows import load_row, row_offset, tiles_left


@triton.jit
def count_tiles(b, zero, req, view, policy, C: tl.constexpr):
    """The number of leftover tiles of a stream, in the type of ``zero``, and the `row_offset` of row b."""
    total = zero
    offset = req.batch.to(tl.int64) * 0
    for chunk in range(0, req.batch, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        items = load_row(i, i < req.batch, req, view, policy, C).items
        total += tl.sum(tiles_left(i, items, req, view, policy, C) + zero, 0)
        if not C.INDPTR_IS_INPUT:
            offset += tl.sum(tl.where(i < b, items, 0).to(tl.int64), 0)
    if C.INDPTR_IS_INPUT:
        offset = row_offset(b, req, view, policy, C)
    return total, offset


@triton.jit
def split_evenly(pid, num_programs, num_tiles):
    """The program's contiguous range of tiles: the first, and the end. Sizes differ by one tile at most."""
    each = num_tiles // num_programs
    odd = num_tiles - each * num_programs
    tile_idx = pid * each + tl.minimum(pid, odd)
    return tile_idx, tile_idx + each + (pid < odd).to(tl.int32)


@triton.jit
def find_tile(tile_idx, num_programs, num_tiles, req, view, policy, C: tl.constexpr):
    """Finds a leftover tile: its row, its index there, the `row_offset`, and whether more may come.

    A stream has ``num_tiles`` of them. A table's are not counted: the row is ``batch`` where there is no tile
    ``tile_idx``, and more may come unless tile ``tile_idx + num_programs`` is known not to exist.
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
        # where offsets need not be summed up, a row index need not be checked: a tile of a bad row is empty
        items = load_row(i, i < req.batch, req, view, policy, C, C.FORM == TABLE).items
        left = tiles_left(i, items, req, view, policy, C) + seen * 0  # as wide as their sum
        if C.FORM == TABLE:
            upto = seen + tl.sum(left, 0)
        else:
            upto = num_tiles
            if chunk + C.BATCH_BLOCK < req.batch:
                upto = seen + tl.sum(left, 0)
        searching = (tile_idx >= upto) & (chunk + C.BATCH_BLOCK < req.batch)
        has_more = (tile_idx + num_programs < upto) | (chunk + C.BATCH_BLOCK < req.batch)
        passed = left >= 0
        if tile_idx < upto:
            sums = seen + tl.cumsum(left, 0)
            passed = sums <= tile_idx
            b = chunk + tl.sum(passed.to(tl.int32), 0)
            idx = (tile_idx - tl.max(tl.where(passed, sums, seen), 0)).to(tl.int32) + policy.own_tiles
        if C.FORM != TABLE and not C.INDPTR_IS_INPUT:
            offset += tl.sum(tl.where(passed, items, 0).to(tl.int64), 0)
        seen = upto
        chunk += C.BATCH_BLOCK
    if C.INDPTR_IS_INPUT:
        offset = row_offset(b, req, view, policy, C)
    return b, idx, offset, has_more
