"""Ranks tuning rows by counting, without a GPU, and says how far measured times bear that out.

    PYTHONPATH=. python ci/model.py gfx942                           # rows in use, and what counting prefers
    PYTHONPATH=. python ci/model.py sm90 --measured tune.json        # beside what ci/tune.py --json measured

Each candidate of ci/tune.py is compiled for each of its points. What its code does for a tile is counted in
the assembly (ci/model_counts.py), and a few numbers of the GPU make times of it (ci/model_times.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import model_counts
import model_times
from tabulate import tabulate

from xkv import dispatch
from xkv.chosen import ChosenTokens
from xkv.cli.kernels import resources, units
from xkv.cli.kernels.compiling import compiled, compiled_chosen
from xkv.cli.kernels.units import UNITS, Unit
from xkv.cli.kernels.variants import meta
from xkv.cli.tune import sweep
from xkv.cli.tune.chosen_rows import CHOSEN_CLASSES, ChosenClass
from xkv.cli.tune.classes import CLASSES, SWEPT, Class, widened
from xkv.cli.tune.compiling import build_for
from xkv.cli.tune.points import Point, coarse
from xkv.cli.tune.rows import TIE, Row, candidates, ranked, source
from xkv.launch.grid import Schedule, make_schedule
from xkv.params import CSR, LAST_ENTRIES, SLOTS, Build
from xkv.platforms.tuning import Tuning

Times = Mapping[Row, Mapping[str, float]]


class Counted(NamedTuple):
    """A row at a point.

    Attributes:
        kernel: what its code does.
        schedule: its grid.
        programs: that a compute unit holds at a time.
        spills: whether it has too few registers, vector or scalar.
        estimate: the time; None of an extension, which is a chain of two loads whatever its row.
    """

    kernel: model_counts.Kernel
    schedule: Schedule
    programs: int
    spills: bool
    estimate: model_times.Estimate | None


class Model:
    """Counts rows of one arch.

    Args:
        arch: a key of `xkv.cli.kernels.units.UNITS` and of `model_times.GPUS`.
    """

    def __init__(self, arch: str) -> None:
        self.unit: Unit = UNITS[arch]
        self._gpu = model_times.GPUS[arch]
        self._builds: dict[Point, Build] = {}
        self._counts: dict[tuple[Any, ...], tuple[model_counts.Kernel, int, bool]] = {}

    def counted(self, row: Tuning, point: Point) -> Counted:
        """Counts one row at one point."""
        if point not in self._builds:
            self._builds[point] = build_for(point, "meta")
        where, build = self.unit.platform, self._builds[point]
        schedule = make_schedule(build, row, where)
        extends = row.tiles_per_program if build.extends else 0
        key = (
            point[1:], schedule.num_page_per_block, schedule.balance, row.num_warps, row.batch_block, extends
        )  # fmt: skip
        if key not in self._counts:
            self._counts[key] = self._compile(build, row)
        kernel, programs, spills = self._counts[key]
        if build.extends:
            return Counted(kernel, schedule, programs, spills, None)
        entries = [-(-n // point.size) for n in point.load.lens]
        if point.form == SLOTS:  # the programs divide the query tokens of all rows
            entries = [-(-point.load.batch * point.queries // schedule.grid[0])] * schedule.grid[0]
        launch = model_times.Launch(
            entries, 4 * max(build.page_size // point.source_page_size, 1), point.form == CSR, schedule, row,
            kernel, programs, where.compute_units, where.warp_size,
        )  # fmt: skip
        return Counted(kernel, schedule, programs, spills, model_times.estimate(launch, self._gpu))

    def _compile(self, build: Build, row: Tuning) -> tuple[model_counts.Kernel, int, bool]:
        found = compiled(build, row, self.unit.platform)
        kernel = model_counts.count(found, has_tiles=not build.extends)
        used = resources.read(found)
        return kernel, units.programs(used, self.unit), used.spills + used.scalar_spills > 0

    def in_use(self, each: Class) -> Tuning:
        """The class's row in use."""
        return dataclasses.replace(_tuning(sweep.in_use(each, self.unit.platform)), provenance="counted")

    def times(self, each: Class, rows: Sequence[Row]) -> Times:
        """Microseconds by row and point, where a sweep's first stage tries all rows; none of extensions.

        Rows whose kernels spill are left out, as no tuning row's may.
        """
        found: dict[Row, dict[str, float]] = {}
        for row in rows:
            counted = {point.name: self.counted(_tuning(row), point) for point in coarse(each)}
            if not any(one.spills for one in counted.values()):
                found[row] = {
                    name: one.estimate.us for name, one in counted.items() if one.estimate is not None
                }
        return found


def _tuning(row: Row) -> Tuning:
    if not isinstance(row, Tuning):
        raise TypeError(f"rows of chosen positions are not counted, got {row}")
    return row


