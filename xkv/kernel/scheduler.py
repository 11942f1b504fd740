"""The tile scheduler: which leftover tiles each of the programs past the batch writes.

Leftover tiles, those beyond ``own_tiles`` of each row, are numbered from 0 over the batch. Each program takes
a contiguous range of them and finds it from the lengths, a chunk of BATCH_BLOCK rows at a time: there is no
counter in memory, and a row is searched once in a range.
"""

import triton
import triton.language as tl

from .args import TABLE, Chunk
from .rows import load_row, row_offset, tiles_left


@triton.jit
def load_chunk(first_row, seen, offset, req, view, policy, C: tl.constexpr):
    """Loads a `Chunk`, given the leftover tiles and the items of all rows before it."""
    i = first_row + tl.arange(0, C.BATCH_BLOCK)
    items = load_row(i, i < req.batch, req, view, policy, C).items
    leftover = tiles_left(i, items, req, view, policy, C) + seen * 0  # in the dtype of the sum
    return Chunk(first_row, seen, seen + tl.sum(leftover, 0), leftover, items, offset)


@triton.jit
def count_tiles(chunk, req, view, policy, C: tl.constexpr):
    """Returns the number of leftover tiles, given the first chunk."""
    total = chunk.end
    for first_row in range(C.BATCH_BLOCK, req.batch, C.BATCH_BLOCK):
        total = load_chunk(first_row, total, chunk.offset, req, view, policy, C).end
    return total


@triton.jit
def split_evenly(pid, num_programs, num_tiles):
    """Returns begin and end of the program's contiguous range of tiles. Sizes differ by at most one."""
    per_program = num_tiles // num_programs
    remainder = num_tiles - per_program * num_programs
    tile_idx = pid * per_program + tl.minimum(pid, remainder)
    return tile_idx, tile_idx + per_program + (pid < remainder).to(tl.int32)


@triton.jit
def find_tile(tile_idx, chunk, req, view, policy, C: tl.constexpr):
    """Finds leftover tile ``tile_idx``, which is in ``chunk`` or a later one.

    Returns its chunk, its row, its index in the row, and the `row_offset`.
    """
    while (tile_idx >= chunk.end) & (chunk.first_row + C.BATCH_BLOCK < req.batch):
        offset = chunk.offset
        if C.FORM != TABLE and not C.INDPTR_IS_INPUT:
            offset += tl.sum(chunk.items.to(tl.int64), 0)
        chunk = load_chunk(chunk.first_row + C.BATCH_BLOCK, chunk.end, offset, req, view, policy, C)
    tile_ends = chunk.seen + tl.cumsum(chunk.leftover, 0)
    is_before = tile_ends <= tile_idx
    b = chunk.first_row + tl.sum(is_before.to(tl.int32), 0)
    idx = (tile_idx - tl.max(tl.where(is_before, tile_ends, chunk.seen), 0)).to(tl.int32) + policy.own_tiles
    offset = chunk.offset
    if C.INDPTR_IS_INPUT:
        offset = row_offset(b, req, view, policy, C)
    elif C.FORM != TABLE:
        offset += tl.sum(tl.where(is_before, chunk.items, 0).to(tl.int64), 0)
    return chunk, b, idx, offset
