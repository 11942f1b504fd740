"""What the oracle looks up, entry by entry: whose a token is, which page it lies in, what two rows claim."""

from __future__ import annotations

import functools
from bisect import bisect_left
from typing import Any, Protocol

from ...params import LENGTH_MAX, Build
from ...shard import Shard
from ...status import Reason

_LISTED = 1 << 20  # positions


class Positions(Protocol):
    """Rising positions in a row."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int, /) -> int: ...


class _Rounds:
    """A rank's positions without a list of them: of every round, the same as of the first."""

    def __init__(self, shard: Shard, end: int) -> None:
        self._round = shard.size * shard.interleave
        self._first = rank_positions(shard, self._round)
        rounds, rest = divmod(end, self._round)
        self._len = rounds * len(self._first) + bisect_left(self._first, rest)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, n: int) -> int:
        rounds, at = divmod(n, len(self._first))
        return rounds * self._round + self._first[at]


@functools.lru_cache(maxsize=64)
def rank_positions(shard: Shard | None, end: int) -> Positions:
    """The positions before ``end`` whose tokens the rank holds."""
    if shard is None:
        return range(end)
    if end > max(_LISTED, shard.size * shard.interleave):
        return _Rounds(shard, end)
    return [t for t in range(end) if t // shard.interleave % shard.size == shard.rank]


def whole_length(mine: Positions, length: int, start: int) -> int:
    """The length of a row of which so many of the rank's tokens follow ``start``: it ends with the last.

    One that has more of them than ``mine``, the rank's positions that the source has room for, is longer
    than the source.
    """
    last = bisect_left(mine, start) + length - 1
    if length <= 0:
        return start + length
    return mine[last] + 1 if last < len(mine) else LENGTH_MAX


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


def new_slots(build: Build) -> list[int]:
    """What the slots of new tokens are in the last view's pool: -1 for none, 0 past those that are given."""
    out, slots, table = build.window_out_cache_loc, build.out_cache_loc, build.views[-1].token_map
    assert out is not None
    assert slots is not None
    assert table is not None
    count = len(slots) if build.num_out_tokens is None else build.num_out_tokens
    given, targets = slots.tolist()[: max(count, 0)][: len(out)], table.tolist()
    found = [max(targets[slot], -1) if 0 <= slot < len(targets) else -1 for slot in given]
    return found + [0] * (len(out) - len(found))


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
