"""What the ops must write, by their definition: one plain Python loop over rows and positions.

It shares no code with the kernel and the reference, so that `xkv check` can fail on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Outputs = dict[str, list[list[int]]]

_SPARE = 5  # entries that an output has beyond those needed, where the caller asks for no room


def expected(op: str, call: Mapping[str, Any], dtype: torch.dtype, room: int | None) -> tuple[Outputs, int]:
    """Returns what an op must write; entries that it must leave alone are absent.

    Args:
        op: the op's name.
        call: its keyword arguments, all but ``out`` and ``status``, with tensors on the CPU.
        dtype: of the ids that it writes.
        room: entries of a table's row or of a stream; None: all that are needed and a few more.

    Returns:
        The rows of each output by name, each from its first entry on (what is 1-D has one row), and
        the room.
    """
    host: dict[str, Any] = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    host["largest"] = torch.iinfo(dtype).max
    rows = [_row(op, host, b) for b in range(len(host["seq_lens"]))]
    sizes = [len(ids) for ids, _ in rows]
    if op == "build_page_table":
        room = max(sizes, default=0) + _SPARE if room is None else room
        return {"out": [_with_tail(ids[:room], host, room) for ids, _ in rows]}, room
    room = sum(sizes) + _SPARE if room is None else room
    page_size: int = host.get("page_size", 1)
    indptr, last = [0], []
    stream: list[int] = []
    for ids, tokens in rows:
        kept = ids[: room - len(stream)]
        stream += kept
        indptr.append(len(stream))
        tokens = min(tokens, len(kept) * page_size)
        last.append((tokens - 1) % page_size + 1 if tokens else 0)
    stream = _with_tail(stream, host, room)
    if op == "build_slot_mapping":
        return {"out": [stream]}, room
    return {"kv_indptr": [indptr], "kv_indices": [stream], "kv_last_page_len": [last]}, room


def _row(op: str, host: dict[str, Any], b: int) -> tuple[list[int], int]:
    """The ids of request b, and how many tokens they reach over."""
    source, row = host["req_to_token"], host["req_pool_indices"][b]
    entries = source[row] if 0 <= row < len(source) else []
    delta = host.get("seq_lens_delta", 0)
    length = host["seq_lens"][b] + (delta[b] if isinstance(delta, list) else delta)
    end = min(max(length, 0), len(entries) * host.get("source_page_size", 1))
    if op == "build_slot_mapping":  # every query token has its place, also where it has no slot
        query = max(host["query_lens"][b], 0)
        return [_id(host, entries, t, end) for t in range(length - query, length)], query
    start = min(max(host["kv_start"][b], 0), end) if "kv_start" in host else 0
    if start == end:
        return [], 0
    page_size = host.get("page_size", 1)
    first = start // page_size * page_size
    return [_id(host, entries, t, end) for t in range(first, end, page_size)], end - first


def _id(host: dict[str, Any], entries: list[int], t: int, end: int) -> int:
    """The id of the token at position t."""
    missing: int = host.get("missing_id", -1)
    page_size, unit = host.get("page_size", 1), host.get("source_page_size", 1)
    if not 0 <= t < end or entries[t // unit] < 0:
        return missing
    token: int = entries[t // unit] * unit + t % unit
    # build_slot_mapping's map_page_size is 1 where it is not given, and so is its page size
    for ids, size in (
        (host.get("token_map"), 1),
        (host.get("page_map"), host.get("map_page_size", page_size)),
    ):
        if ids is not None:
            target = ids[token // size] if token // size < len(ids) else -1
            if target < 0:
                return missing
            token = target * size + token % size
    page = token // page_size
    return page if page <= host["largest"] else missing


def _with_tail(ids: list[int], host: dict[str, Any], room: int) -> list[int]:
    """Ids and what is filled in behind them: to the end of the last tile, of one at least."""
    if "pad_value" not in host:
        return ids
    tile = host.get("pad_to_multiple_of", max(room, 1))
    end = min(-(-max(len(ids), 1) // tile) * tile, room)
    return ids + [host["pad_value"]] * (end - len(ids))
