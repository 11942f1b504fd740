"""What times tuning rows against each other on a GPU.

Workloads, checks and timing, in place, are those of `python -m xkv bench`. For each class of rows, every
candidate is timed at one page size, on page tables if its row builds any; then the best of them, and the row
in use, for longer, at every page size and on CSR indices too. Slots are timed for the query tokens of a
decode step and of a prefill, extensions on steps that each add a token to every request.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ... import dispatch
from ...launch import launch
from ...platforms.detect import Platform
from ...platforms.tuning import ChosenTuning
from ..bench import inputs, records, timing
from ..bench.predecessor import PREDECESSORS
from . import chosen, points
from . import rows as tune_rows
from .chosen import ChosenPoint
from .chosen_rows import ChosenClass
from .classes import AnyClass, Class
from .points import Point, Prepared
from .rows import Row

_COARSE_ROUNDS = 5
_COARSE_SHARE = 0.5  # of a class's time

Times = dict[Row, dict[str, float]]
Launch = Callable[[], None]


class Sweep:
    """The GPU side.

    Args:
        classes: what is swept.
        where: the platform.
        predecessor: the kernel before each launch, a name of `PREDECESSORS`.
        stream: launches on a stream, not from a graph.
        device: its torch device.

    Attributes:
        wrong: what a row built that it should not have, a sentence each; such a row is out.
        left_out: the rows and points that there was no time for, or whose times were lost in noise.
        warp_size: lanes of a warp.
    """

    def __init__(
        self, classes: Sequence[AnyClass], where: Platform, predecessor: str = "add", stream: bool = False,
        device: str = "cuda",
    ) -> None:  # fmt: skip
        self.wrong: list[str] = []
        self.left_out: list[str] = []
        self._where, self._before, self._stream = where, PREDECESSORS[predecessor], stream
        self._device = device
        self.warp_size = where.warp_size
        loads = [load for each in classes if isinstance(each, Class) for load in each.loads]
        self._sources = inputs.make_sources(loads, device)

    def times(
        self, rows: Sequence[Row], those: Sequence[Point | ChosenPoint], rounds: int, deadline: float
    ) -> Times:
        """Times rows against each other on each of the points. Syncs.

        Args:
            rows: tuning rows that differ.
            those: points, at least one.
            rounds: timed replays of each row.
            deadline: by time.perf_counter(); once it has passed, rows are left out of the first point
                (where they compile), and points after it as a whole.

        Returns:
            By row, by point, microseconds, the median over rounds; each row has the same points.
        """
        times: Times = {row: {} for row in rows}
        for point in tqdm(those, unit="point", file=sys.stderr, leave=False):
            first = point is those[0]
            if not first and time.perf_counter() > deadline:
                self.left_out.append(point.name)
                continue
            made = self._prepare(point)
            ready: dict[Row, list[Launch]] = {}
            for row in list(times):
                if first and ready and time.perf_counter() > deadline:
                    del times[row]
                    continue
                ready[row] = [launched(build, row, self._where) for build in made.builds]
            if first and len(ready) < len(rows):
                self.left_out.append(f"{point.name}: {len(rows) - len(ready)} of {len(rows)} rows")
            for row in self._wrong(made, point, ready):
                del times[row], ready[row]
            calls = {
                str(n): functools.partial(_launch, prepared) for n, prepared in enumerate(ready.values())
            }
            add: Callable[[Tensor], object] = self._before
            if made.more:
                add = functools.partial(torch.Tensor.add_, other=made.more)
            before = functools.partial(_call_before, add, made.lens)
            numbers = range(inputs.LAUNCHES)
            found = timing.in_place(calls, before, numbers, made.warm, rounds, stream=self._stream)
            for row, us in zip(ready, found.values(), strict=True):
                times[row][point.name] = records.median_us(us)
                if times[row][point.name] < records.SHORTEST:
                    self.left_out.append(f"{point.name}: {row}: lost in the noise of the kernel before")
                    del times[row]
        return times

    def _prepare(self, point: Point | ChosenPoint) -> Prepared:
        if isinstance(point, ChosenPoint):
            return chosen.prepare(point, self._device)
        return points.prepare(point, self._sources[point.load.capacity])

    def _wrong(self, made: Prepared, point: Point | ChosenPoint, ready: dict[Row, list[Launch]]) -> list[Row]:
        """Launches each row once; returns those whose result is wrong."""
        found = {row: made.difference(launches[0]) for row, launches in ready.items()}
        wrong = {row: what for row, what in found.items() if what}
        self.wrong += [f"{point.name}: {row}: {what}" for row, what in wrong.items()]
        return list(wrong)


def launched(build: Any, row: Row, where: Platform) -> Launch:
    """Compiles a launch with this row; returns what launches it."""
    if isinstance(row, ChosenTuning):
        return chosen.launched(build, row, where)
    return functools.partial(launch.CompiledLaunch(build, row, where).run, build)


def _launch(prepared: Sequence[Launch], number: int) -> None:
    """The launch of that number in a graph: the sets of source rows in turn."""
    prepared[number % len(prepared)]()


def _call_before(before: Callable[[Tensor], object], lens: Sequence[Tensor], number: int) -> None:
    """The kernel before the launch of that number."""
    before(lens[number % len(lens)])


def fine(each: AnyClass) -> Sequence[Point | ChosenPoint]:
    """What the second stage times a class on."""
    return chosen.fine(each) if isinstance(each, ChosenClass) else points.fine(each)


def coarse(each: AnyClass) -> Sequence[Point | ChosenPoint]:
    """What the first stage times it on."""
    return chosen.coarse(each) if isinstance(each, ChosenClass) else points.coarse(each)


def sweep(
    each: AnyClass, rig: Sweep, base: Row, args: argparse.Namespace, share: float
) -> tuple[Times, Times]:
    """Times all candidates of a class, then the best of them for longer.

    Args:
        each: the class.
        rig: what times them.
        base: the row in use.
        args: --keep, --rounds, --jobs.
        share: seconds that it may take, about.

    Returns:
        What `Sweep.times` gave, of the coarse stage and of the other.
    """
    begin = time.perf_counter()
    rows = tune_rows.candidates(base, each.grid, rig.warp_size)
    first = rig.times(rows, coarse(each), _COARSE_ROUNDS, begin + share * _COARSE_SHARE)
    rows = tune_rows.finalists(tune_rows.ranked(first), base, args.keep)
    return first, rig.times(rows, fine(each), args.rounds, begin + share)


def in_use(each: AnyClass, where: Platform) -> Row:
    """The class's row in use."""
    if isinstance(each, ChosenClass):
        chosen_row = dispatch.chosen_row(where, each.tokens[0], each.whole_rows)
        return dataclasses.replace(chosen_row, max_tokens=each.max_tokens, provenance="swept")
    row = dispatch.tuning_row(where, each.access_pattern, each.max_batch or 1 << 16)
    return dataclasses.replace(row, max_batch=each.max_batch, provenance="swept")
