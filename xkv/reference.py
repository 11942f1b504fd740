"""The same as the Triton kernel in plain torch: the oracle in tests, and the path for CPU tensors.

Written to be obviously right. It allocates and, on a GPU, syncs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .params import CSR, ID_MAX, INT32_MAX, LENGTH_MAX, SLOTS, TABLE, Build, View
from .shard import Shard
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
    """Runs a build: writes its outputs.

    Args:
        build: the checked build, with all its tensors on one device.
    """
    with torch.inference_mode():  # in it both inference tensors and others may be written to
        for view in build.views:
            _run_view(build, view)


def _to_int64(x: Tensor) -> Tensor:
    return x.to(torch.int64).clamp(-LENGTH_MAX, LENGTH_MAX)


def _load_rows(build: Build, view: View) -> _Rows:
    page_size = build.page_size
    delta = torch.full_like(build.seq_lens, build.seq_lens_delta, dtype=torch.int64)
    if build.seq_lens_delta_rows is not None:
        delta = delta + _to_int64(build.seq_lens_delta_rows)
    length = _to_int64(build.seq_lens) + delta
    query_len = torch.zeros_like(length)
    if build.query_lens is not None:
        query_len = _to_int64(build.query_lens)
        length = length + query_len * build.query_sign
    query = query_len.clamp(min=0)
    row = build.req_pool_indices.to(torch.int64)
    row_exists = (row >= 0) & (row < build.req_to_token.shape[0])
    end = torch.where(row_exists, length.clamp(0, build.max_tokens), 0)

    reason = torch.zeros_like(length)

    def report_first(where: Tensor, why: Reason) -> None:
        reason[(reason == 0) & where] = int(why)

    report_first(~row_exists & (length > 0), Reason.BAD_ROW)
    report_first(end != length, Reason.BAD_LENGTH)
    if build.form == SLOTS:
        report_first((query_len < 0) | (query_len > length), Reason.BAD_QUERY)
        kv_len = local_lengths(end, build.shard)
        return _Rows(row, length - query, length - query, end, query, kv_len, query, reason)

    start, is_cut = torch.zeros_like(end), torch.zeros_like(row_exists)
    if view.window is not None:
        window = torch.full_like(end, build.window_tokens(view) or 0)
        if build.query_lens is not None and not build.window_is_prefix_only:
            # the window begins with what the first query token sees; if the query tokens are subtracted from
            # the length, the delta adds them back
            span = torch.maximum(query, delta) if build.query_sign < 0 else query
            window = window + span.clamp(min=1) - 1
        start = (end - window).clamp(min=0)
    if view.kv_start is not None:
        kv_start = _to_int64(view.kv_start)
        report_first((kv_start < 0) | (kv_start > length.clamp(min=0)), Reason.BAD_START)
        is_cut = kv_start > start
        start = torch.maximum(start, kv_start).minimum(end)
    report_first(query_len < 0, Reason.BAD_QUERY)
    start, end = local_lengths(start, build.shard), local_lengths(end, build.shard)
    first = start // page_size * page_size
    kv_len = torch.where(start < end, end - first, 0).clamp(min=build.min_seq_len)
    items = (kv_len + page_size - 1) // page_size
    if build.form == TABLE:
        width = view.capacity(TABLE)
        report_first(items > width, Reason.TRUNCATED)
        items = items.clamp(max=width)
        kv_len = torch.minimum(kv_len, items * page_size)
    if build.starts_are_aligned:
        report_first(is_cut & (start < end) & (start != first), Reason.UNALIGNED_START)
    return _Rows(row, first, start, end, items, kv_len, query, reason)


def local_lengths(length: Tensor, shard: Shard | None) -> Tensor:
    """Of the first ``length`` tokens of each row, how many the rank holds."""
    if shard is None:
        return length
    rest = length % (shard.size * shard.interleave) - shard.rank * shard.interleave
    whole = length // (shard.size * shard.interleave) * shard.interleave
    return whole + rest.clamp(0, shard.interleave)


def _local_position(t: Tensor, shard: Shard) -> Tensor:
    """Position among its rank's tokens of the token at position ``t`` of the whole row."""
    return t // (shard.size * shard.interleave) * shard.interleave + t % shard.interleave


def _source_position(build: Build, t: Tensor) -> Tensor:
    """Position in the source row of token ``t``: of the whole row in slots, else of the rank's tokens."""
    shard = build.shard
    if shard is None:
        return t
    if build.form == SLOTS:
        return t if shard.source == "global" else _local_position(t, shard)
    if shard.source == "local":
        return t
    rounds, rest = t // shard.interleave, t % shard.interleave
    return (rounds * shard.size + shard.rank) * shard.interleave + rest


