"""The same as the Triton kernel in plain torch: the oracle in tests, and the path for CPU tensors.

Written to be obviously right. It allocates and, on a GPU, syncs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..params import CSR, ID_MAX, INT32_MAX, SLOTS, TABLE, Build, View
from ..shard import Shard
from ..status import Reason
from .chosen import translate as translate
from .extension import first_written, write_records
from .rows import Rows, find_rows, load_rows, local_lengths, to_int64


def run(build: Build) -> None:
    """Runs a build: writes its outputs.

    Args:
        build: the checked build, with all its tensors on one device.
    """
    with torch.inference_mode():  # in it both inference tensors and others may be written to
        for view in build.views:
            _run_view(build, view)
        if build.out_cache_loc is not None:
            _translate_slots(build)


def _translate_slots(build: Build) -> None:
    """Writes the slots of ``out_cache_loc`` in the last view's pool."""
    slots, out, token_map = build.out_cache_loc, build.window_out_cache_loc, build.views[-1].token_map
    assert slots is not None
    assert out is not None
    assert token_map is not None
    slot = slots[: build.translated_slots][: out.shape[0]].to(torch.int64)
    inside = (slot >= 0) & (slot < token_map.shape[0])
    found = torch.full_like(slot, -1)
    found[inside] = token_map[slot[inside]].to(torch.int64).clamp(min=-1)
    found[found > torch.iinfo(out.dtype).max] = -1
    out.zero_()
    out[: slot.shape[0]] = found.to(out.dtype)


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
    rows = load_rows(build, view)
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

    if build.writes_ids:
        _write_ids(build, view, rows, kept, offset, report)
    write_records(build, view, rows)

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
        query = same if build.query_lens is None and build.query_start_loc is None else rows.query
        over = _prefix_sums(view.cu_seqlens_q, query, write_zero=not build.indptr_is_input)
        report.add(every[over], Reason.OVERFLOW)
    report.write()


def _write_ids(
    build: Build, view: View, rows: Rows, kept: Tensor, offset: Tensor, report: _Report
) -> None:  # fmt: skip
    """Writes the ids, ``kept`` of each row, and the padding behind them."""
    batch, form, page_size, capacity = build.batch, build.form, build.page_size, view.capacity(build.form)
    every = torch.arange(batch, device=offset.device)
    # one element per written entry
    b = torch.repeat_interleave(every, kept)
    j = torch.arange(b.shape[0], device=b.device) - (kept.cumsum(0) - kept)[b]
    is_new = j >= first_written(build, view, rows)[b]
    b, j = b[is_new], j[is_new]
    behind = rows.first[b] + (j - rows.sink_items[b]) * page_size
    t = torch.where(j < rows.sink_items[b], j * page_size, behind)
    if build.positions is not None and view.kv_indptr is not None:
        sums = view.kv_indptr.to(torch.int64)
        own = find_rows(sums, t) == b
        if build.pad_value is not None:  # what sums that decrease claim past the last is padding alone
            own &= t < sums[-1]
        b, j, t = b[own], j[own], to_int64(build.positions[t[own]])
    if build.clamps_tail:
        t = torch.where(t < rows.end[b], t, 0)
    live = (t >= 0) & (t < rows.end[b])
    if build.clamps_tail:
        live = (rows.row[b] >= 0) & (build.max_tokens > 0)
    if view.is_absolute:
        shown = t > rows.start[b] - page_size
        if view.sink is not None:
            shown |= t < local_lengths(torch.full_like(t, view.sink), build.shard)
        live &= shown
    in_row = (t >= 0) & (t < rows.end[b])
    if build.positions is not None:
        misplaced = ~live & (rows.row[b] >= 0)
        if build.max_position is not None:
            misplaced &= t < build.max_position
        report.add(b[misplaced], Reason.BAD_QUERY)
    if form == SLOTS and build.shard is not None:
        live &= t // build.shard.interleave % build.shard.size == build.shard.rank
    value = torch.full_like(t, build.missing_id)
    own = t + torch.where(t >= rows.branch_start[b], rows.branch_shift[b], 0)  # in the row of a branch
    page, found, outside = _page_of(build, view, rows.row[b][live], own[live])
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
        if build.positions is not None and view.kv_indptr is not None:
            total = view.kv_indptr[-1].to(torch.int64).clamp(0, capacity)
        if build.pad_value is not None:
            out[total : _padded_end(total, build.pad_to_multiple_of, capacity)] = build.pad_value
        out[offset[b] + j] = value.to(out.dtype)
        if view.query_seqlens is not None:
            if build.pad_value is not None:
                view.query_seqlens[total : _padded_end(total, build.pad_to_multiple_of, capacity)] = 0
            seen = torch.where(in_row, local_lengths(t + 1, build.shard), 0)
            view.query_seqlens[offset[b] + j] = seen.to(torch.int32)


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
