"""The record of a run: its classes are the schema of the JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
from pathlib import Path
from typing import Literal

from .cases import LEAST, OURS, SECTIONS, SGLANG, SectionName

SHORTEST = 1e-6  # us: ratios of such times can be averaged
_LARGEST = 1e12

Column = Literal["launches", "device_us", "back_us", "host_us", "host_min_us"]
"""What is measured of a provider: launches of a call; medians over rounds of the GPU's time in place, of that
back to back, and of the host's; the host's least."""


class RecordError(ValueError):
    """A file that is no record; the message names it, the field, what was expected and what came."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and with what it was measured; None: the run did not note it.

    Attributes:
        predecessor: the kernel before, of the times in place: one of `predecessor.PREDECESSORS`.
        issued: whether calls came from a graph, or were issued on a stream.
    """

    gpu: str
    driver: str
    toolkit: str
    xkv: str
    torch: str
    triton: str
    python: str
    l2: Literal["cold", "warm"]
    predecessor: Literal["add", "early"] | None = None
    issued: Literal["graph", "stream"] | None = None
    rounds: int | None = None
    copy_gb_s: float | None = None
    date: str | None = None
    command: str | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """One row of a table.

    Attributes:
        section: one of `cases.SECTIONS`.
        workload: the workload's name.
        page_size: tokens of a page.
        batch: requests.
        capacity: tokens that a row has room for.
        times: by provider, what was measured of it.
        backend: of a step, else "".
        mode: of a step, else "".
        note: what else a reader should know.
        entries: live entries of what is built.
        sets: sets of source rows that the launches of a graph took in turn.
        min_len: tokens of the shortest request.
        max_len: of the longest.
        least: which of the kernels of `least` was the fastest.
    """

    section: SectionName
    workload: str
    page_size: int
    batch: int
    capacity: int
    times: dict[str, dict[Column, int | float]]
    backend: str = ""
    mode: str = ""
    note: str = ""
    entries: int | None = None
    sets: int | None = None
    min_len: int | None = None
    max_len: int | None = None
    least: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for what no run has: a time of 0, none of xkv's."""
        for name, columns in self.times.items():
            for column, value in columns.items():
                lowest = 0 if column == "launches" else SHORTEST  # a profiler may not be let see them
                if not lowest <= value <= _LARGEST:
                    raise ValueError(f"times.{name}.{column} must be from {lowest} to 1e12, got {value}")
        if OURS not in self.times:
            raise ValueError(f"times has no {OURS!r}")

    @property
    def name(self) -> str:
        """What tells it from the others of its section."""
        return ", ".join(filter(None, (self.workload, self.backend, f"page {self.page_size}", self.mode)))

    @property
    def in_place(self) -> bool:
        """Whether it was timed in place; if not, its ratios are those of the times back to back."""
        return any("device_us" in columns for columns in self.times.values())

    @property
    def imbalanced(self) -> bool:
        """Whether lengths differ by more than 2x: a kernel without load balancing is no bound there."""
        return self.min_len is not None and self.max_len is not None and self.max_len > 2 * self.min_len

    def us(self, name: str) -> float | None:
        """Device microseconds of a provider, the median over rounds; None: it was not timed."""
        return self.times.get(name, {}).get("device_us" if self.in_place else "back_us")

    @property
    def over_least(self) -> float | None:
        """xkv, in times that the fastest of the kernels without any check takes."""
        return ratio(self.us(OURS), self.us(LEAST))

    @property
    def over_sglang(self) -> float | None:
        """How many times as long SGLANG takes."""
        return ratio(self.us(SGLANG), self.us(OURS))

    @property
    def over_best(self) -> float | None:
        """How many times as long the fastest of the others takes."""
        names = SECTIONS[self.section].providers
        others = (name for name in names if not name.startswith(OURS) and name != LEAST)
        return ratio(min((us for name in others if (us := self.us(name))), default=None), self.us(OURS))


@dataclasses.dataclass(frozen=True)
class Widths:
    """A provider's first calls for tables of so many widths: compiles, and milliseconds of each."""

    name: str
    widths: int
    compiles: int
    median_ms: float
    max_ms: float


@dataclasses.dataclass(frozen=True)
class Serving:
    """A provider's steps of a server: kernels compiled and loaded in them."""

    name: str
    steps: int
    compiles: int
    loads: int


@dataclasses.dataclass
class Record:
    """All that a run says.

    Attributes:
        setting: where and with what.
        points: what was timed.
        missing: the files of SGLang's that were not found.
        wrong: a sentence for each provider and point whose result was wrong; nothing of it was timed.
        compiles: kernels made in this run, by source file and name.
        widths: what other table widths cost.
        serving: what a server's steps compile.
    """

    setting: Setting
    points: list[Point] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    compiles: dict[str, int] = dataclasses.field(default_factory=dict)
    widths: list[Widths] = dataclasses.field(default_factory=list)
    serving: list[Serving] = dataclasses.field(default_factory=list)

    def of_section(self, name: SectionName) -> list[Point]:
        """The section's points, those of one panel together."""
        points = [point for point in self.points if point.section == name]
        panel = SECTIONS[name].panel
        panels = list(dict.fromkeys(getattr(point, panel) for point in points))
        return sorted(points, key=lambda point: panels.index(getattr(point, panel)))


def write(record: Record, file: Path) -> None:
    """Writes a record as JSON, without what is None or empty of a point."""
    data = dataclasses.asdict(record)
    data["points"] = [{k: v for k, v in each.items() if v not in (None, "")} for each in data["points"]]
    file.write_text(json.dumps(data, indent=1) + "\n")


def read(file: Path) -> Record:
    """Reads what `write` wrote.

    Args:
        file: the record.

    Returns:
        The record.

    Raises:
        RecordError: it is not JSON, or not of that shape.
        OSError: it cannot be read.
        ModuleNotFoundError: there is no msgspec.
    """
    decode = importlib.import_module("msgspec.json").decode
    try:
        record: Record = decode(file.read_bytes(), type=Record)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise RecordError(f"{file}: not a record of xkv bench: {error}") from error
    return record


def median_us(rounds: list[float]) -> float:
    """The median, to a nanosecond."""
    return round(statistics.median(rounds), 3)


def ratio(a: float | None, b: float | None) -> float | None:
    """How many times b a is; None: one of them was not measured."""
    return None if a is None or b is None else a / b
