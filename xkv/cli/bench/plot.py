"""A report as a figure."""

from __future__ import annotations

from typing import Any

from .records import OURS, SECTIONS, of_section

_COLUMNS = 2
_WIDTH, _LINE, _HEAD = 10.0, 0.22, 1.1  # inches: the figure, a workload, a panel's title and axis
_FLOOR = "floor"
_MARKS = dict(zip((OURS, _FLOOR), ("D", "|"), strict=True))


def figure(report: dict[str, Any]) -> Any:
    """Draws a panel for each section and page size: time across, workloads down.

    Args:
        report: what `python -m xkv bench` writes to --json.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: the report has no points.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    panels = []
    for section in SECTIONS:
        points = of_section(report, section)
        for size in dict.fromkeys(point.page_size for point in points):
            panels.append((section, size, [point for point in points if point.page_size == size]))
    if not panels:
        raise ValueError("there are no points to plot")
    lines = -(-len(panels) // _COLUMNS)
    rows = max(len(points) for _, _, points in panels)
    drawn = Figure(figsize=(_WIDTH, lines * (_HEAD + _LINE * rows) + 0.5), dpi=120, layout="constrained")
    axes = list(drawn.subplots(lines, min(_COLUMNS, len(panels)), squeeze=False).flat)
    series: dict[str, Any] = {}  # one for each name, whichever panels have it: the legend
    for axis, (section, size, points) in zip(axes, panels, strict=False):
        names = [point.workload for point in points]
        shown = [name for name in (*section.peers, OURS) if any(name in p.us for p in points)]
        for name in (*shown, _FLOOR):
            known = [p.floor_us if name == _FLOOR else p.us.get(name) for p in points]
            found = [(us, line) for line, us in enumerate(known) if us is not None]
            look = {"marker": _MARKS.get(name, "o"), "color": _color(name), "s": 70 if name == _FLOOR else 22}
            series[name] = axis.scatter(*zip(*found, strict=True), zorder=3, **look)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.grid(visible=True, which="both", axis="x", alpha=0.3)
        axis.grid(visible=True, axis="y", alpha=0.15)
        axis.set_title(f"{section.name}, page size {size}", fontsize=10)
        axis.set_xlabel("us on the GPU", fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    drawn.legend(series.values(), series.keys(), loc="outside upper center", ncols=len(series))
    return drawn


def _color(name: str) -> str:
    """The same in every panel."""
    order = list(dict.fromkeys([OURS, *(peer for section in SECTIONS for peer in section.peers)]))
    return "black" if name == _FLOOR else f"C{order.index(name)}"
