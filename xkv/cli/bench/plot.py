"""A record as a figure."""

from __future__ import annotations

from typing import Any

from .cases import LEAST, OURS, SECTIONS
from .records import Point, Record

_COLUMNS = 2
_WIDTH, _LINE, _HEAD = 10.0, 0.22, 1.1  # inches: the figure, a row, a panel's title and axis
_MARKS = {OURS: "D", LEAST: "|"}


def figure(record: Record) -> Any:
    """Draws a panel for each section and page size, or workload of the steps: time across, points down.

    Args:
        record: what `records.read` gave.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: the record has no points with a device time.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    panels = _panels(record)
    if not panels:
        raise ValueError("there are no points to plot")
    lines = -(-len(panels) // _COLUMNS)
    rows = max(map(len, panels.values()))
    drawn = Figure(figsize=(_WIDTH, lines * (_HEAD + _LINE * rows) + 0.5), dpi=120, layout="constrained")
    axes = list(drawn.subplots(lines, min(_COLUMNS, len(panels)), squeeze=False).flat)
    series: dict[str, Any] = {}  # one for each name, whichever panels have it: the legend
    for axis, (title, points) in zip(axes, panels.items(), strict=False):
        section = SECTIONS[points[0].section]
        labels = [label for label in section.labels if label != section.panel]
        for name in section.providers:
            known = [point.us(name) for point in points]
            found = [(us, line) for line, us in enumerate(known) if us is not None]
            look = {
                "marker": _MARKS.get(name, "o"),
                "color": _color(name),
                "s": 70 if name == LEAST else 22,
            }
            if found:
                series[name] = axis.scatter(*zip(*found, strict=True), zorder=3, **look)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        names = [", ".join(str(getattr(point, label)) for label in labels) for point in points]
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.grid(visible=True, which="both", axis="x", alpha=0.3)
        axis.grid(visible=True, axis="y", alpha=0.15)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"us on the GPU, {'in place' if points[0].in_place else 'back to back'}", fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    drawn.legend(series.values(), series.keys(), loc="outside upper center", ncols=len(series))
    return drawn


def _panels(record: Record) -> dict[str, list[Point]]:
    """By title, the points of a panel that have a device time."""
    panels: dict[str, list[Point]] = {}
    for name, section in SECTIONS.items():
        for point in record.of_section(name):
            if point.us(OURS) is not None:
                title = f"{name}, {section.panel.replace('_', ' ')} {getattr(point, section.panel)}"
                title += "" if point.in_place else ", back to back"
                panels.setdefault(title, []).append(point)
    return panels


def _color(name: str) -> str:
    """The same in every panel."""
    order = list(
        dict.fromkeys([OURS, *(each for section in SECTIONS.values() for each in section.providers)])
    )
    order.remove(LEAST)
    return "black" if name == LEAST else f"C{order.index(name)}"
