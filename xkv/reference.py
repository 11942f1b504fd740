"""The same as kernel/entry.py in plain torch, obviously right: the oracle, and what CPU tensors get.

Line for line it follows the formula in kernel/entry.py's docstring. It allocates and, on a GPU, syncs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .params import CSR, ID_MAX, INT32_MAX, LENGTH_MAX, SLOTS, TABLE, Build, View
from .status import Reason


class _Rows(NamedTuple):
    """Each row of the batch, cut to what may be read and, in tables, written; all ``[batch]`` int64."""

    row: Tensor
    first: Tensor
    start: Tensor
    end: Tensor
    items: Tensor
    kv_len: Tensor
    query: Tensor
    reason: Tensor


def run(build: Build) -> None:
    """Builds what ``build`` says, in place.

    Args:
        build: the checked request; all its tensors on one device.
    """
    with torch.inference_mode():  # in which both its own tensors and others may be written to
        for view in build.views:
            _run_view(build, view)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.int64).clamp(-LENGTH_MAX, LENGTH_MAX)


def _describe(build: Build, view: View) -> _Rows:
    page_size = build.page_size
    delta = torch.full_like(build.seq_lens, build.seq_lens_delta, dtype=torch.int64)
    if build.seq_lens_delta_rows is not None:
        delta = delta + _wide(build.seq_lens_delta_rows)
    length = _wide(build.seq_lens) + delta
    asked = torch.zeros_like(length)
    if build.query_lens is not None:
        asked = _wide(build.query_lens)
        length = length + asked * build.query_sign
    query = asked.clamp(min=0)
    row = build.req_pool_indices.to(torch.int64)
    known = (row >= 0) & (row < build.req_to_token.shape[0])
    end = torch.where(known, length.clamp(0, build.max_tokens), 0)

    reason = torch.zeros_like(length)

    def blame(where: Tensor, why: Reason) -> None:
        reason[(reason == 0) & where] = int(why)

    blame(~known & (length > 0), Reason.BAD_ROW)
    blame(end != length, Reason.BAD_LENGTH)
    if build.form == SLOTS:
        blame((asked < 0) | (asked > length), Reason.BAD_QUERY)
        return _Rows(row, length - query, length - query, end, query, end, query, reason)

    start, inside = torch.zeros_like(end), torch.zeros_like(known)
    if view.window is not None:
        reach = torch.full_like(end, build.reach(view) or 0)
        if build.query_lens is not None and not build.window_is_prefix_only:
            # from what the first query token sees on; where the query tokens are taken off the length, the
            # delta stands for them
            span = torch.maximum(query, delta) if build.query_sign < 0 else query
            reach = reach + span.clamp(min=1) - 1
        start = (end - reach).clamp(min=0)
    if view.kv_start is not None:
        wanted = _wide(view.kv_start)
        blame((wanted < 0) | (wanted > length.clamp(min=0)), Reason.BAD_START)
        inside = (wanted > start) & (wanted < end) & (wanted % page_size != 0)
        start = torch.maximum(start, wanted).minimum(end)
    blame(asked < 0, Reason.BAD_QUERY)
    first = start // page_size * page_size
    kv_len = torch.where(start < end, end - first, 0).clamp(min=build.min_seq_len)
    items = (kv_len + page_size - 1) // page_size
    if build.form == TABLE:
        width = view.capacity(TABLE)
        blame(items > width, Reason.TRUNCATED)
        items = items.clamp(max=width)
        kv_len = torch.minimum(kv_len, items * page_size)
    if build.starts_are_aligned:
        blame(inside, Reason.UNALIGNED_START)
    return _Rows(row, first, start, end, items, kv_len, query, reason)


def _run_view(build: Build, view: View) -> None:
    batch, form, page_size = build.batch, build.form, build.page_size
    capacity = view.capacity(form)
    rows = _describe(build, view)
    offset = rows.items.cumsum(0) - rows.items  # where each row begins in the stream
    given = build.sums_given
    if given and form != TABLE and view.kv_indptr is not None:
        offset = view.kv_indptr[:batch].to(torch.int64)
    kept = rows.items if form == TABLE else (capacity - offset).clamp(min=0).minimum(rows.items)
    kept = torch.where(offset < 0, 0, kept)
    kv_len = torch.minimum(rows.kv_len, kept * page_size) if form == CSR else rows.kv_len
    every = torch.arange(batch, device=offset.device)
    report = _Report(build.status)
    report.add(every, rows.reason)
    report.add(every[kept < rows.items], Reason.TRUNCATED)

    # one element for every entry that is written
    b = torch.repeat_interleave(every, kept)
    j = torch.arange(b.shape[0], device=b.device) - (kept.cumsum(0) - kept)[b]
    t = rows.first[b] + j * page_size
    live = (t >= 0) & (t < rows.end[b])
    value = torch.full_like(t, build.missing_id)
    page, found, outside = _page_of(build, view, rows.row[b][live], t[live])
    value[live] = torch.where(found, page, build.missing_id)
    lost = b[live]
    report.add(lost[outside], Reason.BAD_MAP)
    if build.report_missing:
        report.add(lost[~found & ~outside], Reason.BAD_ID)

    out = view.out
    if form == TABLE:
        if build.pad_value is not None:
            column = torch.arange(capacity, device=out.device)
            tail = column >= kept[:, None]
            tail &= column < _written(kept, build.pad_to_multiple_of, capacity)[:, None]
            out[:batch][tail] = build.pad_value
        out[b, j] = value.to(out.dtype)
    else:
        total = kept.sum()
        if build.pad_value is not None:
            out[total : _written(total, build.pad_to_multiple_of, capacity)] = build.pad_value
        out[offset[b] + j] = value.to(out.dtype)

    if not (given and form != TABLE):
        _prefix_sums(view.kv_indptr, rows.items, capacity)
    if view.cache_seqlens is not None:
        view.cache_seqlens[:batch] = kv_len.to(torch.int32)
    if view.kv_last_page_len is not None:
        last = torch.where(kv_len > 0, (kv_len - 1) % page_size + 1, 0)
        view.kv_last_page_len[:batch] = last.clamp(min=build.min_last_page_len).to(torch.int32)
    if view.kv_start_offset is not None:
        offset = torch.where(rows.start < rows.end, rows.start - rows.first, 0)
        view.kv_start_offset[:batch] = offset.to(torch.int32)
    if view.cu_seqlens_k is not None:
        report.add(every[_prefix_sums(view.cu_seqlens_k, kv_len, given=given)], Reason.OVERFLOW)
    if view.cu_seqlens_q is not None:
        strided = torch.full_like(rows.query, build.query_len)
        query = strided if build.query_lens is None else rows.query
        report.add(every[_prefix_sums(view.cu_seqlens_q, query, given=given)], Reason.OVERFLOW)
    report.write()


def _written(items: Tensor, tile: int | None, capacity: int) -> Tensor:
    """How far a row or a stream is written: to the end of its tile, and at least one tile."""
    if tile is None:
        return torch.full_like(items, capacity)
    return ((items.clamp(min=1) + tile - 1) // tile * tile).clamp(max=capacity)


def _page_of(build: Build, view: View, row: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The page of token ``t`` of a source row; whether there is one; whether a map was too short."""
    entry = build.req_to_token[row, t // build.source_page_size].to(torch.int64)
    found = (entry >= 0) & (entry < ID_MAX)
    outside = torch.zeros_like(found)
    token = torch.where(found, entry, 0) * build.source_page_size + t % build.source_page_size
    for table, page_size in ((view.token_map, 1), (view.page_map, build.map_page_size)):
        if table is None:
            continue
        page = token // page_size
        inside = page < table.shape[0]
        outside |= found & ~inside
        target = torch.full_like(page, -1)
        target[found & inside] = table[page[found & inside]].to(torch.int64)
        found = (target >= 0) & (target < ID_MAX)
        token = torch.where(found, target, 0) * page_size + token % page_size
    page = token // build.page_size
    if view.out.dtype == torch.int32:
        found &= page <= INT32_MAX
    return page, found, outside


def _prefix_sums(out: Tensor | None, terms: Tensor, limit: int = INT32_MAX, *, given: bool = False) -> Tensor:
    """Writes ``[0, t0, t0 + t1, ...]``, cut at ``limit``, the 0 unless given; returns where it was cut."""
    sums = terms.cumsum(0)
    if out is not None:
        if not given:
            out[0] = 0
        out[1 : terms.shape[0] + 1] = sums.clamp(max=limit).to(torch.int32)
    return sums > limit


class _Report:
    """The smallest (row, reason), as the kernel keeps it."""

    def __init__(self, status: Tensor | None) -> None:
        self.status = status
        self.words: list[Tensor] = []

    def add(self, rows: Tensor, reason: Tensor | Reason) -> None:
        why = reason if isinstance(reason, Tensor) else torch.full_like(rows, int(reason))
        self.words.append((rows * 256 + why)[why > 0])

    def write(self) -> None:
        if self.status is not None:
            self.status.copy_(torch.cat([self.status, *self.words]).min())
