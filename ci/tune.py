"""Sweeps tuning rows on the GPU at hand and prints the best as source for xkv/<vendor>/tuning.py.

    PYTHONPATH=. python ci/tune.py --json tune.json

Workloads, checks and timing, in place, are those of `python -m xkv bench`. For each class of rows, every
candidate is timed at one page size, on page tables if its row builds any; then the best of them, and the row
in use, for longer, at every page size and on CSR indices too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, get_args

import torch
import tune_rows
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm
from tune_rows import CLASSES, SWEPT, Class

import xkv
from xkv import dispatch
from xkv.cli.bench import inputs, oracle, providers, records, timing
from xkv.cli.bench.cases import OURS, Case
from xkv.cli.bench.inputs import Inputs, Step
from xkv.cli.bench.predecessor import PREDECESSORS
from xkv.cli.bench.providers import Provider
from xkv.cli.bench.sglang import Plugin, SGLang
from xkv.cli.bench.workloads import Workload
from xkv.launch import launch
from xkv.launch.grid import make_schedule
from xkv.params import CSR, TABLE, Build, View
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import AccessPattern, Tuning

_COARSE_ROUNDS = 5
_COARSE_SHARE = 0.5  # of a class's time

Times = dict[Tuning, dict[str, float]]
Launch = Callable[[], None]


class Point(NamedTuple):
    """What a row is timed on: a workload, a page size, TABLE or CSR, tokens of a source entry."""

    load: Workload
    size: int
    form: int
    source_page_size: int = 1

    @property
    def case(self) -> Case:
        """What is built."""
        return Case("table" if self.form == TABLE else "csr", self.size)

    @property
    def name(self) -> str:
        """For the reader."""
        of_pages = f" of {self.source_page_size}" if self.source_page_size > 1 else ""
        return f"{self.load.name}, page {self.size}{of_pages}{', csr' * (self.form == CSR)}"


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
    """

    def __init__(
        self, classes: Sequence[Class], where: Platform, predecessor: str = "add", stream: bool = False,
        device: str = "cuda",
    ) -> None:  # fmt: skip
        self.wrong: list[str] = []
        self.left_out: list[str] = []
        self._where, self._before, self._stream = where, PREDECESSORS[predecessor], stream
        loads = [load for each in classes for load in each.loads]
        self._sources = inputs.make_sources(loads, device)

    def times(self, rows: Sequence[Tuning], points: Sequence[Point], rounds: int, deadline: float) -> Times:
        """Times rows against each other on each of the points. Syncs.

        Args:
            rows: tuning rows that differ.
            points: at least one.
            rounds: timed replays of each row.
            deadline: by time.perf_counter(); once it has passed, rows are left out of the first point
                (where they compile), and points after it as a whole.

        Returns:
            By row, by point, microseconds, the median over rounds; each row has the same points.
        """
        times: Times = {row: {} for row in rows}
        for point in tqdm(points, unit="point", file=sys.stderr, leave=False):
            first = point is points[0]
            if not first and time.perf_counter() > deadline:
                self.left_out.append(point.name)
                continue
            at = inputs.make_inputs(point.case, point.load, self._sources[point.load.capacity])
            ours = providers.makers(at, SGLang([]), Plugin([]))[OURS]()
            out = dict(ours.results or {})
            source = _source(at, point.source_page_size)
            builds = [_build(at, point, source, out, step) for step in at.steps]
            ready: dict[Tuning, list[Launch]] = {}
            for row in list(times):
                if first and ready and time.perf_counter() > deadline:
                    self.left_out.append(str(row))
                    del times[row]
                    continue
                ready[row] = [
                    functools.partial(launch.CompiledLaunch(build, row, self._where).run, build)
                    for build in builds
                ]
            for row in self._wrong(at, point, ours, ready):
                del times[row], ready[row]
            calls = {
                str(n): functools.partial(_launch, prepared) for n, prepared in enumerate(ready.values())
            }
            warm = [at.index, at.lens]
            before = functools.partial(_call_before, self._before, at.launches)
            numbers = range(inputs.LAUNCHES)
            found = timing.in_place(calls, before, numbers, warm, rounds, stream=self._stream)
            for row, us in zip(ready, found.values(), strict=True):
                times[row][point.name] = records.median_us(us)
                if times[row][point.name] < records.SHORTEST:
                    self.left_out.append(f"{point.name}: {row}: lost in the noise of the kernel before")
                    del times[row]
        return times

    def _wrong(
        self, at: Inputs, point: Point, ours: Provider, ready: dict[Tuning, list[Launch]]
    ) -> list[Tuning]:
        """Launches each row once; returns those whose result is wrong."""
        first = dataclasses.replace(at, steps=at.steps[:1])

        def call(row: Tuning, step: Step) -> None:
            _launch(ready[row], 0)  # is for that step

        found = {
            row: oracle.difference(first, dataclasses.replace(ours, call=functools.partial(call, row)))
            for row in ready
        }
        wrong = {row: what for row, what in found.items() if what}
        self.wrong += [f"{point.name}: {row}: {what}" for row, what in wrong.items()]
        return list(wrong)


