"""All that a `Build` must write and report, as a loop over rows and positions.

It shares no code with the kernel and with xkv/reference/; both are compared with it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch

from ...params import CSR, LENGTH_MAX, ROW_MAX, SLOTS, TABLE, Build, View
from ...status import Reason
from .oracle_parts import either, filled, new_slots, owner, page_of, rank_positions, whole_length

INT32_MAX = 2**31 - 1
Shared = dict[int, frozenset[int]]
"""Entries of a stream that several rows claim, each with their values."""


def run(build: Build) -> list[Shared]:
    """Writes what the build must write, and the status word, in place.

    Args:
        build: what to build, its tensors on the CPU.

    Returns:
        For every view the entries that several rows claim; the least of their values is written.
    """
    views, word = expected(build)
    found = []
    for view, outputs in zip(build.views, views, strict=True):
        found.append({at: v for at, v in outputs["out"].items() if isinstance(v, frozenset)})
        outputs["out"] |= {at: min(values) for at, values in found[-1].items()}
        for name, entries in outputs.items():
            to = getattr(view, name)
            if to is not None and entries:
                at = torch.tensor(list(entries)).view(len(entries), -1).unbind(1)
                to[at] = torch.tensor(list(entries.values()), dtype=to.dtype)
    if word is not None and build.status is not None:
        build.status.clamp_(max=word)
    if build.window_out_cache_loc is not None:
        build.window_out_cache_loc.copy_(torch.tensor(new_slots(build), dtype=torch.int64))
    return found


def expected(build: Build) -> tuple[list[dict[str, Any]], int | None]:
    """Returns what every view's outputs hold, and the status word.

    Args:
        build: what to build, its tensors on the CPU; nothing is written.

    Returns:
        For every view the entries of each output that must be written, as {index: value}, and the status
        word: row * 256 + reason of the first violation, or None. Where an engine's sums let several rows
        claim an entry of a stream, its value is the frozenset of theirs: any of them may be there.
    """
    words: list[int] = []
    views = [_view(build, view, words) for view in build.views]
    return views, min(words, default=None)


def _cut(x: int) -> int:
    return max(-LENGTH_MAX, min(LENGTH_MAX, x))


def _view(build: Build, view: View, words: list[int]) -> dict[str, Any]:
    form, size, unit, shard = build.form, build.page_size, build.source_page_size, build.shard
    draft = build.draft
    source, lengths = build.req_to_token.tolist(), build.seq_lens.tolist()
    rows = range(len(lengths)) if build.req_pool_indices is None else build.req_pool_indices.tolist()
    deltas, queries, starts, token_map, page_map = (
        None if x is None else x.tolist()
        for x in (build.seq_lens_delta_rows, build.query_lens, view.kv_start, view.token_map, view.page_map)
    )
    maps = ((token_map, 1), (page_map, build.map_page_size))
    largest = 2**31 - 1 if str(view.out.dtype) == "torch.int32" else 2**63 - 1
    longest = len(source[0]) * unit if source else 0
    if shard is not None and shard.source == "local":
        longest = min(longest * shard.size, ROW_MAX)
    if build.max_seq_len is not None:
        longest = min(longest, build.max_seq_len)
    mine = rank_positions(shard, longest)
    begins = None
    if build.indptr_is_input and form != TABLE and view.kv_indptr is not None:
        begins = view.kv_indptr.tolist()
    given = None if build.positions is None else [_cut(t) for t in build.positions.tolist()]
    sums = None if build.query_start_loc is None else build.query_start_loc.tolist()
    counted = queries is not None or sums is not None
    zero = {} if build.indptr_is_input else {0: 0}
    out: dict[Any, Any] = {}
    lens, cu_k, cu_q, indptr, last, offset, empty = {}, dict(zero), dict(zero), {0: 0}, {}, {}, {}
    seen: dict[Any, int] = {}
    start = sunk = 0
    stream = kv_sum = q_sum = 0
    capacity = view.capacity(form)
    places: list[int] = []  # of given positions
    for b in range(build.batch):
        begin = stream if begins is None else begins[b]
        left = max(capacity - begin, 0) if begin >= 0 else 0
        request = b if draft is None else b // draft.topk
        delta = build.seq_lens_delta + (0 if deltas is None else _cut(deltas[request]))
        length = _cut(lengths[request]) + delta
        if build.lens_are_local:
            length = whole_length(mine, length, 0 if starts is None else max(_cut(starts[request]), 0))
        prefix, own, shift = max(length, 0), 0, 0  # own: where a draft branch's own tokens begin
        if draft is not None:
            length += draft.step
            own = prefix // size * size
            pages = -(-(prefix % draft.page_size + draft.num_steps) // draft.page_size)
            shift = b % draft.topk * pages * draft.page_size
        asked = 0
        if queries is not None:
            asked = _cut(queries[b])
            length += asked * build.query_sign
        elif sums is not None:
            asked = max(-LENGTH_MAX, min(LENGTH_MAX, _cut(sums[b + 1]) - _cut(sums[b])))
        elif form == SLOTS and given is None:
            asked = build.query_len
        row = rows[request]
        known = 0 <= row < len(source)
        end = max(0, min(length, longest)) if known else 0
        if draft is not None and length + shift > longest:
            end = min(end, own)
        why = 0
        if not known and length > 0:
            why = Reason.BAD_ROW
        elif end != length:
            why = Reason.BAD_LENGTH
        query = max(asked, 0)
        here = bisect_left(mine, end)  # tokens of the row that the rank holds
        until = here  # what is before it may be read

        if given is not None and begins is not None:
            stop, room = begins[b + 1], min(capacity, len(given))
            if row == -1:
                why = 0
            if not why and (begin < 0 or stop < begin):
                why = Reason.BAD_QUERY
            elif not why and stop > room:
                why = Reason.TRUNCATED
            past = min(stop, room) if build.pad_value is None else min(stop, room, begins[-1])
            places = [n for n in range(max(begin, 0), past) if begin >= 0 and owner(begins, n) == b]
            positions = [given[n] for n in places]
            total, kv_len = len(positions), here
        elif form == SLOTS:
            padding = queries is None and length == 0
            if not why and (asked < 0 or asked > length) and not padding:
                why = Reason.BAD_QUERY
            positions = [length - query + n for n in range(min(query, left))]
            total, kv_len = query, here
        else:
            start = sunk = 0
            if view.window is not None:
                # every query token sees `window` tokens, its own the last of them
                count = query if counted else build.query_len
                if queries is not None and build.query_sign < 0:
                    count = max(count, delta)
                start = max(end - view.window - (0 if build.window_is_prefix_only else max(count - 1, 0)), 0)
                if draft is not None and build.window_is_prefix_only:
                    start = min(max(prefix - view.window, 0), end)
            unaligned = False
            if starts is not None:
                wanted = _cut(starts[request])
                if not why and not 0 <= wanted <= max(length, 0):
                    why = Reason.BAD_START
                skipped = bisect_left(mine, wanted)
                unaligned = start < wanted and skipped < here and skipped % size > 0
                start = min(max(start, wanted), end)
            if asked < 0:
                why = why or Reason.BAD_QUERY
            start = bisect_left(mine, start)
            empty[b] = int(start == here)
            first = 0 if view.is_absolute else start // size * size
            sunk = 0 if view.sink is None else bisect_left(mine, view.sink)
            sinks: list[int] = []
            if view.sink is not None and not view.is_absolute:
                if first <= min(sunk, here):
                    first = start = 0
                else:
                    sinks = list(range(0, sunk, size))
            kv_len = (here - first if start < here else 0) + len(sinks) * size
            kv_len = max(kv_len, build.min_seq_len)
            total = -(-kv_len // size)
            if build.clamps_tail and begins is not None:
                total = max(begins[b + 1] - begin, 0)
                until = max(here, first + 1) if known and mine else 0
            room = total if not build.writes_ids else capacity if form == TABLE else left
            if total > room and (not why or form == CSR):
                words.append(b * 256 + Reason.TRUNCATED)
            elif unaligned and build.starts_are_aligned:
                why = why or Reason.UNALIGNED_START
            offset[b] = start - first if start < here else 0
            shown = min(total, max(room, 0))
            kv_len = min(kv_len, shown * size)
            positions = []
            if build.writes_ids:
                positions = [*sinks, *(first + n * size for n in range(shown - len(sinks)))][:shown]
            if build.clamps_tail:
                positions = [t if t < here else first for t in positions]
        if why:
            words.append(b * 256 + why)
        if form == SLOTS and len(positions) < total:
            words.append(b * 256 + Reason.TRUNCATED)

        for j, t in enumerate(positions):
            value = build.missing_id
            at: Any = (b, j) if form == TABLE else begin + j if given is None else places[j]
            # t: of slots a position in the whole row, otherwise one among the rank's tokens
            n = bisect_left(mine, t) if form == SLOTS else t
            unlimited = build.max_position is None or t < build.max_position
            if given is not None and unlimited and row != -1 and not 0 <= t < end:
                words.append(b * 256 + Reason.BAD_QUERY)
            seen[at] = bisect_left(mine, t + 1) if 0 <= t < end else 0
            is_before = view.is_absolute and t <= start - size and t >= sunk
            if not is_before and t >= 0 and n < until and (form != SLOTS or mine[n] == t) and unlimited:
                t = n if shard is None or shard.source == "local" else mine[n]  # in the source row
                t += shift if t >= own else 0
                page, lost = page_of(build, source[row][t // unit], t, maps, largest)
                value = build.missing_id if page is None else page
                if lost is Reason.BAD_MAP or (lost is not None and build.report_missing):
                    words.append(b * 256 + lost)
            out[at] = either(out[at], value) if at in out else value
        if form == TABLE and build.pad_value is not None and build.writes_ids:
            for j in range(len(positions), filled(build, len(positions), capacity)):
                out[b, j] = build.pad_value

        stream += total
        kv_sum += kv_len
        q_sum += query if counted else build.query_len
        lens[b] = kv_len
        last[b] = max((kv_len - 1) % size + 1 if kv_len > 0 else 0, build.min_last_page_len)
        indptr[b + 1] = min(stream, capacity)
        for name, cu, value in (("cu_seqlens_k", cu_k, kv_sum), ("cu_seqlens_q", cu_q, q_sum)):
            cu[b + 1] = min(value, INT32_MAX)
            if value > INT32_MAX and getattr(view, name) is not None:
                words.append(b * 256 + Reason.OVERFLOW)
    if form != TABLE and build.pad_value is not None:
        live = min(stream if begins is None else max(begins[-1], 0), capacity)
        for n in range(live, filled(build, live, capacity)):
            out[n] = either(out[n], build.pad_value) if n in out else build.pad_value
            seen[n] = 0
    return {
        "out": out, "cache_seqlens": lens, "cu_seqlens_k": cu_k, "cu_seqlens_q": cu_q,
        "kv_indptr": indptr if begins is None else {}, "kv_last_page_len": last, "kv_start_offset": offset,
        "empty_rows": empty, "query_seqlens": seen if form == SLOTS else {},
    }  # fmt: skip
