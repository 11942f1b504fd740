"""Translates the entries of a source table to the ids that are written, through maps where there are some."""

import triton
import triton.language as tl

from .args import ID_MAX, INT32_MAX
from .integers import quotient, remainder
from .shards import local_slot, source_position


@triton.jit
def place_in_source(at, row, req, C: tl.constexpr):
    """Returns where in its source row an item's first token is, given its position (not negative)."""
    if C.TOPK > 0:  # a draft branch's own are behind those of the branches before it
        at += tl.where(at >= row.branch_start, row.branch_shift, 0)
    return source_position(at, req, C)


@triton.jit
def _place_in_page(at, row, req, C: tl.constexpr):
    """Returns the place of that token in its source page."""
    return remainder(place_in_source(at, row, req, C), C.SOURCE_PAGE_SIZE)


@triton.jit
def _look_up(at, valid, map_ptr, map_len):
    """Returns map[at], which of them were found, and which are past the map."""
    inside = valid & (at < map_len)
    target = tl.load(map_ptr + at, mask=inside, other=-1)
    found = target >= 0
    if target.dtype == tl.int64:
        found = found & (target < ID_MAX)
    return target, found, valid & (at >= map_len)


@triton.jit
def _page_of_entry(entry, valid, MAPS_IDS: tl.constexpr, view, C: tl.constexpr):
    """Returns the page that a source page is a part of, in the dtype of the entry."""
    if not C.SOURCE_IS_GLOBAL:
        page = quotient(entry, C.PAGE_SIZE // C.SOURCE_PAGE_SIZE)  # of a negative entry it is not used
    elif C.PAGE_SIZE % C.SHARD_INTERLEAVE == 0:
        page = quotient(entry, C.PAGE_SIZE * C.SHARD_SIZE)  # of whole rounds: one division does
    else:
        page = quotient(local_slot(entry, C), C.PAGE_SIZE)
    if entry.dtype == tl.int64 and (
        C.SOURCE_IS_GLOBAL or MAPS_IDS or view.out_ptr.dtype.element_ty == tl.int64
    ):
        valid = valid & (entry < ID_MAX)  # in an int32 output no such id fits anyway
    return page, valid


@triton.jit
def _page_in_entry(entry, valid, at, row, req, view, C: tl.constexpr):
    """Returns the page of an item, which is a part of its source page, in the dtype of the output."""
    UNITS: tl.constexpr = C.SOURCE_PAGE_SIZE // C.PAGE_SIZE
    page = entry.to(view.out_ptr.dtype.element_ty) * UNITS
    unit = quotient(_place_in_page(at, row, req, C), C.PAGE_SIZE)
    page += unit
    if view.out_ptr.dtype.element_ty == tl.int32:
        valid = valid & (entry <= INT32_MAX // UNITS)  # what fits in the output
        if UNITS & (UNITS - 1) != 0:  # of the last source page, only the first pages fit
            valid = valid & ((entry < INT32_MAX // UNITS) | (unit <= INT32_MAX % UNITS))
    elif entry.dtype == tl.int64:
        valid = valid & (entry < ID_MAX)
    return page, valid


@triton.jit
def _page_of_token(entry, valid, at, row, req, view, MAPS_IDS: tl.constexpr, C: tl.constexpr):
    """Returns the page of an item's first token, looked up in the maps of tokens and of other pages."""
    outside = entry != entry
    token = entry
    if entry.dtype == tl.int64:
        valid = valid & (entry < ID_MAX)
    if C.SOURCE_IS_GLOBAL:  # of single tokens
        token = local_slot(token, C)
    elif C.SOURCE_PAGE_SIZE > 1:
        token = token.to(tl.int64) * C.SOURCE_PAGE_SIZE + _place_in_page(at, row, req, C)
    if view.token_map_ptr is not None:
        token, valid, outside = _look_up(token, valid, view.token_map_ptr, view.token_map_len)
    if view.page_map_ptr is not None and not MAPS_IDS:
        place = remainder(token, C.MAP_PAGE_SIZE)
        page, valid, past = _look_up(
            quotient(token, C.MAP_PAGE_SIZE), valid, view.page_map_ptr, view.page_map_len
        )
        token = page.to(tl.int64) * C.MAP_PAGE_SIZE + place
        outside = outside | past
    return quotient(token, C.PAGE_SIZE), valid, outside


@triton.jit
def find_ids(entry, at, live, row, req, view, C: tl.constexpr):
    """Returns the ids of source entries, which of them there are, and which of them are past a map.

    In the dtype of the entry or of the map where that holds them: of 64 bits, a lane has twice the work.
    """
    # whether a page of the map is one of the output, so that what it says is the id
    MAPS_IDS: tl.constexpr = view.page_map_ptr is not None and C.MAP_PAGE_SIZE == C.PAGE_SIZE
    HAS_MAP: tl.constexpr = view.token_map_ptr is not None or view.page_map_ptr is not None
    IS_WHOLE: tl.constexpr = C.PAGE_SIZE % C.SOURCE_PAGE_SIZE == 0
    valid = entry >= 0
    outside = entry != entry  # none
    if IS_WHOLE and view.token_map_ptr is None and (MAPS_IDS or not HAS_MAP):
        page, valid = _page_of_entry(entry, valid, MAPS_IDS, view, C)
    elif not HAS_MAP:
        page, valid = _page_in_entry(entry, valid, at, row, req, view, C)
    else:
        page, valid, outside = _page_of_token(entry, valid & live, at, row, req, view, MAPS_IDS, C)
    if MAPS_IDS:
        page, valid, past = _look_up(page, valid & live, view.page_map_ptr, view.page_map_len)
        outside = outside | past
    return page, valid, outside
