"""Where a row begins in a stream, and the tile scheduler: who writes which leftover tiles.

Leftover tiles, those beyond ``own_tiles`` of each row, are numbered from 0 over the batch. Each program takes
a contiguous range of them and finds it from the lengths, a chunk of BATCH_BLOCK rows at a time: there is no
counter in memory, and a row is searched once in a range.
"""

import triton
import triton.language as tl

from .args import TABLE, Chunk
from .integers import quotient_of
from .rows import load_row, tiles_left


@triton.jit
def _sum_items(first, end, req, view, policy, C: tl.constexpr):
    """Sums the items of rows, a chunk at a time."""
    total = req.batch.to(tl.int64) * 0
    for chunk in range(first, end, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        total += tl.sum(load_row(i, i < end, req, view, policy, C).items.to(tl.int64), 0)
    return total


@triton.jit
def _sum_items_of_requests(end, req, view, policy, C: tl.constexpr):
    """Sums the items of all branches of the first requests.

    The branches of a request have as many each, if there is room for the last of them.
    """
    total = req.batch.to(tl.int64) * 0
    for chunk in range(0, end, C.BATCH_BLOCK):
        request = chunk + tl.arange(0, C.BATCH_BLOCK)
        last = load_row(request * C.TOPK + C.TOPK - 1, request < end, req, view, policy, C)
        items = last.items * C.TOPK
        if tl.max(tl.where(request < end, last.reason, 0), 0) > 0:
            items = last.items
            for branch in range(C.TOPK - 1):
                items += load_row(request * C.TOPK + branch, request < end, req, view, policy, C).items
        total += tl.sum(items.to(tl.int64), 0)
    return total


@triton.jit
def row_offset(b, req, view, policy, C: tl.constexpr):
    """Exclusive prefix sum of the items: where row b begins in the stream. 0 in tables."""
    total = req.batch.to(tl.int64) * 0
    if C.FORM != TABLE and C.INDPTR_IS_INPUT:
        total += tl.load(view.indptr_ptr + b, mask=b < req.batch, other=0)
    elif C.FORM != TABLE:
        end = tl.minimum(b, req.batch)
        first = end * 0
        if C.TOPK > 1:
            if end > C.BATCH_BLOCK:  # else one chunk has them all
                requests = end // C.TOPK
                total += _sum_items_of_requests(requests, req, view, policy, C)
                first = requests * C.TOPK
        total += _sum_items(first, end, req, view, policy, C)
    return total


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
    per_program = quotient_of(num_tiles, num_programs)
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
