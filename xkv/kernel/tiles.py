"""Loads the source entries of a tile, and stores their ids."""

import triton
import triton.language as tl

from .args import BAD_ID, BAD_MAP, BAD_QUERY, INT32_MAX, SLOTS, TABLE, Tile
from .ids import find_ids, place_in_source
from .integers import clip, is_index, quotient, remainder
from .reports import report
from .rows import load_int, written_entries
from .shards import local_length


@triton.jit
def _tile_items(idx, row, req, view, policy, C: tl.constexpr):
    """Returns the tile's first token, its item indices, their tokens, and which of them have one."""
    tile_start = idx * C.NUM_PAGE_PER_BLOCK
    # Scalars first, so that the vector work per item is a compare, a load, a select and a store.
    pos = row.first + tile_start * C.PAGE_SIZE
    j = tl.arange(0, C.NUM_PAGE_PER_BLOCK)
    live = j < row.items - tile_start
    token = pos + j * C.PAGE_SIZE
    if C.HAS_SINKS and not C.WINDOW_IS_ABSOLUTE:
        item = tile_start + j
        behind = row.first + (item - row.sink_items) * C.PAGE_SIZE
        token = tl.where(item < row.sink_items, item * C.PAGE_SIZE, behind)
    if req.positions_ptr is not None:
        token = load_int(req.positions_ptr, req.positions_stride, token, live)
    if C.CLAMPS_TAIL:  # what is past the row's end is its first token, if it has a row
        token = tl.where(token < row.end, token, 0)
        live = live & (row.source >= 0) & (req.src_tokens > 0)
    elif C.FORM == SLOTS or policy.min_len is not None:  # some items have no token
        live = live & (token >= 0) & (token < row.end)
    if C.WINDOW_IS_ABSOLUTE:  # nor have those before the window
        is_shown = token > row.start - C.PAGE_SIZE
        if C.HAS_SINKS:
            is_shown = is_shown | (token < local_length(token * 0 + view.sink, req, C))
        live = live & is_shown
    if C.FORM == SLOTS and C.SHARD_SIZE > 1:  # other ranks' tokens keep their places
        live = live & (remainder(quotient(token, C.SHARD_INTERLEAVE), C.SHARD_SIZE) == req.shard_rank)
    return pos, j, token, live


@triton.constexpr_function
def _lane_bytes(this, other):
    """Bytes of ``this`` dtype that a lane accesses at a time, if it takes 16 bytes of the wider dtype."""
    return 16 * this.primitive_bitwidth // max(this.primitive_bitwidth, other.primitive_bitwidth)


@triton.jit
def load_entries(idx, row, req, view, policy, C: tl.constexpr):
    """Loads the source entries of tile ``idx`` of a row; -1 where the row has no token."""
    pos, j, token, live = _tile_items(idx, row, req, view, policy, C)
    src_row = req.src_ptr + row.source.to(tl.int64) * req.src_stride
    if C.SHARD_SIZE > 1 or req.positions_ptr is not None or C.HAS_SINKS or C.TOPK > 0 or C.CLAMPS_TAIL:
        source = src_row + quotient(place_in_source(token, row, req, C), C.SOURCE_PAGE_SIZE)
    elif C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0:
        # a division: in an extension a lane's row may begin before position 0 of its tile
        source = src_row + pos // C.SOURCE_PAGE_SIZE + j * (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)
    else:
        source = src_row + quotient(token, C.SOURCE_PAGE_SIZE)
    if C.VEC_16B:
        begin = src_row + pos // C.SOURCE_PAGE_SIZE
        full_tile = row.items - idx * C.NUM_PAGE_PER_BLOCK >= C.NUM_PAGE_PER_BLOCK
        if C.FORM == SLOTS or policy.min_len is not None:
            full_tile = full_tile & (pos >= 0) & (pos + (C.NUM_PAGE_PER_BLOCK - 1) * C.PAGE_SIZE < row.end)
        if C.WINDOW_IS_ABSOLUTE:
            full_tile = full_tile & (pos > row.start - C.PAGE_SIZE)
        WIDTH: tl.constexpr = _lane_bytes(req.src_ptr.dtype.element_ty, view.out_ptr.dtype.element_ty)
        if full_tile & (begin.to(tl.int64) % WIDTH == 0):
            entry = tl.load(tl.multiple_of(begin, WIDTH) + j)
        else:
            entry = tl.load(source, mask=live, other=-1)
        return entry
    elif (
        C.FORM != SLOTS
        and policy.min_len is None
        and not C.HAS_PADDING
        and not C.WINDOW_IS_ABSOLUTE
        and not C.CLAMPS_TAIL
    ):
        return tl.load(source, mask=live)  # only live items are stored
    else:
        return tl.load(source, mask=live, other=-1)