def measured(path: Path) -> dict[str, Times]:
    """What a sweep measured of all rows, by class."""
    return {
        each["class"]: {
            Tuning(**row["row"] | {"provenance": "counted"}): row["us"] for row in each["stages"][0]
        }
        for each in json.loads(path.read_text())["classes"]
        if "whole_rows" not in each["base"]
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: 1 if both order alike, 0 if neither tells of the other; NaN if one does not order."""
    orders = [[sorted(x).index(n) + sorted(x).count(n) / 2 for n in x] for x in (a, b)]
    if any(len(set(order)) == 1 for order in orders):
        return math.nan
    return statistics.correlation(*orders)


def compared(each: Class, base: Row, counted: Times, times: Times) -> list[Any]:
    """One class in the table: how well counting orders its rows, and what those that it prefers cost."""
    means = {score.row: score.mean for score in ranked(counted)}
    scores = {score.row: score.mean for score in ranked(times)}
    best, rows = min(scores.values()), list(scores)
    preferred = [scores[row] / best for row in rows if means[row] <= min(means.values()) * TIE]
    return [
        each.name, len(rows), rank_correlation([means[r] for r in rows], [scores[r] for r in rows]),
        len(preferred), statistics.geometric_mean(preferred), max(preferred), scores[base] / best,
        statistics.median(scores.values()) / best, max(scores.values()) / best,
    ]  # fmt: skip


def shown(model: Model, each: Class, mark: str, row: Tuning, mean: float | None) -> list[Any]:
    """One row in the table, at the last workload of its class."""
    one = model.counted(row, coarse(each)[-1])
    work = one.kernel.tile if one.estimate is not None else one.kernel.before
    lanes, block = row.num_warps * model.unit.platform.warp_size, one.schedule.num_page_per_block
    if one.estimate is None:
        block = row.tiles_per_program * LAST_ENTRIES
    return [
        mark, each.name, *(getattr(row, name) for name in SWEPT[:-2]), work.instructions * lanes / block,
        work.vector * lanes / block, (work.loads + work.stores) * row.num_warps * 1e3 / block,
        None if one.estimate is None else one.estimate.useful, one.programs * row.num_warps, mean,
    ]  # fmt: skip


def shown_chosen(model: Model, each: ChosenClass) -> list[Any]:
    """The row in use of translations of chosen positions: all that a program does, for each position."""
    where = model.unit.platform
    row = dispatch.chosen_row(where, each.tokens[0], each.whole_rows)
    build = ChosenTokens(
        meta(256, 4096), meta(4096, 2048), meta(4096, 2048), source_page_size=64, block_stride=64,
        token_to_req=meta(4096), seq_lens=meta(256), compact=each.whole_rows,
        counts=meta(4096) if each.whole_rows else None,
    )  # fmt: skip
    found = compiled_chosen(build, row, where)
    work, lanes = model_counts.count(found, has_tiles=False).before, row.num_warps * where.warp_size
    fields = [row.block, row.num_warps, *[None] * (len(SWEPT) - 4)]
    return [
        "*", each.name, *fields, work.instructions * lanes / row.block, work.vector * lanes / row.block,
        (work.loads + work.stores) * row.num_warps * 1e3 / row.block, None,
        units.programs(resources.read(found), model.unit) * row.num_warps, None,
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Counts, ranks and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("arch", choices=model_times.GPUS)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what ci/tune.py --json wrote there")
    args = parser.parse_args(argv)
    model = Model(args.arch)
    lanes = model.unit.platform.warp_size
    of_class = {} if args.measured is None else measured(args.measured)
    rows: list[list[Any]] = []
    comparison: list[list[Any]] = []
    best: list[Row] = []
    for each in CLASSES:
        grid = widened(each, lanes).grid
        if of_class and each.name not in of_class:
            continue
        base = model.in_use(each)
        tried = list(of_class[each.name]) if of_class else candidates(base, grid, lanes)
        counted = model.times(each, list(dict.fromkeys([base, *tried])))
        scores = {score.row: score.mean for score in ranked(counted)} if each.kind != "extension" else {}
        rows.append(shown(model, each, "*", base, scores.get(base)))
        if scores:
            first = _tuning(next(iter(scores)))
            best.append(first)
            rows.append(shown(model, each, "", first, scores[first]))
        if of_class and scores:
            comparison.append(compared(each, base, counted, of_class[each.name]))
        print(f"{each.name}: {len(tried)} rows", file=sys.stderr, flush=True)
    if not of_class:
        rows += [shown_chosen(model, each) for each in CHOSEN_CLASSES]
    head = [
        "", "class", *SWEPT[:-2], "lane instructions", "vector", "accesses / 1000", "useful", "warps",
        "of best",
    ]  # fmt: skip
    print(tabulate(rows, head, floatfmt=".3g"))
    if comparison:
        head = [
            "class", "rows", "rank correlation", "preferred", "their mean", "their worst", "in use",
            "median row", "worst row",
        ]  # fmt: skip
        print("\n" + tabulate(comparison, head, floatfmt=".2f"))
    print("\n", *map(source, best), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
