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

from ...params import CSR, SLOTS, TABLE
from ...platforms.tuning import AccessPattern, ChosenTuning, Tuning
from ..bench.workloads import WORKLOADS, Workload
from . import chosen_rows

Row = Tuning | ChosenTuning

SMALL = 16  # requests; larger batches are the other class
MAX_WARPS = 64  # per compute unit, at 32 lanes each
ROOM = 1 << 13  # tokens that a sweep of extensions may add to a request, more than it has launches
TIE = 1.01  # means that differ by less are equal: the noise of a sweep


class Class(NamedTuple):
    """One class of tuning rows.

    Attributes:
        access_pattern: as in `xkv.platforms.tuning.Tuning`.
        max_batch: as there.
        sizes: page sizes in tokens; the coarse stage uses the first.
        source_page_size: tokens of a source entry.
        grid: values to try for each field of a row.
        above: it serves batches larger than this. None: than ``SMALL``, if it has no ``max_batch``.
    """

    access_pattern: AccessPattern
    max_batch: int | None
    sizes: tuple[int, ...]
    source_page_size: int
    grid: dict[str, tuple[Any, ...]]
    above: int | None = None

    @property
    def name(self) -> str:
        """The name that is printed."""
        return f"{self.access_pattern}, batch {f'<= {self.max_batch}' if self.max_batch else 'any'}"

    @property
    def forms(self) -> tuple[int, ...]:
        """The forms that its row builds, TABLE or CSR; the coarse stage uses the first."""
        forms: dict[str, tuple[int, ...]] = {
            "contiguous": (TABLE,), "ragged": (CSR,), "expand": (CSR, TABLE), "extension": (TABLE,),
            "query_tokens": (SLOTS,),
        }  # fmt: skip
        return forms.get(self.access_pattern, (TABLE, CSR))

    @property
    def kind(self) -> str:
        """What a launch does beside: "map", look pages up in one; "extension", only extend; or ""."""
        return {"mapped": "map", "extension": "extension"}.get(self.access_pattern, "")

    @property
    def loads(self) -> list[Workload]:
        """The workloads that its row serves; of extensions those with room for more tokens."""
        above = (0 if self.max_batch else SMALL) if self.above is None else self.above
        room = ROOM if self.kind == "extension" else 0
        return [
            load
            for load in WORKLOADS
            if "ops" in load.suites
            and above < load.batch <= (self.max_batch or load.batch)
            and max(load.lens) + room <= load.capacity
        ]


SWEPT = [
    f.name for f in dataclasses.fields(Tuning) if f.name not in ("access_pattern", "max_batch", "provenance")
]


def _grid(*texts: str) -> dict[str, tuple[Any, ...]]:
    return dict(zip(SWEPT, map(values, texts), strict=True))


def values(text: str) -> tuple[Any, ...]:
    """Parses integers or booleans: "4,8" -> (4, 8), "true,false" -> (True, False)."""
    return tuple(json.loads(each) for each in text.split(","))


# Of these launches the other fields divide nothing, see `xkv.platforms.tuning.Tuning`.
_TOKENS: dict[str, tuple[Any, ...]] = {
    "num_page_per_block": (64, 128, 256, 512), "num_warps": (1, 2, 4, 8), "programs_per_cu": (2, 4, 8),
}  # fmt: skip
_EXTENSIONS: dict[str, tuple[Any, ...]] = {
    "num_warps": (1, 2, 4, 8), "tiles_per_program": (1, 2, 4, 8, 16), "batch_block": (16, 64, 256, 512),
}  # fmt: skip
CLASSES = (
    Class(
        "strided_far", SMALL, (64, 32), 1,
        _grid("64,128,256", "1,2,4", "4,8", "2", "2,8", "64,256", "1", "4", "16", "true"),
    ),
    Class(
        "strided_far", None, (64, 32), 1,
        _grid("256,512", "4", "4,8", "2,4", "2,4,8", "128,256,512", "1", "1,2,4", "256", "true"),
    ),
    Class(
        "strided_near", SMALL, (16,), 1,
        _grid("128,256", "2,4", "2,8", "2", "2,8", "128,256", "1", "4", "16", "true"),
    ),
    Class(
        "strided_near", None, (16,), 1,
        _grid("512,1024", "4", "4,8", "2,4", "2,4,8", "256,512,1024", "1", "1,2,4", "256", "true"),
    ),
    Class(
        "contiguous", SMALL, (1,), 1,
        _grid("256,512,1024,2048", "4,8", "4,8,16", "2", "2,8", "1024,2048", "1", "4", "16", "true"),
    ),
    Class(
        "contiguous", None, (1,), 1,
        _grid("1024", "4,8", "4,8", "2,4", "4,8", "1024,2048", "1,2", "2,4,6,8", "256", "true"),
    ),
    Class(
        "ragged", SMALL, (1,), 1,
        _grid("512,1024,2048", "4,8", "4,8", "2", "2,8", "1024,2048", "1,2", "4", "16", "true"),
    ),
    Class(
        "ragged", None, (1,), 1,
        _grid("2048", "4,8", "4", "4", "4,8", "1024,2048", "1,2,4", "2,4,6,8", "256", "true"),
    ),
    Class(
        "expand", SMALL, (1,), 16,
        _grid("512,1024,2048", "4,8", "4,8", "2", "2,8", "1024,2048", "1,2", "4", "16", "true"),
    ),
    Class(
        "expand", None, (1,), 16,
        _grid("1024", "4,8", "4,8", "2,4", "4,8", "1024,2048", "1,2,4", "2,4,6", "256", "true"),
    ),
    Class(
        "mapped", SMALL, (16, 1), 1,
        _grid("128,256,512", "2,4,8", "4,8", "2", "2,8", "256,512", "1", "4", "16", "true"),
    ),
    Class(
        "mapped", None, (16, 1), 1,
        _grid("256,512,1024", "4,8", "4,8", "2,4", "2,4,8", "256,512", "1", "2,4", "256", "true"),
    ),
    Class("query_tokens", None, (8192, 1), 1, _TOKENS, above=0),
    Class("extension", 16, (64, 16), 1, _EXTENSIONS),
    Class("extension", 64, (64, 16), 1, _EXTENSIONS, above=16),
    Class("extension", 256, (64, 16), 1, _EXTENSIONS, above=64),
    Class("extension", None, (64, 16), 1, _EXTENSIONS, above=256),
)  # fmt: skip


class Score(NamedTuple):
    """The times of a row relative to the best row at each point; 1 is the best."""

    row: Row
    mean: float
    worst: float
    where: str


def swept(row: Row) -> list[str]:
    """The fields of such a row that a sweep varies."""
    return chosen_rows.SWEPT if isinstance(row, ChosenTuning) else SWEPT


def _fits(row: Row) -> bool:
    """Whether its programs fit a compute unit, or its numbers one another."""
    if isinstance(row, ChosenTuning):
        return row.min_warps <= row.num_warps
    return row.num_warps * max(row.programs_per_cu, row.balanced_per_cu) <= MAX_WARPS


def candidates(base: Row, grid: Mapping[str, tuple[Any, ...]]) -> list[Row]:
    """Returns the current row, then every combination of the grid that fits a compute unit, in random order.

    Args:
        base: the current row; fields that the grid does not name keep its values.
        grid: values by field.

    Returns:
        Distinct rows.
    """
    combined = (dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values()))
    rows = [dataclasses.replace(base, **each) for each in combined]
    fitting = list(filter(_fits, rows))
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
