"""A tile of one row: its source entries are loaded, translated to ids, and stored."""

import triton
import triton.language as tl

from .args import BAD_ID, BAD_MAP, ID_MAX, INT32_MAX, SLOTS, TABLE
from .rows import clip, report, written_entries


@triton.jit
def _translate(token, have, map_ptr, map_len, PAGE: tl.constexpr):
    """Token -> map[token // PAGE] * PAGE + token % PAGE; which were found, which lie outside."""
    page = token // PAGE
    inside = have & (page < map_len)
    target = tl.load(map_ptr + page, mask=inside, other=-1).to(tl.int64)
    found = inside & (target >= 0) & (target < ID_MAX)
    return tl.where(found, target, 0) * PAGE + token % PAGE, found, have & (page >= map_len)


@triton.jit
def _tile_items(idx, row, policy, C: tl.constexpr):
    """The tile's first token, its items, and which of them the row has a token for."""
    done = idx * C.NUM_PAGE_PER_BLOCK
    # Scalars first: what is left to the vectors is a compare, a load, a select and a store an item.
    at = row.first + done * C.PAGE_SIZE
    j = tl.arange(0, C.NUM_PAGE_PER_BLOCK)
    live = j < row.items - done
    if C.FORM == SLOTS or policy.min_len is not None:  # items may stand for tokens that the row lacks
        live = live & (at + j * C.PAGE_SIZE >= 0) & (at + j * C.PAGE_SIZE < row.end)
    return at, j, live


@triton.constexpr_function
def _lane_bytes(this, other):
    """Bytes of an access to entries of a type, where a lane takes 16 bytes of the wider type at a time."""
    return 16 * this.primitive_bitwidth // max(this.primitive_bitwidth, other.primitive_bitwidth)


@triton.jit
def load_entries(idx, row, req, view, policy, C: tl.constexpr):
    """Loads the source entries of tile ``idx`` of a row; -1 where the row has no token."""
    at, j, live = _tile_items(idx, row, policy, C)
    src_row = req.src_ptr + row.source.to(tl.int64) * req.src_stride
    if C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0:
        source = src_row + at // C.SOURCE_PAGE_SIZE + j * (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)
    else:
        source = src_row + (at + j * C.PAGE_SIZE) // C.SOURCE_PAGE_SIZE
    if C.VEC_16B:
        begin = src_row + at // C.SOURCE_PAGE_SIZE
        whole = row.items - idx * C.NUM_PAGE_PER_BLOCK >= C.NUM_PAGE_PER_BLOCK
        if C.FORM == SLOTS or policy.min_len is not None:
            whole = whole & (at >= 0) & (at + (C.NUM_PAGE_PER_BLOCK - 1) * C.PAGE_SIZE < row.end)
        WIDTH: tl.constexpr = _lane_bytes(req.src_ptr.dtype.element_ty, view.out_ptr.dtype.element_ty)
        if whole & (begin.to(tl.int64) % WIDTH == 0):
            entry = tl.load(tl.multiple_of(begin, WIDTH) + j)
        else:
            entry = tl.load(source, mask=live, other=-1)
        return entry
    elif C.FORM != SLOTS and policy.min_len is None and not C.TAIL:
        return tl.load(source, mask=live)  # nothing else is stored: no need to fill it in
    else:
        return tl.load(source, mask=live, other=-1)


@triton.jit
def store_tile(tile, first_error, req, view, policy, C: tl.constexpr):
    """Translates a tile's entries and stores the ids.

    Returns ``first_error``, the smallest status word so far of each lane, with this tile's.
    """
    at, j, live = _tile_items(tile.idx, tile.row, policy, C)
    done = tile.idx * C.NUM_PAGE_PER_BLOCK
    entry, items = tile.entries, tile.row.items
    written = items
    if C.FORM == TABLE:
        out_row = view.out_ptr + tile.b * view.out_stride.to(tl.int64)
        written = written_entries(tile.b, items, req, view, policy, C)
    else:
        out_row = view.out_ptr + tile.row_offset
        items = clip(view.capacity - tile.row_offset, 0, items).to(tl.int32)
        if C.INDPTR_IS_INPUT:
            items = tl.where(tile.row_offset < 0, 0, items)  # nobody vouches for what was given
        written = items
        live = live & (j < items - done)
    have = entry >= 0
    outside = j < 0
    if C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0 and view.token_map_ptr is None and view.page_map_ptr is None:
        page = entry // (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)  # the formula, no wider than an id
        if entry.dtype == tl.int64 and view.out_ptr.dtype.element_ty == tl.int64:
            have = have & (entry < ID_MAX)  # in int32 outputs no such id fits anyway
    elif view.token_map_ptr is None and view.page_map_ptr is None:
        UNITS: tl.constexpr = C.SOURCE_PAGE_SIZE // C.PAGE_SIZE
        page = entry.to(view.out_ptr.dtype.element_ty) * UNITS  # the formula, as wide as the output
        page += (at + j * C.PAGE_SIZE) % C.SOURCE_PAGE_SIZE // C.PAGE_SIZE
        if view.out_ptr.dtype.element_ty == tl.int32:
            have = have & (entry <= INT32_MAX // UNITS)  # what fits in the output
        elif entry.dtype == tl.int64:
            have = have & (entry < ID_MAX)
    else:
        have = have & live & (entry.to(tl.int64) < ID_MAX)
        token = tl.where(have, entry, 0).to(tl.int64) * C.SOURCE_PAGE_SIZE
        token += (at + j * C.PAGE_SIZE) % C.SOURCE_PAGE_SIZE
        if view.token_map_ptr is not None:
            token, have, lost = _translate(token, have, view.token_map_ptr, view.token_map_len, 1)
            outside = outside | lost
        if view.page_map_ptr is not None:
            token, have, lost = _translate(token, have, view.page_map_ptr, view.page_map_len, C.MAP_PAGE_SIZE)
            outside = outside | lost
        page = token // C.PAGE_SIZE
    if page.dtype == tl.int64 and view.out_ptr.dtype.element_ty == tl.int32:
        have = have & (page <= INT32_MAX)
    if policy.status_ptr is not None:
        bad = live & ~have & (outside | (policy.report_missing != 0))
        reason = tl.where(outside, BAD_MAP, BAD_ID)
        if C.REDUCE_STATUS:
            first_error = tl.where(bad, tl.minimum(first_error, tile.b * 256 + reason), first_error)
        else:
            report(policy, tile.b + j * 0, reason, bad, C)
    stand_in = policy.missing_id
    if C.TAIL:
        stand_in = tl.where(j < items - done, stand_in, policy.pad_value)
    value = tl.where(have, page, stand_in.to(page.dtype)).to(view.out_ptr.dtype.element_ty)
    out = out_row + done
    room = j < written - done
    if C.VEC_16B:
        WIDTH: tl.constexpr = _lane_bytes(view.out_ptr.dtype.element_ty, req.src_ptr.dtype.element_ty)
        if (written - done >= C.NUM_PAGE_PER_BLOCK) & (out.to(tl.int64) % WIDTH == 0):
            tl.store(tl.multiple_of(out, WIDTH) + j, value)
        else:
            tl.store(out + j, value, mask=room)
    else:
        tl.store(out + j, value, mask=room)
    return first_error
