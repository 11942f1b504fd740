"""The record of a run: its classes are the schema of the JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
from pathlib import Path
from typing import Literal

from .cases import CHAIN, EMPTY, OURS, SECTIONS, SGLANG, SectionName

NEAR = 1.6  # times the roofline; a row above it gets a reason
_LEAST, _LARGEST = 1e-6, 1e12  # of a time: ratios of such can be averaged

Column = Literal["launches", "device_us", "host_us", "host_min_us"]
"""What is measured of a provider: launches of a call, medians over rounds of device and host, and a least."""


class RecordError(ValueError):
    """A file that is no record; the message names it, the field, what was expected and what came."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and with what it was measured; None: the run did not note it."""

    gpu: str
    driver: str
    toolkit: str
    xkv: str
    torch: str
    triton: str
    python: str
    l2: Literal["cold", "warm"]
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
        bytes_us: what reading and writing those entries takes at the speed of a large copy.
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
    bytes_us: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no run has: a time of 0, none of xkv's."""
        for name, columns in self.times.items():
            for column, value in columns.items():
                least = 0 if column == "launches" else _LEAST  # a profiler may not be let see them
                if not least <= value <= _LARGEST:
                    raise ValueError(f"times.{name}.{column} must be from {least} to 1e12, got {value}")
        if OURS not in self.times:
            raise ValueError(f"times has no {OURS!r}")
        if self.bytes_us is not None and not 0 <= self.bytes_us <= _LARGEST:
            raise ValueError(f"bytes_us must be from 0 to 1e12, got {self.bytes_us}")

    @property
    def name(self) -> str:
        """What tells it from the others of its section."""
        return ", ".join(filter(None, (self.workload, self.backend, f"page {self.page_size}", self.mode)))

    def us(self, name: str) -> float | None:
        """Device microseconds of a provider, the median over rounds; None: it was not timed."""
        return self.times.get(name, {}).get("device_us")

    @property
    def roofline_us(self) -> float | None:
        """An empty kernel, and the bytes at the speed of a copy."""
        empty = self.us(EMPTY)
        return None if empty is None or self.bytes_us is None else empty + self.bytes_us

    @property
    def over_roofline(self) -> float | None:
        """xkv, in rooflines."""
        return ratio(self.us(OURS), self.roofline_us)

    @property
    def over_sglang(self) -> float | None:
        """How many times as long SGLANG takes."""
        return ratio(self.us(SGLANG), self.us(OURS))

    @property
    def over_best(self) -> float | None:
        """How many times as long the fastest of the others takes."""
        others = (name for name in SECTIONS[self.section].providers if not name.startswith(OURS))
        return ratio(min((us for name in others if (us := self.us(name))), default=None), self.us(OURS))

    @property
    def reason(self) -> str:
        """Where xkv is not near the roofline, what the most of the time there must go to."""
        empty, chain, over = self.us(EMPTY), self.us(CHAIN), self.over_roofline
        if over is None or over <= NEAR or empty is None or chain is None or self.bytes_us is None:
            return ""
        if chain - empty > self.bytes_us:
            return f"latency: chain {chain:.1f} us of it"
        return f"bytes: {self.bytes_us:.1f} us of it"


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


def bytes_moved(entries: int, page_size: int) -> int:
    """The least that DRAM moves: a 64-byte piece a page, or a token's id, and an id written."""
    return entries * (min(64, 4 * page_size) + 4)


def median_us(rounds: list[float]) -> float:
    """The median, to a nanosecond."""
    return round(statistics.median(rounds), 3)


def ratio(a: float | None, b: float | None) -> float | None:
    """How many times b a is; None: one of them was not measured."""
    return None if a is None or b is None else a / b
