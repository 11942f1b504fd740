"""Which entries of a table's rows an extension writes, and the records of what they hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..params import LAST_ENTRIES, LAST_TOKENS, Build, View
from .rows import Rows, local_lengths


def first_written(build: Build, view: View, rows: Rows) -> Tensor:
    """Returns the first entry of each row that is written, ``[batch]``: 0 but in an extension."""
    if not build.extends or view.record is None:
        return torch.zeros_like(rows.items)
    last = _entries_before(build, rows, _settled(build, rows, rows.past) - LAST_TOKENS)
    last = last.maximum(rows.sink_items).maximum(rows.items - LAST_ENTRIES).minimum(rows.items)
    return _known_entries(build, view, view.record, rows).minimum(last)


def _known_entries(build: Build, view: View, record: Tensor, rows: Rows) -> Tensor:
    """Returns how many entries of each row the table has already; 0 if its record does not fit."""
    batch, page_size = build.batch, build.page_size
    source, shown, past, items = record[1 : batch + 1].to(torch.int64).unbind(1)
    is_of_last_build = torch.arange(batch, device=source.device) < record[0, 0]
    fits = is_of_last_build & (source == rows.row) & (past <= rows.past)
    known = _entries_before(build, rows, _settled(build, rows, past)).minimum(items).minimum(rows.items)
    now_shown = rows.start // page_size * page_size
    if view.is_absolute:  # what the window has left, or shows again, is written from there on
        known = torch.where(shown == now_shown, known, known.minimum(shown.minimum(now_shown) // page_size))
    else:
        fits &= shown == now_shown
    return torch.where(fits, known, 0)


def _settled(build: Build, rows: Rows, past: Tensor) -> Tensor:
    """Returns the position up to which entries do not change while a past of the whole row does not."""
    end = local_lengths(past, build.shard)
    return end if build.draft is None else end.minimum(rows.branch_start)


def _entries_before(build: Build, rows: Rows, end: Tensor) -> Tensor:
    """Returns how many entries of each row begin before position ``end``, in whatever page it is."""
    pages = -((rows.first - end) // build.page_size)
    return torch.where(end > rows.first, pages + rows.sink_items, 0)


def write_records(build: Build, view: View, rows: Rows) -> None:
    """Records what each row of the table holds, now that it is written."""
    if view.record is None:
        return
    past = rows.past if build.draft is None else _settled(build, rows, rows.past)
    past = torch.where(rows.start < rows.end, past, 0)
    words = [rows.row.to(torch.int32), rows.start // build.page_size * build.page_size, past, rows.items]
    view.record[1 : build.batch + 1] = torch.stack([x.to(torch.int32) for x in words], 1)
    if not build.extends:
        view.record[0, 0] = build.batch
