"""What `python -m xkv bench` makes of its numbers: ratios, rooflines, tables and the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xkv.cli.bench import records, table
from xkv.cli.bench.cases import CHAIN, EMPTY, OURS, READ_TABLE, SECTIONS, SGLANG, SGLANG_512
from xkv.cli.bench.records import Point, Record, Serving, Setting, Widths

pytest.importorskip("tabulate")


def point(name: str, page: int, ours: float, bytes_us: float = 1.0, chain: float = 1.5, **us: float) -> Point:
    names = {"sglang": SGLANG, "serial": SGLANG_512, "read": READ_TABLE}
    found = {EMPTY: 1.0, CHAIN: chain, OURS: ours} | {names.get(key, key): value for key, value in us.items()}
    times: Any = {key: {"device_us": value} for key, value in found.items()}
    return Point("table", name, page, 2, 128, times, entries=4, sets=24, bytes_us=bytes_us)


FAST = point("fast", 64, 2.0, sglang=8.0, serial=4.0, read=6.0, again=8.4)
SLOW = point("slow", 64, 4.0, sglang=2.0, serial=9.0, read=9.0, again=1.9)
FAR = point("far", 1, 8.0, bytes_us=0.25, sglang=16.0)
STEP = Point(
    "steps", "fast", 64, 2, 128,
    {SGLANG: {"launches": 3, "device_us": 9.0, "host_us": 40.0}, OURS: {"launches": 1, "host_us": 10.0},
     "torch_add": {"host_us": 9.25}},
    "flashmla", "decode", "SGLang's casts",
)  # fmt: skip
RECORD = Record(
    Setting(
        "H100", "550", "13.0", "0.1", "2.11", "3.6", "3.12", "cold", 25, 2618.2, "2026-11-23", "xkv bench"
    ),
    [FAST, SLOW, FAR, STEP],
    ["kv_read_table.py"],
    [],
    {"kv_indices.kernel": 63},
    [Widths(SGLANG, 64, 64, 67.5, 80.0)],
    [Serving(SGLANG, 5000, 311, 310)],
)


def test_ratios() -> None:
    assert (FAST.roofline_us, FAST.over_roofline) == (2.0, 1.0)
    assert (FAST.over_sglang, FAST.over_best) == (4.0, 2.0)
    assert (SLOW.over_sglang, SLOW.over_best) == (0.5, 0.5)
    alone = point("alone", 64, 2.0)
    assert (alone.over_sglang, alone.over_best) == (None, None)
    other = point("other", 64, 2.0, read=5.0)
    assert (other.over_sglang, other.over_best) == (None, 2.5)
    assert (STEP.over_sglang, STEP.roofline_us, STEP.over_roofline, STEP.reason) == (None, None, None, "")


def test_reasons() -> None:
    """At most 1.6 rooflines need none; else the larger of latency and bytes beyond an empty kernel."""
    assert point("", 64, 3.2).reason == ""
    assert point("", 64, 3.3).reason == "bytes: 1.0 us of it"
    assert point("", 64, 3.3, chain=2.1).reason == "latency: chain 2.1 us of it"
    assert FAR.reason == "latency: chain 1.5 us of it"


@pytest.mark.parametrize(("page", "each"), [(1, 8), (2, 12), (16, 68), (64, 68), (128, 68)])
def test_bytes(page: int, each: int) -> None:
    assert records.bytes_moved(1000, page) == 1000 * each


def test_median() -> None:
    assert records.median_us([3.0, 1.0, 9.00049]) == 3.0


def test_summary() -> None:
    # 4, 0.5, 2 over SGLang; 2, 0.5, 2 over the best; 1, 2, 6.4 rooflines; 1.05 and 0.95 again
    assert table.summary(RECORD.of_section("table"), SECTIONS["table"]) == [
        "over sglang-0.5.23: geometric mean 1.59x, least 0.50x (slow, page 64)",
        "over the best of the others: geometric mean 1.26x, least 0.50x (slow, page 64)",
        "times the roofline: geometric mean 2.34x, most 6.40x (far, page 1)",
        "sglang-0.5.23 again over itself: geometric mean 0.999, 0.950 to 1.050",
    ]
    assert table.summary([point("alone", 64, 4.0)], SECTIONS["table"]) == [
        "times the roofline: geometric mean 2.00x, most 2.00x (alone, page 64)"
    ]
    assert table.summary([STEP], SECTIONS["steps"]) == [
        "us of the host a call, without a sync, the median: torch_add 9.2"
    ]
    assert table.summary([STEP], SECTIONS["csr"]) == [
        "us of the host a call, without a sync, the median: sglang-0.5.23 40.0, xkv 10.0, torch_add 9.2"
    ]
    assert table.summary([], SECTIONS["csr"]) == []


def test_text() -> None:
    lines = "\n".join(table.text(RECORD)).splitlines()
    cells = [" ".join(line.split()) for line in lines]
    assert "a copy moves 2618 GB/s; medians over 25 rounds, L2 cold" in lines
    assert "left out: what needs kv_read_table.py" in lines
    assert "slow 64 2.00 9.00 9.00 4.00 0.50 0.50 2.00 2.00 bytes: 1.0 us of it" in cells
    # what a point lacks is a dash, and a row near the roofline has no reason
    assert "far 1 16.00 - - 8.00 2.00 2.00 1.25 6.40 latency: chain 1.5 us of it" in cells
    assert "fast 64 8.00 4.00 6.00 2.00 4.00 2.00 2.00 1.00" in cells
    # a column that would be empty is not there
    assert "fast flashmla 64 decode 3 1 9.00 40.00 10.00" in cells
    assert "flashmla, page 64, decode: SGLang's casts" in lines
    assert not any(SECTIONS["csr"].title in line for line in lines)
    assert "kv_indices.kernel 63" in cells
    assert "sglang-0.5.23 64 64 67.50 80.00" in cells
    assert "sglang-0.5.23 5000 311 310" in cells


def test_only_who_is_there_has_a_column() -> None:
    text = "\n".join(table.section_text(Record(RECORD.setting, [point("alone", 64, 2.0)]), "table"))
    assert not any(name in text for name in (SGLANG_512, READ_TABLE, SECTIONS["table"].providers[SGLANG]))
    assert "alone 64 2.00 2.00 1.00" in [" ".join(line.split()) for line in text.splitlines()]


def test_the_rows_of_a_panel_are_together() -> None:
    points = [Point("steps", name, n, 1, 1, {OURS: {}}) for n in (1, 2) for name in ("a", "b")]
    found = Record(RECORD.setting, points).of_section("steps")
    assert [(each.workload, each.page_size) for each in found] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from xkv.cli.bench.plot import figure

    us: Any = {name: {"device_us": 2.0} for name in (EMPTY, CHAIN, OURS, "token_blocks")}
    csr = Point("csr", "fast", 64, 2, 128, us, bytes_us=1.0)
    step = Point("steps", "fast", 64, 2, 128, us, "flashmla", "decode", bytes_us=1.0)
    drawn = figure(Record(RECORD.setting, [FAST, SLOW, FAR, csr, STEP, step]))
    file = tmp_path / "bench.png"
    drawn.savefig(file)
    assert file.read_bytes().startswith(b"\x89PNG")
    panels = {axis.get_title(): axis for axis in drawn.axes if axis.get_title()}
    sizes = ("table, page size 64", "table, page size 1", "csr, page size 64")
    assert list(panels) == [*sizes, "steps, workload fast"]
    first, last = panels["table, page size 64"], panels["steps, workload fast"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["fast", "slow"]
    assert [label.get_text() for label in last.get_yticklabels()] == ["flashmla, 64, decode"]
    # sglang 0.5.23, 0.5.12, read_table, xkv, roofline: a mark for each workload, at its time
    marks = [series.get_offsets().tolist() for series in first.collections]
    assert marks[0] == [[8.0, 0.0], [2.0, 1.0]]
    assert marks[3] == [[2.0, 0.0], [4.0, 1.0]]
    assert marks[4] == [[2.0, 0.0], [2.0, 1.0]]
    assert [len(axis.collections) for axis in panels.values()] == [5, 3, 3, 2]
    assert all(axis.get_xscale() == "log" for axis in panels.values())
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        SGLANG, SGLANG_512, READ_TABLE, OURS, "roofline", "token_blocks",
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
        figure(Record(RECORD.setting, [STEP]))
