"""Slots where each query token's row can be told from its index: tiles of query tokens, of any rows.

Of ``query_len`` tokens in every row, token t is of row ``t // query_len``. Of given positions, it is of the
row whose range of ``query_start_loc`` has it: in a batch of decodes row t, which needs no search, otherwise
it is searched for. A tile has tokens of many short rows, so that a decode step takes one program, not one a
row; and of a long row it has a part, so that all programs share it.
"""

import triton
import triton.language as tl

from .args import INT32_MAX, Row, Tile
from .integers import quotient, quotient_of
from .reports import report_first
from .rows import load_row
from .tiles import load_entries, store_tile


@triton.jit
def _find_rows(t, mask, req, view):
    """Returns the row of each query token. Sums that decrease may lead to a row that has not got it."""
    if req.positions_ptr is None:
        b = quotient_of(t, tl.maximum(req.query_len, 1))
    else:
        b = tl.minimum(t, req.batch - 1)
        begin = tl.load(view.indptr_ptr + b, mask=mask, other=0)
        end = tl.load(view.indptr_ptr + b + 1, mask=mask, other=0)
        is_found = (begin <= t) & (t < end)
        if tl.max((mask & ~is_found).to(tl.int32), 0) > 0:
            # binary search for the last row that begins at the token or before it
            first = t * 0
            size = req.batch
            while size > 1:
                half = size // 2
                begin = tl.load(view.indptr_ptr + first + half, mask=mask, other=0)
                first = tl.where(begin <= t, first + half, first)
                size -= half
            b = tl.where(is_found, b, first)
    return b


@triton.jit
def _load_tile(at, num_tokens, limit, req, view, policy, C: tl.constexpr):
    """Returns the `Tile` of the query tokens from ``at`` on, each a row of its own, its loads issued."""
    j = tl.arange(0, C.NUM_PAGE_PER_BLOCK)
    t = at + j
    mask = (t < num_tokens) & (req.batch > 0)
    b = _find_rows(t, mask, req, view)
    row = load_row(b, mask, req, view, policy, C)
    if req.positions_ptr is not None:
        first = at
        mask = mask & (t >= row.first) & (t < row.first + row.items)
    else:
        first = row.first + (t - b * req.query_len) - j  # each token's position is that of the row's item j
    items = tl.where(mask & (t < limit), C.NUM_PAGE_PER_BLOCK, 0)
    row = Row(
        row.source, first, row.start, row.end, items, row.sink_items, row.kv_len, row.query, row.reason,
        row.branch_start, row.branch_shift, row.past, row.known,
    )  # fmt: skip
    entries = load_entries(0, row, req, view, policy, C)
    return Tile(b, 0, row, entries, req.batch.to(tl.int64) * 0 + at)


@triton.jit
def write_token_tiles(pid, num_programs, limit, req, view, policy, C: tl.constexpr):
    """Writes the slots of every ``num_programs``-th tile of query tokens, from tile ``pid`` on.

    Those of tokens from ``limit`` on are not written.
    """
    if req.positions_ptr is not None:
        num_tokens = tl.minimum(req.positions_len, view.capacity)
    else:
        num_tokens = tl.minimum(req.batch.to(tl.int64) * req.query_len, view.capacity).to(tl.int32)
    first_error = tl.arange(0, C.NUM_PAGE_PER_BLOCK) * 0 + INT32_MAX
    num_tiles = quotient(num_tokens + C.NUM_PAGE_PER_BLOCK - 1, C.NUM_PAGE_PER_BLOCK)
    for idx in range(pid, num_tiles, num_programs):
        tile = _load_tile(idx * C.NUM_PAGE_PER_BLOCK, num_tokens, limit, req, view, policy, C)
        first_error = store_tile(tile, first_error, req, view, policy, C)
    if C.REDUCE_STATUS and policy.status_ptr is not None:
        report_first(policy, first_error)
