"""A report as text."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from .records import NOTES, OURS, SECTIONS, Point, Section, of_section, summary


def text(report: dict[str, Any]) -> Iterator[str]:
    """Yields all that a report says, for the reader.

    Args:
        report: what `python -m xkv bench` writes to --json.

    Yields:
        Blocks of lines.
    """
    yield setting(report)
    for section in SECTIONS:
        yield from section_text(report, section)
    yield from host_text(report)
    yield from compiles_text(report)


def setting(report: dict[str, Any]) -> str:
    """Where and with what it was measured, and who is left out."""
    at = report["setting"]
    lines = [
        f"{at['gpu']} (driver {at['driver']}), torch {at['torch']}, triton {at['triton']},"
        f" xkv {at['xkv']}, {at['date']}",
        f"a copy moves {at['copy_gb_s']:.0f} GB/s; medians over {at['rounds']} rounds, L2 {at['l2']}",
    ]
    lines += [f"left out: {name}, there is no {file}" for name, file in report["absent"].items()]
    return "\n".join(lines)


def section_text(report: dict[str, Any], section: Section) -> Iterator[str]:
    """A section's table and what it comes to; nothing where it has no points."""
    points = of_section(report, section)
    if not points:
        return
    peers = [name for name in section.peers if any(name in point.us for point in points)]
    yield "\n".join(
        [f"\n{section.title}: us on the GPU", *(f"{name}: {NOTES[name]}" for name in peers)]
        + [section.note] * bool(section.note)
    )
    headers = [
        "workload", "page", *peers, OURS,
        f"over\n{section.baseline}", "over\nbest", "floor", "times\nfloor", "",
    ]  # fmt: skip
    yield _tabulate([_cells(point, section, peers) for point in points], headers, ".2f")
    yield "\n".join(summary(section, points))


def _cells(point: Point, section: Section, peers: list[str]) -> list[Any]:
    return [
        point.workload, point.page_size, *(point.us.get(name) for name in peers), point.us[OURS],
        point.over(section), point.over_best(section), point.floor_us, point.over_floor, point.reason,
    ]  # fmt: skip


def host_text(report: dict[str, Any]) -> Iterator[str]:
    """What the host pays for a call."""
    rows = report["host"]
    if rows:
        yield "\nhost: us to issue one call, without a sync"
        headers = ["call", "median", "min", "over seed's\nkernel[grid]"]
        lines = [[row["name"], row["median"], row["min"], row["over_seed"]] for row in rows]
        yield _tabulate(lines, headers, ".2f")
        yield from (f"left out: {name}, no backend of this platform" for name in report["stepless"])


def compiles_text(report: dict[str, Any]) -> Iterator[str]:
    """What was compiled on the way, and what other table widths cost."""
    if report["compiles"]:
        yield "\ncompiles: kernels made in this run, by source file and name"
        yield _tabulate(report["compiles"].items(), ["kernel", "compiles"], ".0f")
    if report["widths"]:
        yield "\nthe same call for tables of other widths: ms of each width's first call"
        yield _tabulate(
            [[r["name"], r["widths"], r["compiles"], r["median_ms"], r["max_ms"]] for r in report["widths"]],
            ["", "widths", "compiles", "median ms", "max ms"],
            ".2f",
        )
    if report["serving"]:
        yield "\na server's steps, each of other batch, widths, dtypes, page size; ours warmed up before"
        yield _tabulate(
            [[r["name"], r["steps"], r["compiles"], r["loads"]] for r in report["serving"]],
            ["", "steps", "compiles", "loads"],
            ".0f",
        )


def _tabulate(lines: Any, headers: list[str], form: str) -> str:
    tabulate = importlib.import_module("tabulate").tabulate
    made: str = tabulate(lines, headers, "simple", floatfmt=form, missingval="-")
    return made
