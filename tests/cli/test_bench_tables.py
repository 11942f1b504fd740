"""What `python -m xkv bench` makes of its numbers: ratios, floors, tables and the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xkv.cli.bench import records, table
from xkv.cli.bench.records import AGAIN, CHAIN, EMPTY, OURS, READ_TABLE, SECTIONS, SEED, SERIAL, Point

TABLE, CSR = SECTIONS


def point(name: str, page: int, ours: float, bytes_us: float = 1.0, **us: float) -> Point:
    found = {EMPTY: 1.0, CHAIN: 1.5, OURS: ours, **us}
    return Point("table", name, page, 2, 128, 4, 24, bytes_us, found)


FAST = point("fast", 64, 2.0, seed=8.0, serial=4.0, read_table=6.0, again=8.4)
SLOW = point("slow", 64, 4.0, seed=2.0, serial=9.0, read_table=9.0, again=1.9)
FAR = point("far", 1, 8.0, bytes_us=0.25, seed=16.0)
POINTS = [FAST, SLOW, FAR]
REPORT: dict[str, Any] = {
    "setting": {
        "gpu": "H100", "driver": "550", "torch": "2.11", "triton": "3.6", "xkv": "0.1", "date": "2026-11-23",
        "copy_gb_s": 2618.2, "rounds": 25, "l2": "cold",
    },
    "absent": {"read_table": "kv_read_table.py"},
    "points": [vars(each) for each in POINTS],
    "host": [{"name": "torch add_", "median": 9.25, "min": 9.0, "over_seed": None}],
    "stepless": ["aiter_mla"],
    "compiles": {"kv_indices.kernel": 63},
    "widths": [{"name": "seed", "widths": 64, "compiles": 64, "median_ms": 67.5, "max_ms": 80.0}],
    "serving": [{"name": "seed", "steps": 5000, "compiles": 311, "loads": 310}],
    "wrong": [],
}  # fmt: skip


def test_ratios() -> None:
    assert (FAST.floor_us, FAST.over_floor) == (2.0, 1.0)
    assert (FAST.over(TABLE), FAST.over_best(TABLE)) == (4.0, 2.0)
    assert (SLOW.over(TABLE), SLOW.over_best(TABLE)) == (0.5, 0.5)
    alone = point("alone", 64, 2.0)
    assert (alone.over(TABLE), alone.over_best(TABLE)) == (None, None)
    other = point("other", 64, 2.0, read_table=5.0)
    assert (other.over(TABLE), other.over_best(TABLE)) == (None, 2.5)


def test_reasons() -> None:
    """At most 1.6 floors need none; else the larger of the latency and the bytes beyond an empty kernel."""
    assert point("", 64, 3.2).reason == ""
    assert point("", 64, 3.3).reason == "bytes: 1.0 us of it"
    assert point("", 64, 3.3, chain=2.1).reason == "latency: chain 2.1 us of it"
    assert FAR.reason == "latency: chain 1.5 us of it"


@pytest.mark.parametrize(("page", "each"), [(1, 8), (2, 12), (16, 68), (64, 68), (128, 68)])
def test_bytes(page: int, each: int) -> None:
    assert records.bytes_moved(1000, page) == 1000 * each


def test_geomean_and_median() -> None:
    assert records.geomean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    assert records.median_us({"a": [3.0, 1.0, 9.00049]}) == {"a": 3.0}


def test_summary() -> None:
    # 4, 0.5, 2 over the seed; 2, 0.5, 2 over the best; 1, 2, 6.4 floors; 1.05 and 0.95 again
    assert records.summary(TABLE, POINTS) == [
        "over seed: geometric mean 1.59x, least 0.50x (slow, page 64)",
        "over the best peer: geometric mean 1.26x, least 0.50x (slow, page 64)",
        "times the floor: geometric mean 2.34, most 6.40 (far, page 1)",
        "seed again over itself: geometric mean 0.999, 0.950 to 1.050",
    ]
    assert records.summary(TABLE, [point("alone", 64, 4.0)]) == [
        "times the floor: geometric mean 2.00, most 2.00 (alone, page 64)"
    ]
    assert records.summary(CSR, []) == []


def test_every_contender_is_described() -> None:
    for section in SECTIONS:
        assert section.baseline in section.peers
        assert set(section.peers) <= records.NOTES.keys()
        assert not {OURS, EMPTY, CHAIN, AGAIN} & set(section.peers)


def test_text() -> None:
    lines = "\n".join(table.text(REPORT)).splitlines()
    cells = [" ".join(line.split()) for line in lines]
    assert "left out: read_table, there is no kv_read_table.py" in lines
    assert "slow 64 2.00 9.00 9.00 4.00 0.50 0.50 2.00 2.00 bytes: 1.0 us of it" in cells
    # what a point lacks is a dash, and a row near the floor has no reason
    assert "far 1 16.00 - - 8.00 2.00 2.00 1.25 6.40 latency: chain 1.5 us of it" in cells
    assert "fast 64 8.00 4.00 6.00 2.00 4.00 2.00 2.00 1.00" in cells
    assert all(line in lines for line in records.summary(TABLE, POINTS))
    assert not any(CSR.title in line for line in lines)
    assert "torch add_ 9.25 9.00 -" in cells
    assert "left out: aiter_mla, no backend of this platform" in lines
    assert "kv_indices.kernel 63" in cells
    assert "seed 64 64 67.50 80.00" in cells


def test_only_who_is_there_has_a_column() -> None:
    report = REPORT | {"points": [vars(point("alone", 64, 2.0))]}
    text = "\n".join(table.section_text(report, TABLE))
    assert not any(name in text for name in (SERIAL, READ_TABLE, records.NOTES[SEED]))
    assert "alone 64 2.00 - - 2.00 1.00" in [" ".join(line.split()) for line in text.splitlines()]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from xkv.cli.bench.plot import figure

    csr = Point("csr", "fast", 64, 2, 128, 4, 24, 1.0, {EMPTY: 1.0, CHAIN: 1.5, OURS: 2.0, "flashinfer": 9.0})
    drawn = figure(REPORT | {"points": [vars(each) for each in (*POINTS, csr)]})
    file = tmp_path / "bench.png"
    drawn.savefig(file)
    assert file.read_bytes().startswith(b"\x89PNG")
    panels = {axis.get_title(): axis for axis in drawn.axes if axis.get_title()}
    assert list(panels) == ["table, page size 64", "table, page size 1", "csr, page size 64"]
    first = panels["table, page size 64"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["fast", "slow"]
    # seed, serial, read_table, ours, floor: a mark for each workload, at its time
    marks = [series.get_offsets().tolist() for series in first.collections]
    assert marks[0] == [[8.0, 0.0], [2.0, 1.0]]
    assert marks[3] == [[2.0, 0.0], [4.0, 1.0]]
    assert marks[4] == [[2.0, 0.0], [2.0, 1.0]]
    assert [len(axis.collections) for axis in panels.values()] == [5, 3, 3]
    assert all(axis.get_xscale() == "log" for axis in panels.values())
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "seed", "serial", "read_table", "xkv", "floor", "flashinfer",
    ]  # fmt: skip
    # nothing is cut off, and no panel's writing runs into another's
    whole, boxes = drawn.bbox, [axis.get_tightbbox() for axis in panels.values()]
    for box in (*boxes, legend.get_tightbbox()):
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    assert not any(a.overlaps(b) for a in boxes for b in (*boxes, legend.get_tightbbox()) if a is not b)


def test_nothing_to_plot() -> None:
    pytest.importorskip("matplotlib")
    from xkv.cli.bench.plot import figure

    with pytest.raises(ValueError, match="no points"):
        figure(REPORT | {"points": []})
