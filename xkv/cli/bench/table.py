"""A record as text."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from .cases import ADD, AGAIN, SECTIONS, SGLANG, Section, SectionName
from .records import Point, Record, ratio

_HEADERS = {
    "page_size": "page", "launches": "launches", "device_us": "in place us", "back_us": "back to back us",
    "host_us": "host us", "over_sglang": f"over\n{SGLANG}", "over_best": "over\nbest",
    "over_least": "times\nleast",
}  # fmt: skip
_BEFORE = {"add": "torch's add_ on the lengths", "early": "an add that lets the next kernel start early"}
_ISSUED = {"graph": "from a graph", "stream": "issued on a stream"}
_BACK = "measured back to back alone"


def text(record: Record) -> Iterator[str]:
    """Yields all that a record says, for the reader, in blocks of lines."""
    yield setting(record)
    for section in SECTIONS:
        yield from section_text(record, section)
    yield from compiles_text(record)


def setting(record: Record) -> str:
    """Where and with what it was measured, and what was not there."""
    at = record.setting
    copy = "" if at.copy_gb_s is None else f"a copy moves {at.copy_gb_s:.0f} GB/s; "
    rounds = "medians" if at.rounds is None else f"medians over {at.rounds} rounds"
    lines = [
        f"{at.gpu} (driver {at.driver}), torch {at.torch}, triton {at.triton}, xkv {at.xkv}"
        + (f", {at.date}" if at.date else ""),
        f"{copy}{rounds}, L2 {at.l2}{'' if at.issued is None else f', {_ISSUED[at.issued]}'}",
    ]
    if at.predecessor is not None:
        lines.append(f"in place: each after {_BEFORE[at.predecessor]}, less the same number of those alone")
    return "\n".join(lines + [f"left out: what needs {file}" for file in record.missing])


def section_text(record: Record, name: SectionName) -> Iterator[str]:
    """A section's table and what it comes to; nothing where it has no points."""
    section, points = SECTIONS[name], record.of_section(name)
    if not points:
        return
    columns = [
        (column, provider)
        for column in section.columns
        for provider in section.providers
        if any(column in point.times.get(provider, {}) for point in points)
    ]
    derived = [each for each in section.derived if any(getattr(point, each) is not None for point in points)]
    shown = {provider for _, provider in columns}
    yield "\n".join(
        [f"\n{section.title}"]
        + [f"{provider}: {what}" for provider, what in section.providers.items() if provider in shown]
        + [section.note] * bool(section.note)
        + [f"{_BACK}, and so are the ratios"] * any(_back_alone(point) for point in points)
    )
    headers = [_HEADERS.get(label, label) for label in section.labels]
    headers += [f"{_HEADERS[column]}\n{provider}" for column, provider in columns]
    headers += [_HEADERS[each] for each in derived]
    lines = [
        [getattr(point, label) for label in section.labels]
        + [point.times.get(provider, {}).get(column) for column, provider in columns]  # type: ignore[call-overload]
        + [getattr(point, each) for each in derived]
        for point in points
    ]
    yield _tabulate(lines, headers, ".2f")
    notes = {
        f"{point.backend}, page {point.page_size}, {point.mode}: {point.note}": point for point in points
    }
    yield from summary(points, section)
    yield from (note for note, point in notes.items() if point.note)


def compiles_text(record: Record) -> Iterator[str]:
    """What was compiled on the way, and what other table widths cost."""
    if record.compiles:
        yield "\ncompiles: kernels made in this run, by source file and name"
        yield _tabulate(record.compiles.items(), ["kernel", "compiles"], ".0f")
    if record.widths:
        yield "\nthe same call for tables of other widths: ms of each width's first call"
        yield _tabulate(map(_values, record.widths), ["", "widths", "compiles", "median ms", "max ms"], ".2f")
    if record.serving:
        yield "\na server's steps, each of other batch, widths, dtypes, page size; xkv warmed up before"
        yield _tabulate(map(_values, record.serving), ["", "steps", "compiles", "loads"], ".0f")


def _values(row: Any) -> list[Any]:
    return list(vars(row).values())


def _tabulate(lines: Any, headers: list[str], form: str) -> str:
    tabulate = importlib.import_module("tabulate").tabulate
    made: str = tabulate(lines, headers, "simple", floatfmt=form, missingval="-")
    return made


_RATIOS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "over_sglang": (f"over {SGLANG}", min, "least {:.2f}x"),
    "over_best": ("over the best of the others", min, "least {:.2f}x"),
    "over_least": ("times the least", max, "most {:.2f}x"),
}


def _back_alone(point: Point) -> bool:
    return not point.in_place and any("back_us" in columns for columns in point.times.values())


def summary(points: list[Point], section: Section) -> list[str]:
    """What a section comes to, in lines; none where nothing was timed."""
    lines = []
    for name in section.derived:
        lines += _averaged(points, name)
        if name == "over_least" and any(point.imbalanced for point in points):
            balanced = [point for point in points if not point.imbalanced]
            lines += _averaged(balanced, name, ", where no length is more than twice another")
    twice = [value for point in points if (value := ratio(point.us(AGAIN), point.us(SGLANG))) is not None]
    if twice:
        mean, least, most = statistics.geometric_mean(twice), min(twice), max(twice)
        lines.append(f"{SGLANG} again over itself: geometric mean {mean:.3f}, {least:.3f} to {most:.3f}")
    return lines + _host(points, section)


def _averaged(points: list[Point], name: str, where: str = "") -> list[str]:
    label, extreme, said = _RATIOS[name]
    found = [(value, point.name) for point in points if (value := getattr(point, name)) is not None]
    if not found:
        return []
    value, at = extreme(found)
    mean = statistics.geometric_mean(each for each, _ in found)
    return [f"{label}{where}: geometric mean {mean:.2f}x, {said.format(value)} ({at})"]


def _host(points: list[Point], section: Section) -> list[str]:
    """What the host pays for a call, as far as the table has no column for it."""
    names = dict.fromkeys(name for point in points for name in point.times)
    us = {
        name: [p.times[name]["host_us"] for p in points if "host_us" in p.times.get(name, {})]
        for name in names
    }
    shown = [
        f"{name} {statistics.median(found):.1f}"
        for name, found in us.items()
        if found and (name == ADD or "host_us" not in section.columns)
    ]
    return [f"us of the host a call, without a sync, the median: {', '.join(shown)}"] if shown else []