def _run_view(build: Build, view: View) -> None:
    batch, form, page_size = build.batch, build.form, build.page_size
    capacity = view.capacity(form)
    rows = _load_rows(build, view)
    offset = rows.items.cumsum(0) - rows.items  # where each row begins in the stream
    if build.indptr_is_input and form != TABLE and view.kv_indptr is not None:
        offset = view.kv_indptr[:batch].to(torch.int64)
    kept = rows.items if form == TABLE else (capacity - offset).clamp(min=0).minimum(rows.items)
    kept = torch.where(offset < 0, 0, kept)
    kv_len = torch.minimum(rows.kv_len, kept * page_size) if form == CSR else rows.kv_len
    every = torch.arange(batch, device=offset.device)
    report = _Report(build.status)
    report.add(every, rows.reason)
    report.add(every[kept < rows.items], Reason.TRUNCATED)

    # one element per written entry
    b = torch.repeat_interleave(every, kept)
    j = torch.arange(b.shape[0], device=b.device) - (kept.cumsum(0) - kept)[b]
    t = rows.first[b] + j * page_size
    live = (t >= 0) & (t < rows.end[b])
    if form == SLOTS and build.shard is not None:
        live &= t // build.shard.interleave % build.shard.size == build.shard.rank
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
            padding = column >= kept[:, None]
            padding &= column < _padded_end(kept, build.pad_to_multiple_of, capacity)[:, None]
            out[:batch][padding] = build.pad_value
        out[b, j] = value.to(out.dtype)
    else:
        total = kept.sum()
        if build.pad_value is not None:
            out[total : _padded_end(total, build.pad_to_multiple_of, capacity)] = build.pad_value
        out[offset[b] + j] = value.to(out.dtype)

    if form == TABLE or not build.indptr_is_input:
        _prefix_sums(view.kv_indptr, rows.items, capacity)
    if view.cache_seqlens is not None:
        view.cache_seqlens[:batch] = kv_len.to(torch.int32)
    if view.kv_last_page_len is not None:
        last = torch.where(kv_len > 0, (kv_len - 1) % page_size + 1, 0)
        view.kv_last_page_len[:batch] = last.clamp(min=build.min_last_page_len).to(torch.int32)
    if view.kv_start_offset is not None:
        offset = torch.where(rows.start < rows.end, rows.start - rows.first, 0)
        view.kv_start_offset[:batch] = offset.to(torch.int32)
    if view.empty_rows is not None:
        view.empty_rows[:batch] = (rows.start >= rows.end).to(torch.int32)
    if view.cu_seqlens_k is not None:
        over = _prefix_sums(view.cu_seqlens_k, kv_len, write_zero=not build.indptr_is_input)
        report.add(every[over], Reason.OVERFLOW)
    if view.cu_seqlens_q is not None:
        same = torch.full_like(rows.query, build.query_len)
        query = same if build.query_lens is None else rows.query
        over = _prefix_sums(view.cu_seqlens_q, query, write_zero=not build.indptr_is_input)
        report.add(every[over], Reason.OVERFLOW)
    report.write()


def _padded_end(items: Tensor, multiple: int | None, capacity: int) -> Tensor:
    """Where the padding of a row or a stream ends: at a multiple, at least the first. None: at the end."""
    if multiple is None:
        return torch.full_like(items, capacity)
    return ((items.clamp(min=1) + multiple - 1) // multiple * multiple).clamp(max=capacity)


def _page_of(build: Build, view: View, row: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the page of token ``t`` of a source row, whether there is one, whether a map is too short."""
    t = _source_position(build, t)
    entry = build.req_to_token[row, t // build.source_page_size].to(torch.int64)
    found = (entry >= 0) & (entry < ID_MAX)
    outside = torch.zeros_like(found)
    token = torch.where(found, entry, 0) * build.source_page_size + t % build.source_page_size
    if build.shard is not None and build.shard.source == "global":
        token = _local_position(token, build.shard)  # a slot on all ranks is a position among all slots
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


def _prefix_sums(
    out: Tensor | None, terms: Tensor, limit: int = INT32_MAX, *, write_zero: bool = True
) -> Tensor:
    """Writes ``[0, t0, t0 + t1, ...]``, clipped to ``limit``; returns which sums were clipped."""
    sums = terms.cumsum(0)
    if out is not None:
        if write_zero:
            out[0] = 0
        out[1 : terms.shape[0] + 1] = sums.clamp(max=limit).to(torch.int32)
    return sums > limit


class _Report:
    """Keeps the smallest (row, reason), like the kernel."""

    def __init__(self, status: Tensor | None) -> None:
        self.status = status
        self.words: list[Tensor] = []

    def add(self, rows: Tensor, reason: Tensor | Reason) -> None:
        why = reason if isinstance(reason, Tensor) else torch.full_like(rows, int(reason))
        self.words.append((rows * 256 + why)[why > 0])

    def write(self) -> None:
        if self.status is not None:
            self.status.copy_(torch.cat([self.status, *self.words]).min())