@triton.jit
def store_tile(tile, first_error, req, view, policy, C: tl.constexpr):
    """Translates a tile's entries and stores the ids.

    Returns ``first_error``, the smallest status word of each item position so far, updated with this tile's.
    """
    _, j, at, live = _tile_items(tile.idx, tile.row, req, view, policy, C)
    tile_start = tile.idx * C.NUM_PAGE_PER_BLOCK
    entry, items = tile.entries, tile.row.items
    num_written = items
    if C.FORM == TABLE:
        out_row = view.out_ptr + tile.b * view.out_stride.to(tl.int64) + tile.row_offset
        num_written = written_entries(tile.b, items, tile.row.known, req, view, policy, C)
    else:
        out_row = view.out_ptr + tile.row_offset
        items = clip(view.capacity - tile.row_offset, 0, items).to(tl.int32)
        if C.INDPTR_IS_INPUT:
            items = tl.where(tile.row_offset < 0, 0, items)  # an input, so not trusted
        num_written = items
        live = live & (j < items - tile_start)
    page, valid, outside = find_ids(entry, at, live, tile.row, req, view, C)
    if page.dtype == tl.int64 and view.out_ptr.dtype.element_ty == tl.int32:
        valid = valid & (page <= INT32_MAX)
    if policy.status_ptr is not None:
        bad = live & ~valid & (outside | (policy.report_missing != 0))
        reason = tl.where(outside, BAD_MAP, BAD_ID)
        if req.positions_ptr is not None:
            misplaced = (j < items - tile_start) & ((at < 0) | (at >= tile.row.end)) & (tile.row.source >= 0)
            if req.max_position is not None:
                misplaced = misplaced & (at < req.max_position)
            bad = bad | misplaced
            reason = tl.where(misplaced, BAD_QUERY, reason)
        if C.REDUCE_STATUS:
            first_error = tl.where(bad, tl.minimum(first_error, tile.b * 256 + reason), first_error)
        else:
            report(policy, tile.b + j * 0, reason, bad, C)
    fallback = policy.missing_id
    if C.HAS_PADDING:
        fallback = tl.where(j < items - tile_start, fallback, policy.pad_value)
    value = tl.where(valid, page, fallback.to(page.dtype)).to(view.out_ptr.dtype.element_ty)
    out = out_row + tile_start
    store_mask = j < num_written - tile_start
    if view.query_seqlens_ptr is not None:
        seen = tl.where((at >= 0) & (at < tile.row.end), local_length(at + 1, req, C), 0)
        tl.store(view.query_seqlens_ptr + tile.row_offset + tile_start + j, seen, mask=store_mask)
    if C.VEC_16B:
        WIDTH: tl.constexpr = _lane_bytes(view.out_ptr.dtype.element_ty, req.src_ptr.dtype.element_ty)
        if (num_written - tile_start >= C.NUM_PAGE_PER_BLOCK) & (out.to(tl.int64) % WIDTH == 0):
            tl.store(tl.multiple_of(out, WIDTH) + j, value)
        else:
            tl.store(out + j, value, mask=store_mask)
    else:
        tl.store(out + j, value, mask=store_mask)
    return first_error


@triton.jit
def write_row_tiles(first_tile, end, stride, first_error, req, view, policy, C: tl.constexpr):
    """Writes tiles of one row: ``first_tile``, and every ``stride``-th after it before tile ``end``.

    Returns ``first_error``.
    """
    b, idx, row, entries, offset = first_tile
    while idx < end:
        next_idx = idx + stride
        next_entries = entries
        if next_idx < end:  # prefetch: the next tile's loads are issued before this tile is stored
            next_entries = load_entries(next_idx, row, req, view, policy, C)
        first_error = store_tile(Tile(b, idx, row, entries, offset), first_error, req, view, policy, C)
        idx, entries = next_idx, next_entries
    return first_error


@triton.jit
def translate_slots(pid, num_programs, req, view, C: tl.constexpr):
    """Writes the slots of ``out_cache_loc`` in the view's pool, and zeros from ``loc_len`` on.

    The last program writes the first of them, as the first one has the sums.
    """
    for at in range((num_programs - 1 - pid) * C.BATCH_BLOCK, req.loc_out_len, num_programs * C.BATCH_BLOCK):
        i = at + tl.arange(0, C.BATCH_BLOCK)
        is_given = i < req.loc_len
        slot = tl.load(req.loc_ptr + i, mask=is_given, other=-1)
        inside = is_index(slot, view.token_map_len)
        slot = tl.load(view.token_map_ptr + slot, mask=inside, other=-1)
        if slot.dtype == tl.int64 and req.loc_out_ptr.dtype.element_ty == tl.int32:
            slot = tl.where(slot <= INT32_MAX, slot, -1)
        slot = tl.where(is_given, tl.maximum(slot, -1), 0)
        tl.store(req.loc_out_ptr + i, slot.to(req.loc_out_ptr.dtype.element_ty), mask=i < req.loc_out_len)
