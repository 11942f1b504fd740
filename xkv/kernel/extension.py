"""Steps that only extend a table: of each row the last entries, and what a record says that it lacks.

A record is four int32 words for each row of a table: its source row, the position that begins its first shown
page, its past, and its entries. Record 0 is the table's: how many rows the last build wrote.

Of C.EXTENDS rows each, one program writes the last entries, whatever the record says; a step adds few.
Another one reads the records: where one lacks entries before these, it writes the row from there on, or whole
if the record does not fit. Then it replaces the records. So no entry waits for a record, which left L2 while
the model ran, and no program reads a record that another writes.
"""

import triton
import triton.language as tl

from .. import params
from .args import INT32_MAX, RECORD_WORDS, Row, Tile
from .reports import report_first
from .rows import load_row, padded_end, row_tiles
from .shards import local_length
from .tiles import load_entries, store_tile, write_row_tiles

# What is written of each row whatever its record says, at most: a step that adds no more costs no more.
LAST_ENTRIES = tl.constexpr(params.LAST_ENTRIES)
LAST_TOKENS = tl.constexpr(params.LAST_TOKENS)


@triton.constexpr_function
def _of_several_rows(C):
    """The config of tiles that have the last entries of C.EXTENDS rows."""
    return C.replaced(NUM_PAGE_PER_BLOCK=C.EXTENDS * params.LAST_ENTRIES)


@triton.constexpr_function
def _without_padding(C):
    return C.replaced(HAS_PADDING=False)


@triton.jit
def _first_shown(row, C: tl.constexpr):
    """Returns the position that begins the first page shown, in an absolute layout too."""
    return row.start // C.PAGE_SIZE * C.PAGE_SIZE


@triton.jit
def _settled(past, row, req, C: tl.constexpr):
    """Returns the position up to which entries do not change while a past of the whole row does not."""
    end = local_length(past, req, C)
    if C.TOPK > 0:  # a branch's own pages move when the prefix grows
        end = tl.minimum(end, row.branch_start)
    return end


@triton.jit
def _entries_before(end, row, C: tl.constexpr):
    """Returns how many entries of a row begin before position ``end``, in whatever page it is."""
    pages = (tl.maximum(end - row.first, 0) + C.PAGE_SIZE - 1) // C.PAGE_SIZE
    return tl.where(end > row.first, pages + row.sink_items, 0)


@triton.jit
def store_records(b, mask, row, req, view, C: tl.constexpr):
    """Records what rows b of the table hold (a vector), now that they are written."""
    record = view.record_ptr + (b + 1) * RECORD_WORDS
    past = row.past
    if C.TOPK > 0:
        past = _settled(past, row, req, C)
    tl.store(record, row.source, mask=mask)
    tl.store(record + 1, _first_shown(row, C), mask=mask)
    tl.store(record + 2, tl.where(row.start < row.end, past, 0), mask=mask)
    tl.store(record + 3, row.items, mask=mask)


@triton.jit
def _load_record(b, mask, view):
    """Returns how many rows the last build wrote, and the words of the records of rows b."""
    record = view.record_ptr + (b + 1) * RECORD_WORDS
    num_rows = tl.load(view.record_ptr)
    source = tl.load(record, mask=mask, other=0)
    shown = tl.load(record + 1, mask=mask, other=0)
    past = tl.load(record + 2, mask=mask, other=0)
    items = tl.load(record + 3, mask=mask, other=0)
    return num_rows, source, shown, past, items


@triton.jit
def _known_entries(b, record, row, req, C: tl.constexpr):
    """Returns how many entries of rows b the table has already, and how many it had, with tokens or without.

    0 and -1 if the record does not fit: it is of another source row, of a longer past, of a table that began
    with another page, or of a row that the last build did not write.
    """
    num_rows, source, shown, past, items = record
    now_shown = _first_shown(row, C)
    known = tl.minimum(_entries_before(_settled(past, row, req, C), row, C), tl.minimum(items, row.items))
    fits = (b < num_rows) & (source == row.source) & (past <= row.past)
    if C.WINDOW_IS_ABSOLUTE:  # what the window has left, or shows again, is written from there on
        changed = tl.minimum(shown, now_shown) // C.PAGE_SIZE
        known = tl.where(shown == now_shown, known, tl.minimum(known, changed))
    else:
        fits = fits & (shown == now_shown)
    return tl.where(fits, known, 0), tl.where(fits, items, -1)


@triton.jit
def _first_of_last(row, req, C: tl.constexpr):
    """Returns the first of the last entries of a row."""
    entry = _entries_before(_settled(row.past, row, req, C) - LAST_TOKENS, row, C)
    entry = tl.maximum(tl.maximum(entry, row.sink_items), row.items - LAST_ENTRIES)
    return tl.minimum(entry, row.items)


