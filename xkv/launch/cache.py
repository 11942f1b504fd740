"""The launch cache: calls of a known signature are launched without a new `Build`.

A `CacheEntry` serves one signature: dtypes, devices, options, and which arguments are not None. It holds the
kernels that were compiled for it, and the positions of its pointers and sizes among a launch's arguments. The
grid is computed from the sizes at hand, so that a call with new sizes costs as much as a repeated one. The
ops, `MetadataBuilder` and the engines' plugins all launch through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .. import dispatch
from ..params import INT32_MAX, Build
from ..platforms.detect import platform
from . import compile, memory
from .grid import schedule_sizes
from .launch import CompiledLaunch

# The arguments of a launcher's call, the list among them that holds the kernel's, and what launches it.
PreparedCall = tuple[list[Any], list[Any], CompiledLaunch]
_MAX_SCHEDULES = 4096  # that an entry keeps: a tuple and a few ints each
MAX_ENTRIES = 256  # that one cache keeps; an engine has a few dtypes of a few calls


class CacheEntry:
    """All launches of one signature. It keeps no tensor alive.

    Args:
        build: a build of this signature.
        pointers: the kernel's names of the tensors whose addresses `prepare` takes.
        sizes: the kernel's names of the integers that it takes.

    Attributes:
        positions: the indices among a call's arguments of the pointers, the sizes and the own tiles.
    """

    __slots__ = (
        "_access_pattern", "_compiled", "_host_inputs", "_names", "_num_views", "_prepared",
        "_schedules", "_target", "_writes_sums", "positions",
    )  # fmt: skip

    def __init__(self, build: Build, pointers: Iterable[str], sizes: Iterable[str]) -> None:
        self._access_pattern = build.access_pattern
        self._writes_sums, self._num_views = build.writes_sums, len(build.views)
        self._target = platform(build.req_to_token.device)
        self._host_inputs = memory.inputs_on_host(build)
        self._names = (*pointers, *sizes, "own_tiles")
        self.positions: list[int] = []
        self._compiled: dict[Any, CompiledLaunch] = {}
        self._schedules: dict[tuple[int, int], Any] = {}
        self._prepared: dict[int, PreparedCall] = {}

    def add(self, compiled: CompiledLaunch) -> None:
        """Adds the compiled launch of a build of this signature."""
        if compiled.fast_path:
            schedule = compiled.schedule
            self.positions = [compiled.first + compile.positions()[name] for name in self._names]
            # set last: an interrupt may come between any two lines
            self._compiled[compiled.tuning, schedule.balance, schedule.int64_tiles] = compiled

    def _schedule(self, batch: int, row_items: int) -> tuple[Any, ...] | None:
        """Returns the grid, own tiles and kernel for these sizes; None if it is not compiled yet."""
        tuning = dispatch.tuning_row(self._target, self._access_pattern, batch)
        schedule = schedule_sizes(
            batch, row_items, self._writes_sums, self._num_views, tuning, self._target,
            self._access_pattern, self._host_inputs,
        )  # fmt: skip
        compiled = self._compiled.get((tuning, schedule.balance, schedule.int64_tiles))
        if compiled is None:
            return None
        if len(self._schedules) >= _MAX_SCHEDULES:
            self._schedules.clear()
        found = self._schedules[batch, row_items] = schedule.grid, schedule.own_tiles, compiled
        return found

    def call(
        self, pointers: Sequence[int], sizes: Sequence[int], batch: int, row_items: int
    ) -> tuple[list[Any], CompiledLaunch] | None:
        """Returns what `prepare` does, without the list, for a call that is launched or repeated as it is."""
        found = self.prepare(pointers, sizes, batch, row_items)
        return None if found is None else (found[0], found[2])

    def prepare(
        self, pointers: Sequence[int], sizes: Sequence[int], batch: int, row_items: int
    ) -> PreparedCall | None:
        """Returns a call for these sizes; None if their kernel is not compiled.

        Args:
            pointers: addresses, in the order of the names that the entry was made with.
            sizes: integers, likewise.
            batch: requests.
            row_items: upper bound of the entries in one row.
        """
        found = self._schedules.get((batch, row_items)) or self._schedule(batch, row_items)
        if found is None:
            return None
        grid, own_tiles, compiled = found
        call, args = compiled.make_call(self.positions, (*pointers, *sizes, own_tiles), grid)
        return call, args, compiled

    def prepared(self, batch: int, row_items: int) -> PreparedCall | None:
        """Returns the one call kept for this batch size, its arguments, and its `CompiledLaunch`.

        For one thread at a time, which writes its inputs into the arguments. None if no kernel is compiled
        for these sizes.
        """
        found = self._prepared.get(batch)
        if found is None:
            found = self.prepare((), (batch,), batch, row_items)
            if found is None:
                return None
            if len(self._prepared) >= _MAX_SCHEDULES:
                self._prepared.clear()
            self._prepared[batch] = found
        return found


class LaunchCache:
    """The entries of one place that launches, by signature; bounded."""

    __slots__ = ("_by_signature",)

    def __init__(self) -> None:
        self._by_signature: dict[Any, CacheEntry] = {}

    def get(self, signature: Any) -> CacheEntry | None:
        """Returns the entry of a signature, or None."""
        return self._by_signature.get(signature)

    def add(
        self, signature: Any, build: Build, compiled: CompiledLaunch | None,
        pointers: Iterable[str], sizes: Iterable[str],
    ) -> CacheEntry | None:  # fmt: skip
        """Adds the compiled launch of a build to its signature's entry; returns it, or None on a CPU."""
        if compiled is None or not compiled.fast_path:
            return None
        entry = self._by_signature.get(signature)
        if entry is None:
            if len(self._by_signature) >= MAX_ENTRIES:
                self._by_signature.clear()
            entry = CacheEntry(build, pointers, sizes)
        entry.add(compiled)
        self._by_signature[signature] = entry  # set last: an interrupt may come between any two lines
        return entry

    def __len__(self) -> int:
        return len(self._by_signature)

    def clear(self) -> None:
        """Removes every entry."""
        self._by_signature.clear()


def sums_fit(rows: int, tokens: int, page_size: int) -> bool:
    """Whether the lengths of so many rows, each with a page more, add up to an int32."""
    return rows * (tokens + page_size) <= INT32_MAX


def fits_int32(*sizes: int | None) -> bool:
    """Whether all of them fit: a larger one may have another type in the compiled kernel."""
    return all(x is None or x <= INT32_MAX for x in sizes)
