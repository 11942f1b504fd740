"""What the oracle looks up, entry by entry: whose a token is, which page it lies in, what two rows claim."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ...params import Build
from ...shard import Shard
from ...status import Reason


@functools.lru_cache(maxsize=64)
def rank_positions(shard: Shard | None, end: int) -> Sequence[int]:
    """The positions before ``end`` whose tokens the rank holds."""
    if shard is None:
        return range(end)
    return [t for t in range(end) if t // shard.interleave % shard.size == shard.rank]


def owner(sums: list[int], token: int) -> int:
    """Whose a query token is: of row ``token`` if it has it, else of the row that a binary search finds."""
    batch = len(sums) - 1
    guess = min(token, batch - 1)
    if sums[guess] <= token < sums[guess + 1]:
        return guess
    low, size = 0, batch
    while size > 1:
        half = size // 2
        low += half if sums[low + half] <= token else 0
        size -= half
    return low


def either(before: Any, value: int) -> frozenset[int]:
    """Adds what one more row claims of an entry to what others do."""
    return (before if isinstance(before, frozenset) else frozenset({before})) | {value}


def filled(build: Build, live: int, capacity: int) -> int:
    """Where padding behind so many live entries ends."""
    tile = build.pad_to_multiple_of
    return capacity if tile is None else min(-(-max(live, 1) // tile) * tile, capacity)


def page_of(
    build: Build, entry: int, t: int, maps: tuple[tuple[list[int] | None, int], ...], largest: int
) -> tuple[int | None, Reason | None]:
    """The page of token ``t`` of an entry, or None and why."""
    if not 0 <= entry < 2**47:
        return None, Reason.BAD_ID
    token = entry * build.source_page_size + t % build.source_page_size
    if build.shard is not None and build.shard.source == "global":
        run = build.shard.interleave
        token = token // (run * build.shard.size) * run + token % run
    for table, size in maps:
        if table is not None:
            if token // size >= len(table):
                return None, Reason.BAD_MAP
            target = table[token // size]
            if not 0 <= target < 2**47:
                return None, Reason.BAD_ID
            token = target * size + token % size
    page = token // build.page_size
    if page > largest:
        return None, Reason.BAD_ID
    return page, None