@triton.jit
def _from_entry(entry, row, C: tl.constexpr):
    """Returns a row without its entries before ``entry``, which is 0 or behind the sinks."""
    behind = (entry - row.sink_items) * C.PAGE_SIZE
    return Row(
        row.source, row.first + behind, row.start, row.end, row.items - entry, row.sink_items * 0, row.kv_len,
        row.query, row.reason, row.branch_start, row.branch_shift, row.past, entry,
    )  # fmt: skip


@triton.jit
def _of_items(items, row):
    """Returns a row's first so many entries."""
    return Row(
        row.source, row.first, row.start, row.end, items, row.sink_items, row.kv_len, row.query, row.reason,
        row.branch_start, row.branch_shift, row.past, row.known,
    )  # fmt: skip


@triton.jit
def _value_of(is_lane, values):
    """Returns the value of the one lane that it is."""
    return tl.sum(tl.where(is_lane, values, 0), 0)


@triton.jit
def _write_before(b, known, first, req, view, policy, C: tl.constexpr):
    """Writes the entries of row b from its first unknown one to those that were written already."""
    W: tl.constexpr = _without_padding(C)
    row = load_row(b, b < req.batch, req, view, policy, C)
    if known > 0:
        row = _from_entry(known, row, C)
    row = _of_items(tl.maximum(first - known, 0), row)
    tile = Tile(b, 0, row, load_entries(0, row, req, view, policy, W), row.known)
    first_error = tl.arange(0, C.NUM_PAGE_PER_BLOCK) * 0 + INT32_MAX
    end = row_tiles(b, row.items, row.known, req, view, policy, W)
    first_error = write_row_tiles(tile, end, 1, first_error, req, view, policy, W)
    if C.REDUCE_STATUS and policy.status_ptr is not None:
        report_first(policy, first_error)


@triton.jit
def _pad_row(b, begin, end, view, policy, C: tl.constexpr):
    """Writes the padding of row b between two entries."""
    for at in range(begin, end, C.NUM_PAGE_PER_BLOCK):
        o = at + tl.arange(0, C.NUM_PAGE_PER_BLOCK)
        out = view.out_ptr + b * view.out_stride.to(tl.int64) + o
        tl.store(out, (o * 0 + policy.pad_value).to(view.out_ptr.dtype.element_ty), mask=o < end)


@triton.jit
def _write_last(program, req, view, policy, C: tl.constexpr):
    """Writes the last entries of the rows of a program."""
    T: tl.constexpr = _of_several_rows(C)
    j = tl.arange(0, T.NUM_PAGE_PER_BLOCK)
    b = program * C.EXTENDS + j // LAST_ENTRIES
    row = load_row(b, b < req.batch, req, view, policy, C)
    first = _first_of_last(row, req, C)
    part = _from_entry(first + j % LAST_ENTRIES - j, row, C)  # so that lane j has its own entry
    entries = load_entries(0, part, req, view, policy, T)
    first_error = j * 0 + INT32_MAX
    first_error = store_tile(Tile(b, 0, part, entries, part.known), first_error, req, view, policy, T)
    if C.REDUCE_STATUS and policy.status_ptr is not None:
        report_first(policy, first_error)


@triton.jit
def _write_unknown(program, req, view, policy, C: tl.constexpr):
    """Writes what the records say that the rows of a program lack, and replaces the records."""
    j = tl.arange(0, C.EXTENDS)
    b = program * C.EXTENDS + j
    mask = b < req.batch
    record = _load_record(b, mask, view)
    row = load_row(b, mask, req, view, policy, C)
    first = _first_of_last(row, req, C)
    known, items = _known_entries(b, record, row, req, C)
    lacks = known < first
    end, padding_end = first + LAST_ENTRIES, first
    if C.HAS_PADDING:  # behind the last entries it is there, unless it ended before or ids were there
        padding_end = padded_end(row.items, view, policy).to(tl.int32)
        is_there = (items >= 0) & (items <= end) & (padded_end(items, view, policy) >= padding_end)
        padding_end = tl.where(is_there, end, padding_end)
        lacks = lacks | (end < padding_end)
    lacks = lacks & mask
    if tl.max(lacks.to(tl.int32), 0) > 0:
        for n in range(C.EXTENDS):
            is_row = j == n
            if tl.max((is_row & lacks).to(tl.int32), 0) > 0:
                known_n, first_n = _value_of(is_row, known), _value_of(is_row, first)
                _write_before(program * C.EXTENDS + n, known_n, first_n, req, view, policy, C)
                if C.HAS_PADDING:
                    padding_end_n = _value_of(is_row, padding_end)
                    _pad_row(program * C.EXTENDS + n, first_n + LAST_ENTRIES, padding_end_n, view, policy, C)
    tl.debug_barrier()  # every thread of the program has read the records
    store_records(b, mask, row, req, view, C)


@triton.jit
def extend_rows(program, req, view, policy, C: tl.constexpr):
    """Writes what is new in the rows of a program."""
    num_programs = (req.batch + C.EXTENDS - 1) // C.EXTENDS
    if program < num_programs:
        _write_last(program, req, view, policy, C)
    else:
        _write_unknown(program - num_programs, req, view, policy, C)
