"""Formats a report as text."""

from __future__ import annotations

from typing import Any


def table(rows: list[list[str]]) -> list[str]:
    """Formats columns of equal cell width, the first aligned left."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            x.ljust(w) if n == 0 else x.rjust(w) for n, (x, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def value(found: dict[str, float] | None, low: str, high: str, digits: int = 1) -> str:
    """Formats a value such as ``12.3 [11.0 .. 14.2]``."""
    if not found:
        return "-"
    return f"{found['median']:.{digits}f} [{found[low]:.{digits}f} .. {found[high]:.{digits}f}]"


def text(name: str, report: dict[str, Any], arguments: bool = True) -> list[str]:
    """Returns the lines of one case."""
    facts = report["facts"]
    lines = [f"== {name}: {'passed' if report['passed'] else 'FAILED'}"]
    lines.append(
        "   " + ", ".join(f"{k} {v}" for k, v in facts.items()) + f"; started in {report['started_s']:.0f} s"
    )
    lines += [f"   plugin: {x}" for x in report["said"][:2]]
    lines += [f"   {'PASS' if x['good'] else 'FAIL'}  {x['what']}" for x in report["checks"]]
    compiles = report["compiles"]
    counts = ", ".join(
        f"{key} {compiles[key]['compiled']} (+ {compiles[key]['loaded']} loaded)"
        for key in ("xkv start", "xkv after", "others start", "others after")
    )
    lines.append(f"   Triton compiles: {counts}")
    if report["captured"]:
        lines.append(
            f"   captured in CUDA graphs at the start, so that off rounds run xkv's: {report['captured']}"
        )
    else:
        lines.append("   no replaced call is captured in a CUDA graph")
    steps = [["step", "ms: median [least .. most]", "pairs"]]
    for key, found in report["step_ms"].items():
        if found:
            steps.append([key, value(found, "least", "most", 3), str(int(found["of"]))])
    lines += _indented(table(steps))
    rows = [["host us of a method", "off", "on"]]
    for method, modes in sorted(report["methods_us"].items()):
        rows.append([method, *(value(modes.get(mode), "least", "most") for mode in ("off", "on"))])
    lines += _indented(table(rows))
    rows = [["us a launch [p10 .. p90]", "host off", "host on", "device off", "device on"]]
    for kernel, sides in sorted(report["launches_us"].items()):
        rows.append([kernel, *(value(sides.get(side), "p10", "p90") for side in rows[0][1:])])
    lines += _indented(table(rows))
    if arguments:
        for kernel, given in sorted(report["arguments"].items()):
            lines += _indented([f"arguments of {kernel}", *_indented(table(_arguments(given)))])
    return lines


def _arguments(given: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = [["argument", "dtype", "shape", "torch says", "memory", "points to"]]
    for name, row in given.items():
        rows.append([name, row["dtype"], str(row["shape"]), row["torch"], row["memory"],
                     ", ".join(row.get("points to", []))])  # fmt: skip
    return rows


def _indented(lines: list[str]) -> list[str]:
    return ["   " + line for line in lines]
