"""A record as text."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from .cases import SECTIONS, SGLANG, SectionName
from .records import Record, summary

_HEADERS = {
    "page_size": "page", "launches": "launches", "device_us": "device us", "host_us": "host us",
    "over_sglang": f"over\n{SGLANG}", "over_best": "over\nbest", "roofline_us": "roofline",
    "over_roofline": "times\nroofline", "reason": "",
}  # fmt: skip


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
        f"{copy}{rounds}, L2 {at.l2}",
    ]
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
