"""The rows of a build in plain torch, cut to what may be read and written, for `xkv.reference`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..params import LENGTH_MAX, SLOTS, TABLE, Build, View
from ..shard import Shard
from ..status import Reason


class Rows(NamedTuple):
    """Each row of the batch, cut to what may be read and, in tables, written; all ``[batch]`` int64."""

    row: Tensor
    first: Tensor
    start: Tensor
    end: Tensor
    items: Tensor
    sink_items: Tensor
    kv_len: Tensor
    query: Tensor
    reason: Tensor
    branch_start: Tensor
    branch_shift: Tensor
    past: Tensor  # tokens that later steps do not change


def to_int64(x: Tensor) -> Tensor:
    """Lengths or positions as int64, clipped so that sums of four fit in int32."""
    return x.to(torch.int64).clamp(-LENGTH_MAX, LENGTH_MAX)


def load_rows(build: Build, view: View) -> Rows:
    """Returns the rows of one view."""
    page_size = build.page_size
    delta = torch.full_like(build.seq_lens, build.seq_lens_delta, dtype=torch.int64)
    if build.seq_lens_delta_rows is not None:
        delta = delta + to_int64(build.seq_lens_delta_rows)
    given = to_int64(build.seq_lens)
    length = given + delta
    row = torch.arange(len(given), device=given.device)
    if build.req_pool_indices is not None:
        row = build.req_pool_indices.to(torch.int64)
    if build.lens_are_local and build.shard is not None:
        length = _whole_lengths(length, build.shard, view.kv_start, build.max_tokens)
    prefix = length.clamp(min=0)
    branch_start, branch_shift = torch.zeros_like(length), torch.zeros_like(length)
    draft = build.draft
    if draft is not None:
        branch = torch.arange(draft.topk, device=row.device).repeat(len(row))
        row, prefix, length, delta, given = (
            x.repeat_interleave(draft.topk) for x in (row, prefix, length, delta, given)
        )
        length = length + draft.step
        pages = -(-(prefix % draft.page_size + draft.num_steps) // draft.page_size)
        branch_start, branch_shift = prefix // page_size * page_size, branch * pages * draft.page_size
    query_len = torch.zeros_like(length)
    if build.query_lens is not None:
        query_len = to_int64(build.query_lens)
        length = length + query_len * build.query_sign
    elif build.query_start_loc is not None:
        query_len = to_int64(build.query_start_loc).diff().clamp(-LENGTH_MAX, LENGTH_MAX)
    elif build.form == SLOTS and build.positions is None:
        query_len = torch.full_like(length, build.query_len)
    query = query_len.clamp(min=0)
    row_exists = (row >= 0) & (row < build.req_to_token.shape[0])
    end = torch.where(row_exists, length.clamp(0, build.max_tokens), 0)
    if draft is not None:  # of a branch that the source has no room for, the prefix's whole pages are left
        end = torch.where(length + branch_shift <= build.max_tokens, end, end.minimum(branch_start))
    counted = build.query_lens is not None or build.query_start_loc is not None
    newest = query if counted else build.query_len
    past = given.minimum(length - newest).clamp(min=0).minimum(end)

    reason, sink_items = torch.zeros_like(length), torch.zeros_like(length)

    def report_first(where: Tensor, why: Reason) -> None:
        reason[(reason == 0) & where] = int(why)

    report_first(~row_exists & (length > 0), Reason.BAD_ROW)
    report_first(end != length, Reason.BAD_LENGTH)
    if build.form == SLOTS:
        kv_len = local_lengths(end, build.shard)
        if build.positions is not None and view.kv_indptr is not None:
            is_padding = row == -1
            reason[is_padding] = 0
            room = min(view.capacity(SLOTS), int(build.positions.shape[0]))
            begin, stop = (x.to(torch.int64) for x in (view.kv_indptr[:-1], view.kv_indptr[1:]))
            report_first((begin < 0) | (stop < begin), Reason.BAD_QUERY)
            report_first(stop > room, Reason.TRUNCATED)
            count = stop.clamp(0, room) - begin.clamp(0, room)
            count = torch.where(begin < 0, 0, count.clamp(min=0))
            row = torch.where(row_exists, row, torch.where(is_padding, -1, 0))
            if build.max_position is not None:
                end = end.clamp(max=build.max_position)
            first = begin.clamp(0, room)
            return Rows(
                row, first, first, end, count, sink_items, kv_len, count, reason, branch_start, branch_shift,
                past,
            )  # fmt: skip
        bad = (query_len < 0) | (query_len > length)
        if build.query_lens is None:  # as many in every row: one of length 0 is padding
            bad &= length != 0
        report_first(bad, Reason.BAD_QUERY)
        return Rows(
            row,
            length - query,
            length - query,
            end,
            query,
            sink_items,
            kv_len,
            query,
            reason,
            branch_start,
            branch_shift,
            past,
        )

    start, is_cut = torch.zeros_like(end), torch.zeros_like(row_exists)
    if view.window is not None:
        window = torch.full_like(end, build.window_tokens(view) or 0)
        if counted and not build.window_is_prefix_only:
            # the window begins with what the first query token sees; if the query tokens are subtracted from
            # the length, the delta adds them back
            span = torch.maximum(query, delta) if build.query_sign < 0 else query
            window = window + span.clamp(min=1) - 1
        start = (end - window).clamp(min=0)
        if draft is not None and build.window_is_prefix_only:
            start = (prefix - window).clamp(min=0).minimum(end)
    if view.kv_start is not None:
        kv_start = to_int64(view.kv_start)
        if draft is not None:
            kv_start = kv_start.repeat_interleave(draft.topk)
        report_first((kv_start < 0) | (kv_start > length.clamp(min=0)), Reason.BAD_START)
        is_cut = kv_start > start
        start = torch.maximum(start, kv_start).minimum(end)
    report_first(query_len < 0, Reason.BAD_QUERY)
    start, end = local_lengths(start, build.shard), local_lengths(end, build.shard)
    first = torch.zeros_like(start) if view.is_absolute else start // page_size * page_size
    if view.sink is not None and not view.is_absolute:
        sink_end = local_lengths(torch.full_like(end, view.sink), build.shard).minimum(end)
        is_apart = first > sink_end  # otherwise the sinks and the window are one range
        first, start = torch.where(is_apart, first, 0), torch.where(is_apart, start, 0)
        sink_items = torch.where(is_apart, sink_end // page_size, 0)
    kv_len = torch.where(start < end, end - first, 0) + sink_items * page_size
    kv_len = kv_len.clamp(min=build.min_seq_len)
    items = (kv_len + page_size - 1) // page_size
    if build.clamps_tail and view.kv_indptr is not None:
        row = torch.where(row_exists, row, -1)
        items = to_int64(view.kv_indptr).diff().clamp(0, LENGTH_MAX)
    if build.form == TABLE and build.writes_ids:
        width = view.capacity(TABLE)
        report_first(items > width, Reason.TRUNCATED)
        items = items.clamp(max=width)
        kv_len = torch.minimum(kv_len, items * page_size)
    if build.starts_are_aligned:
        report_first(is_cut & (start < end) & (start != first), Reason.UNALIGNED_START)
    return Rows(
        row, first, start, end, items, sink_items, kv_len, query, reason, branch_start, branch_shift, past
    )


def local_lengths(length: Tensor, shard: Shard | None) -> Tensor:
    """Of the first ``length`` tokens of each row, how many the rank holds."""
    if shard is None:
        return length
    rest = length % (shard.size * shard.interleave) - shard.rank * shard.interleave
    whole = length // (shard.size * shard.interleave) * shard.interleave
    return whole + rest.clamp(0, shard.interleave)


def _whole_lengths(length: Tensor, shard: Shard, kv_start: Tensor | None, max_tokens: int) -> Tensor:
    """Lengths of the rows of which so many tokens from ``kv_start`` on are the rank's."""
    start = torch.zeros_like(length) if kv_start is None else to_int64(kv_start).clamp(min=0)
    # what is longer than the source ends past it
    length = (length + local_lengths(start, shard)).clamp(max=shard.local_length(max_tokens) + 1)
    last = length.clamp(min=1) - 1
    end = (
        (last // shard.interleave * shard.size + shard.rank) * shard.interleave + last % shard.interleave + 1
    )
    return torch.where(length > 0, torch.maximum(end, start), length.clamp(max=0) + start)


def find_rows(sums: Tensor, t: Tensor) -> Tensor:
    """Returns to which row each query token belongs: one that has it, if the sums do not decrease.

    Where they do, several rows may have it, and one of them or none is returned: row t, or what a binary
    search for the last row that begins at the token or before it ends at.
    """
    batch = sums.shape[0] - 1
    guess = t.clamp(max=batch - 1)
    first = torch.zeros_like(t)
    size = batch
    while size > 1:
        half = size // 2
        first = torch.where(sums[first + half] <= t, first + half, first)
        size -= half
    return torch.where((sums[guess] <= t) & (t < sums[guess + 1]), guess, first)
