"""The candidates that a sweep measures, their ranking, and the output of a row as source."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...platforms.tuning import ChosenTuning, Tuning
from . import chosen_rows
from .classes import SWEPT

Row = Tuning | ChosenTuning

MAX_LANES = 2048  # of the programs of a compute unit
# 64 bits of a mask are a pair of scalar registers for each entry of a lane, of about 100
_ENTRIES_OF_WIDE_LANES = 4
TIE = 1.01  # means that differ by less are equal: the noise of a sweep


class Score(NamedTuple):
    """The times of a row relative to the best row at each point; 1 is the best."""

    row: Row
    mean: float
    worst: float
    where: str


def swept(row: Row) -> list[str]:
    """The fields of such a row that a sweep varies."""
    return chosen_rows.SWEPT if isinstance(row, ChosenTuning) else SWEPT


def _fits(row: Row, warp_size: int) -> bool:
    """Whether a compute unit holds its programs, and a wide lane's registers its entries."""
    lanes = row.num_warps * warp_size
    if isinstance(row, ChosenTuning):
        largest, fits = row.block, row.min_warps <= row.num_warps
    else:
        largest = max(row.num_page_per_block, row.balanced_num_page_per_block)
        fits = lanes * max(row.programs_per_cu, row.balanced_per_cu) <= MAX_LANES
    return fits and (warp_size == 32 or largest <= _ENTRIES_OF_WIDE_LANES * lanes)


def candidates(base: Row, grid: Mapping[str, tuple[Any, ...]], warp_size: int = 32) -> list[Row]:
    """Returns the current row, then every combination of the grid that fits a compute unit, in random order.

    Args:
        base: the current row; fields that the grid does not name keep its values.
        grid: values by field.
        warp_size: lanes of a warp.

    Returns:
        Distinct rows.
    """
    combined = (dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values()))
    rows = [dataclasses.replace(base, **each) for each in combined]
    fitting = [row for row in rows if _fits(row, warp_size)]
    random.Random(0).shuffle(fitting)  # if time runs out, the untried rows are spread over the grid
    return list(dict.fromkeys([base, *fitting]))


def ranked(times: Mapping[Row, Mapping[str, float]]) -> list[Score]:
    """Scores rows by the geometric mean of their times relative to the best at each point, best first.

    Rows within `TIE` of the best mean are ranked by their worst point.

    Args:
        times: microseconds by row and point; every row has the same points.
    """
    if not times:
        return []
    points = list(next(iter(times.values())))
    best = {point: min(us[point] for us in times.values()) for point in points}
    scores = []
    for row, us in times.items():
        ratios = {point: us[point] / best[point] for point in points}
        where = max(ratios, key=ratios.__getitem__)
        scores.append(Score(row, statistics.geometric_mean(ratios.values()), ratios[where], where))
    most = min(score.mean for score in scores) * TIE
    return sorted(
        scores, key=lambda score: (score.mean > most, score.worst if score.mean <= most else score.mean)
    )


def finalists(scores: Sequence[Score], base: Row, number: int) -> list[Row]:
    """Returns the first ``number`` rows, and the current one."""
    return list(dict.fromkeys([base, *(score.row for score in scores[:number])]))


def provenance(score: Score, machine: Mapping[str, str], date: str) -> str:
    """Returns the provenance of a row."""
    return (
        f"{machine['gpu']}, {date}, torch {machine['torch']}, Triton {machine['triton']}: ci/tune.py,"
        f" {score.mean:.3f} of the best of each point, most {score.worst:.2f} ({score.where})"
    )


def source(row: Row) -> str:
    """Returns the source of a row for xkv/<vendor>/tuning.py, with lines short enough for ruff."""
    shown = []
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.name == "provenance":
            lines = textwrap.wrap(value, 84, drop_whitespace=False)
            shown.append("\n        " + "\n        ".join(map(json.dumps, lines)))
        else:
            shown.append(json.dumps(value) if isinstance(value, str) else repr(value))
    return f"    {type(row).__name__}(\n        {', '.join(shown)},\n    ),".replace(", \n", ",\n")
