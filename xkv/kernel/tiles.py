"""The kernel's blocks: reading the entries of one block of a row, and writing its ids."""

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
def _where(block, first, end, items, policy, C: tl.constexpr):
    """The block's first token, its items, and which of them the row has a token for."""
    done = block * C.NUM_PAGE_PER_BLOCK
    # Scalars first: what is left to the vectors is a compare, a load, a select and a store an item.
    at = first + done * C.PAGE_SIZE
    j = tl.arange(0, C.NUM_PAGE_PER_BLOCK)
    live = j < items - done
    if C.FORM == SLOTS or policy.min_len is not None:  # items may stand for tokens that the row lacks
        live = live & (at + j * C.PAGE_SIZE >= 0) & (at + j * C.PAGE_SIZE < end)
    return at, j, live


@triton.constexpr_function
def _lane_bytes(this, other):
    """Bytes of an access to entries of a type, where a lane takes 16 bytes of the wider type at a time."""
    return 16 * this.primitive_bitwidth // max(this.primitive_bitwidth, other.primitive_bitwidth)


@triton.jit
def load_block(block, row, first, end, items, req, view, policy, C: tl.constexpr):
    """Reads one block of a row's source entries; -1 where the row has no token."""
    at, j, live = _where(block, first, end, items, policy, C)
    src_row = req.src_ptr + row.to(tl.int64) * req.src_stride
    if C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0:
        source = src_row + at // C.SOURCE_PAGE_SIZE + j * (C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)
    else:
        source = src_row + (at + j * C.PAGE_SIZE) // C.SOURCE_PAGE_SIZE
    if C.LANE_16:
        begin = src_row + at // C.SOURCE_PAGE_SIZE
        whole = items - block * C.NUM_PAGE_PER_BLOCK >= C.NUM_PAGE_PER_BLOCK
        if C.FORM == SLOTS or policy.min_len is not None:
            whole = whole & (at >= 0) & (at + (C.NUM_PAGE_PER_BLOCK - 1) * C.PAGE_SIZE < end)
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
def store_block(b, block, base, first, end, items, entry, worst, req, view, policy, C: tl.constexpr):
    """Writes one block of row b; ``base`` counts the items of the rows before it in the stream.

    Returns ``worst``, the least word to report at each place, with this block's.
    """
    at, j, live = _where(block, first, end, items, policy, C)
    done = block * C.NUM_PAGE_PER_BLOCK
    written = items
    if C.FORM == TABLE:
        out_row = view.out_ptr + b * view.out_stride.to(tl.int64)
        written = written_entries(b, items, req, view, policy, C)
    else:
        out_row = view.out_ptr + base
        items = clip(view.capacity - base, 0, items).to(tl.int32)
        if C.SUMS_GIVEN:
            items = tl.where(base < 0, 0, items)  # nobody vouches for what was given
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
        bad = live & ~have & (outside | (policy.expect_all != 0))
        reason = tl.where(outside, BAD_MAP, BAD_ID)
        if C.REPORT_ONCE:
            worst = tl.where(bad, tl.minimum(worst, b * 256 + reason), worst)
        else:
            report(policy, b + j * 0, reason, bad, C)
    stand_in = policy.missing_id
    if C.TAIL:
        stand_in = tl.where(j < items - done, stand_in, policy.tail_fill)
    value = tl.where(have, page, stand_in.to(page.dtype)).to(view.out_ptr.dtype.element_ty)
    out = out_row + done
    room = j < written - done
    if C.LANE_16:
        WIDTH: tl.constexpr = _lane_bytes(view.out_ptr.dtype.element_ty, req.src_ptr.dtype.element_ty)
        if (written - done >= C.NUM_PAGE_PER_BLOCK) & (out.to(tl.int64) % WIDTH == 0):
            tl.store(tl.multiple_of(out, WIDTH) + j, value)
        else:
            tl.store(out + j, value, mask=room)
    else:
        tl.store(out + j, value, mask=room)
    return worst
