"""The launch cache: what a call needs that is like an earlier one in all but sizes, row strides and data.

A `CacheEntry` holds, for one signature (dtypes, devices, which arguments are given, options), the kernels
that were compiled for it and where in a launch's arguments its pointers and sizes go. The grid is computed
from the sizes at hand, so that a call with sizes that were never seen costs what a repeated one costs. The
ops, the builder and the engines' plugins all launch through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .. import dispatch
from ..params import INT32_MAX, Build
from ..platforms.detect import platform
from . import compile, memory
from .grid import deal
from .launch import CompiledLaunch

_MOST = 4096  # grids that an entry remembers: a tuple and a few ints each
MOST_ENTRIES = 256  # that one place keeps; an engine has a few dtypes of a few calls


class CacheEntry:
    """All launches of one signature. It keeps no tensor alive.

    Args:
        build: a build of this signature.
        pointers: the kernel's names of the tensors that `launch` is given.
        sizes: and of the integers.
    """

    __slots__ = (
        "_at", "_compiled", "_dealt", "_host_inputs", "_kind", "_names", "_prepared", "_sums", "_views",
        "_where",
    )  # fmt: skip

    def __init__(self, build: Build, pointers: Iterable[str], sizes: Iterable[str]) -> None:
        self._kind, self._sums, self._views = build.kind, build.writes_sums, len(build.views)
        self._where = platform(build.req_to_token.device)
        self._host_inputs = memory.inputs_on_host(build)
        self._names = (*pointers, *sizes, "own_tiles")
        self._at: list[int] = []
        self._compiled: dict[Any, CompiledLaunch] = {}
        self._dealt: dict[tuple[int, int], Any] = {}
        self._prepared: dict[int, tuple[list[Any], list[Any], CompiledLaunch]] = {}

    def add(self, compiled: CompiledLaunch) -> None:
        """Keeps what a build of this signature was launched with."""
        if compiled.fast_path:
            plan = compiled.schedule
            self._at = [compiled.first + compile.positions()[name] for name in self._names]
            # last, as a call may be interrupted
            self._compiled[compiled.row, plan.balance, plan.int64_tiles] = compiled

    def _deal(self, batch: int, row_items: int) -> tuple[Any, ...] | None:
        """Deals out work of these sizes: the grid, own tiles and kernel; None: not compiled yet."""
        row = dispatch.tuning_row(self._where, self._kind, batch)
        plan = deal(batch, row_items, self._sums, self._views, row, self._where, self._host_inputs)
        compiled = self._compiled.get((row, plan.balance, plan.int64_tiles))
        if compiled is None:
            return None
        if len(self._dealt) >= _MOST:
            self._dealt.clear()
        found = self._dealt[batch, row_items] = plan.grid, plan.own_tiles, compiled
        return found

    def launch(self, pointers: Sequence[int], sizes: Sequence[int], batch: int, row_items: int) -> bool:
        """Launches, if the kernel for these sizes is there; else returns False.

        Args:
            pointers: addresses, in the order of the names that the entry was made with.
            sizes: integers, likewise.
            batch: requests.
            row_items: upper bound of the entries in one row.
        """
        found = self.call(pointers, sizes, batch, row_items)
        if found is None:
            return False
        call, compiled = found
        compiled.launch(call)
        return True

    def call(
        self, pointers: Sequence[int], sizes: Sequence[int], batch: int, row_items: int
    ) -> tuple[list[Any], CompiledLaunch] | None:
        """Returns what `launch` launches, and what launches it; it may be launched again as it is."""
        found = self._dealt.get((batch, row_items)) or self._deal(batch, row_items)
        if found is None:
            return None
        grid, own_tiles, compiled = found
        return compiled.filled(self._at, (*pointers, *sizes, own_tiles), grid)[0], compiled

    def prepared(self, batch: int, row_items: int) -> tuple[list[Any], list[Any], Any] | None:
        """Returns a call of this batch, its arguments, and what launches it; the same ones every time.

        For one thread at a time, which puts its inputs among the arguments. None where nothing is compiled.
        """
        found = self._prepared.get(batch)
        if found is None:
            dealt = self._dealt.get((batch, row_items)) or self._deal(batch, row_items)
            if dealt is None:
                return None
            grid, own_tiles, compiled = dealt
            if len(self._prepared) >= _MOST:
                self._prepared.clear()
            call, args = compiled.filled(self._at, (batch, own_tiles), grid)
            found = self._prepared[batch] = call, args, compiled
        return found


class Entries:
    """The entries of one place that launches, by signature; bounded."""

    __slots__ = ("_by_signature",)

    def __init__(self) -> None:
        self._by_signature: dict[Any, CacheEntry] = {}

    def get(self, signature: Any) -> CacheEntry | None:
        """Returns the entry of a signature, if there is one."""
        return self._by_signature.get(signature)

    def made(
        self, signature: Any, build: Build, compiled: CompiledLaunch | None,
        pointers: Iterable[str], sizes: Iterable[str],
    ) -> CacheEntry | None:  # fmt: skip
        """Keeps what a build of this signature was launched with; returns its entry, or None on a CPU."""
        if compiled is None or not compiled.fast_path:
            return None
        entry = self._by_signature.get(signature)
        if entry is None:
            if len(self._by_signature) >= MOST_ENTRIES:
                self._by_signature.clear()
            entry = CacheEntry(build, pointers, sizes)
        entry.add(compiled)
        self._by_signature[signature] = entry  # last: a call may be interrupted
        return entry

    def __len__(self) -> int:
        return len(self._by_signature)

    def clear(self) -> None:
        """Forgets every entry."""
        self._by_signature.clear()


def fits_int32(*sizes: int | None) -> bool:
    """Whether all of them do: a larger one may be of another type to the compiled kernel."""
    return all(x is None or x <= INT32_MAX for x in sizes)