def _source(at: Inputs, page_size: int) -> Tensor:
    """The source of slots, or that of the pages which they lie in: it shows the same tokens."""
    return at.source if page_size == 1 else at.source[:, ::page_size] // page_size


def _build(at: Inputs, point: Point, source: Tensor, out: dict[str, Tensor], step: Step) -> Build:
    if point.form == TABLE:
        view = View(out["page_table"])
    else:
        view = View(out["kv_indices"], kv_indptr=out["kv_indptr"], kv_last_page_len=out["kv_last_page_len"])
    sizes = at.page_size, point.source_page_size, at.page_size
    return Build(source, step.rows, step.lens, point.form, *sizes, (view,))


def _launch(prepared: Sequence[Launch], number: int) -> None:
    """The launch of that number in a graph: the sets of source rows in turn."""
    prepared[number % len(prepared)]()


def _call_before(before: Callable[[Tensor], None], launches: Sequence[Step], number: int) -> None:
    """The kernel before the launch of that number."""
    before(launches[number].lens)


def precompile(work: Sequence[tuple[Sequence[Tuning], Sequence[Point]]], jobs: int) -> None:
    """Fills Triton's cache on disk in processes of their own: compiling is most of a sweep's time.

    Args:
        work: tuning rows, and what they will be timed on.
        jobs: processes; 0: nothing is done.
    """
    context = multiprocessing.get_context("spawn")  # a forked process has no CUDA
    processes = [context.Process(target=_compile_share, args=(work, n, jobs)) for n in range(jobs)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()


def _compile_share(work: Sequence[tuple[Sequence[Tuning], Sequence[Point]]], number: int, jobs: int) -> None:
    where, seen = xkv.platform(), set()
    pairs = itertools.chain.from_iterable(itertools.product(points, rows) for rows, points in work)
    for point, row in pairs:
        load = point.load
        source = torch.empty((1, load.capacity), dtype=torch.int32, device="cuda")
        index = torch.zeros((1, load.batch), dtype=torch.int64, device="cuda")
        step = Step(index[0], index[0], torch.zeros(load.batch, dtype=torch.int64), 0)
        at = Inputs(point.case, source, load.capacity, index, index, [step])
        fields = {name: at.ints(1) for name in ("kv_indptr", "kv_last_page_len")}
        fields["page_table"] = at.ints(1, at.width).expand(load.batch, at.width)
        fields["kv_indices"] = at.ints(1).expand(load.batch * at.width)
        build = _build(at, point, _source(at, point.source_page_size), fields, step)
        plan = make_schedule(build, row, where)
        blocks = plan.num_page_per_block, row.batch_block
        key = (
            *blocks,
            row.num_warps,
            row.pdl_on_streams,
            plan.balance,
            plan.int64_tiles,
            *point[1:],
        )
        if key not in seen:
            seen.add(key)
            if len(seen) % jobs == number:
                launch.CompiledLaunch(build, row, where)


def sweep(
    each: Class, rig: Sweep, base: Tuning, args: argparse.Namespace, share: float
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
    rows = tune_rows.candidates(base, each.grid)
    coarse = [Point(load, each.sizes[0], each.forms[0], each.source_page_size) for load in each.loads]
    first = rig.times(rows, coarse, _COARSE_ROUNDS, begin + share * _COARSE_SHARE)
    rows = tune_rows.finalists(tune_rows.ranked(first), base, args.keep)
    return first, rig.times(rows, fine(each), args.rounds, begin + share)


def fine(each: Class) -> list[Point]:
    """What the second stage times a class on."""
    points = itertools.product(each.forms, each.sizes, each.loads)
    return [Point(load, size, form, each.source_page_size) for form, size, load in points]


def in_use(each: Class, where: Platform) -> Tuning:
    """The class's row in use."""
    row = dispatch.tuning_row(where, each.access_pattern, each.max_batch or 1 << 16)
    return dataclasses.replace(row, max_batch=each.max_batch, provenance="swept")


def parser() -> argparse.ArgumentParser:
    """The flags: those of the search, and one for each field of a row."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = made.add_argument
    add("--access-patterns", nargs="+", choices=get_args(AccessPattern), default=get_args(AccessPattern))
    add("--minutes", type=float, default=6, help="of all classes together, about (default: %(default)s)")
    add("--keep", type=int, default=8, help="rows of the second stage (default: %(default)s)")
    add("--rounds", type=int, default=25, help="replays in the second stage (default: %(default)s)")
    add("--jobs", type=int, default=0, help="processes that compile beforehand (default: none)")
    add("--predecessor", choices=PREDECESSORS, default="add", help="the kernel before each launch")
    add("--stream", action="store_true", help="launches on a stream, not from a graph")
    add("--json", metavar="FILE", type=Path, help="writes every time there")
    for field in SWEPT:
        flag = "--" + field.replace("_", "-")
        add(flag, metavar="N,N", type=tune_rows.values, help="in place of each class's own values")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Sweeps, and prints the rows.

    Returns:
        The exit status: 0; 1 if a row's result was wrong, which is then named; 2 without a GPU.
    """
    args = parser().parse_args(argv)
    if not torch.cuda.is_available():
        print("tune: rows are measured on a GPU, and there is none", file=sys.stderr)
        return 2
    where = xkv.platform()
    flags = {name: value for name in SWEPT if (value := getattr(args, name)) is not None}
    classes = [
        each._replace(grid=each.grid | flags)
        for each in CLASSES
        if each.access_pattern in args.access_patterns
    ]
    machine, date = timing.versions(), datetime.now(timezone.utc).strftime("%Y-%m-%d")
    precompile([(tune_rows.candidates(in_use(c, where), c.grid), fine(c)) for c in classes], args.jobs)
    rig, best, record = Sweep(classes, where, args.predecessor, args.stream), [], []
    end = time.perf_counter() + args.minutes * 60
    for n, each in enumerate(classes):
        base = in_use(each, where)
        stages = sweep(each, rig, base, args, (end - time.perf_counter()) / (len(classes) - n))
        scores = tune_rows.ranked(stages[-1])
        if not scores:  # all of them are wrong, and named below
            continue
        print(f"\n{each.name}: {len(stages[0])} rows, then {len(scores)}; * is in use", flush=True)
        lines = [["*" * (s.row == base), *(getattr(s.row, x) for x in SWEPT), *s[1:]] for s in scores]
        print(tabulate(lines, ["", *SWEPT, "of best", "most", "at"], floatfmt=".3f"), flush=True)
        text = tune_rows.provenance(scores[0], machine, date)
        best.append(dataclasses.replace(scores[0].row, provenance=text))
        listed = [[{"row": asdict(row), "us": us} for row, us in times.items()] for times in stages]
        record.append({"class": each.name, "base": asdict(base), "stages": listed})
    print("\n", *map(tune_rows.source, best), sep="\n")
    for what in rig.left_out:
        print(f"left out: {what}")
    if args.json is not None:
        setting = {**machine, "date": date, "platform": str(where), "command": shlex.join(sys.argv)}
        more = {"rows": [asdict(row) for row in best], "left_out": rig.left_out, "wrong": rig.wrong}
        args.json.write_text(json.dumps({**setting, **more, "classes": record}, indent=1) + "\n")
    if rig.wrong:
        print("tune: wrong, and out:", *rig.wrong, sep="\n", file=sys.stderr)
    return 1 if rig.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
