"""What `python -m xkv bench` makes of its numbers: ratios, tables and the figure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from xkv.cli.bench import records, table
from xkv.cli.bench.cases import LEAST, OURS, READ_TABLE, SECTIONS, SGLANG, SGLANG_512
from xkv.cli.bench.records import Point, Record, Serving, Setting, Widths

pytestmark = pytest.mark.repo

pytest.importorskip("tabulate")


def point(
    name: str, page: int, ours: float, *, column: str = "device_us", lens: Any = (5, 9), **us: float
) -> Point:
    names = {"sglang": SGLANG, "serial": SGLANG_512, "read": READ_TABLE}
    found = {OURS: ours} | {names.get(key, key): value for key, value in us.items()}
    times: Any = {key: {column: value} for key, value in found.items()}
    return Point("table", name, page, 2, 128, times, "", "", "", 4, 24, *lens, "programs a row: 1")


FAST = point("fast", 64, 2.0, sglang=8.0, serial=4.0, read=6.0, again=8.4, least=2.0)
FAST.times[OURS]["back_us"] = 1.25
SLOW = point("slow", 64, 4.0, sglang=2.0, serial=9.0, read=9.0, again=1.9, least=2.0)
FAR = point("far", 1, 8.0, sglang=16.0, least=1.25, lens=(4, 9))
OLD = point("old", 64, 2.0, column="back_us", sglang=8.0, serial=4.0, lens=(None, None))
STEP = Point(
    "steps", "fast", 64, 2, 128,
    {SGLANG: {"launches": 3, "device_us": 9.0, "host_us": 40.0}, OURS: {"launches": 1, "host_us": 10.0},
     "torch_add": {"host_us": 9.25}},
    "flashmla", "decode", "SGLang's casts",
)  # fmt: skip
RECORD = Record(
    Setting(
        "H100",
        "550",
        "13.0",
        "0.1",
        "2.11",
        "3.6",
        "3.12",
        "cold",
        "add",
        "graph",
        25,
        2618.2,
        "2026-11-23",
        "xkv bench",
    ),
    [FAST, SLOW, FAR, STEP],
    ["kv_read_table.py"],
    [],
    {"kv_indices.kernel": 63},
    [Widths(SGLANG, 64, 64, 67.5, 80.0)],
    [Serving(SGLANG, 5000, 311, 310)],
)


def test_ratios() -> None:
    assert (FAST.over_least, FAR.over_least) == (1.0, 6.4)
    assert (FAST.over_sglang, FAST.over_best) == (4.0, 2.0)  # in place, and over others than the least
    assert (SLOW.over_sglang, SLOW.over_best) == (0.5, 0.5)
    alone = point("alone", 64, 2.0)
    assert (alone.over_sglang, alone.over_best) == (None, None)
    other = point("other", 64, 2.0, read=5.0)
    assert (other.over_sglang, other.over_best) == (None, 2.5)
    assert (STEP.over_sglang, STEP.over_least) == (None, None)


def test_in_place_or_back_to_back() -> None:
    """Where nothing was timed in place, what counts is back to back; one that is lost in noise is not."""
    assert (OLD.in_place, OLD.us(OURS), OLD.over_sglang, OLD.over_best) == (False, 2.0, 4.0, 2.0)
    times: Any = {SGLANG: {"device_us": 4.0, "back_us": 3.0}, OURS: {"back_us": 1.0}}
    noisy = Point("table", "noisy", 64, 2, 128, times)
    assert (noisy.in_place, noisy.us(OURS), noisy.over_sglang) == (True, None, None)


@pytest.mark.parametrize(
    ("lens", "imbalanced"),
    [((4, 9), True), ((4, 8), False), ((5, 5), False), ((None, None), False), ((0, 1), True)],
)
def test_imbalance(lens: Any, imbalanced: bool) -> None:
    """A length that is more than twice another."""
    assert point("", 64, 1.0, lens=lens).imbalanced == imbalanced


def test_median() -> None:
    assert records.median_us([3.0, 1.0, 9.00049]) == 3.0


def test_summary() -> None:
    # 4, 0.5, 2 over SGLang; 2, 0.5, 2 over the best; 1, 2, 6.4 times the least; 1.05 and 0.95 again
    assert table.summary(RECORD.of_section("table"), SECTIONS["table"]) == [
        "over sglang-0.5.23: geometric mean 1.59x, least 0.50x (slow, page 64)",
        "over the best of the others: geometric mean 1.26x, least 0.50x (slow, page 64)",
        "times the least: geometric mean 2.34x, most 6.40x (far, page 1)",
        "times the least, where no length is more than twice another: geometric mean 1.41x, most 2.00x"
        " (slow, page 64)",
        "sglang-0.5.23 again over itself: geometric mean 0.999, 0.950 to 1.050",
    ]
    assert table.summary([point("alone", 64, 4.0, least=2.0)], SECTIONS["table"]) == [
        "times the least: geometric mean 2.00x, most 2.00x (alone, page 64)"
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
    assert "a copy moves 2618 GB/s; medians over 25 rounds, L2 cold, from a graph" in lines
    assert "in place: each after torch's add_ on the lengths, less the same number of those alone" in lines
    assert "left out: what needs kv_read_table.py" in lines
    # in place, then back to back, then ratios; what a point lacks is a dash
    assert "slow 64 2.00 9.00 9.00 4.00 2.00 - 0.50 0.50 2.00" in cells
    assert "far 1 16.00 - - 8.00 1.25 - 2.00 2.00 6.40" in cells
    assert "fast 64 8.00 4.00 6.00 2.00 2.00 1.25 4.00 2.00 1.00" in cells
    assert (
        "workload page in place us in place us in place us in place us in place us back to back us over"
        in (" ".join(" ".join(cells).split()))
    )
    assert not any("alone, and so are the ratios" in line for line in lines)
    # a column that would be empty is not there
    assert "fast flashmla 64 decode 3 1 9.00 40.00 10.00" in cells
    assert "flashmla, page 64, decode: SGLang's casts" in lines
    assert not any(SECTIONS["csr"].title in line for line in lines)
    assert "kv_indices.kernel 63" in cells
    assert "sglang-0.5.23 64 64 67.50 80.00" in cells
    assert "sglang-0.5.23 5000 311 310" in cells


@pytest.mark.parametrize(
    ("predecessor", "issued", "said"),
    [
        (
            "early",
            "stream",
            ["L2 cold, issued on a stream", "in place: each after an add that lets the next"],
        ),
        (None, None, ["L2 cold\n"]),
    ],
)
def test_the_setting(predecessor: Any, issued: Any, said: list[str]) -> None:
    at = dataclasses.replace(RECORD.setting, predecessor=predecessor, issued=issued)
    text = table.setting(Record(at)) + "\n"
    assert [part in text for part in said] == [True] * len(said)
    assert ("in place" in text) == (predecessor is not None)


def test_a_record_of_before_there_was_in_place() -> None:
    """Its times, and its ratios, are said to be back to back."""
    lines = "\n".join(table.section_text(Record(RECORD.setting, [OLD]), "table")).splitlines()
    assert "measured back to back alone, and so are the ratios" in lines
    assert "in place us" not in "\n".join(lines)
    assert "old 64 8.00 4.00 2.00 4.00 2.00" in [" ".join(line.split()) for line in lines]


def test_only_who_is_there_has_a_column() -> None:
    text = "\n".join(table.section_text(Record(RECORD.setting, [point("alone", 64, 2.0)]), "table"))
    assert not any(name in text for name in (SGLANG_512, READ_TABLE, SECTIONS["table"].providers[SGLANG]))
    assert "alone 64 2.00" in [" ".join(line.split()) for line in text.splitlines()]


def test_the_rows_of_a_panel_are_together() -> None:
    points = [Point("steps", name, n, 1, 1, {OURS: {}}) for n in (1, 2) for name in ("a", "b")]
    found = Record(RECORD.setting, points).of_section("steps")
    assert [(each.workload, each.page_size) for each in found] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from xkv.cli.bench.plot import figure

    us: Any = {name: {"back_us": 2.0} for name in (OURS, LEAST, "token_blocks")}
    csr = Point("csr", "fast", 64, 2, 128, us)
    step = Point(
        "steps", "fast", 64, 2, 128, {OURS: {"device_us": 2.0, "back_us": 1.0}}, "flashmla", "decode"
    )
    drawn = figure(Record(RECORD.setting, [FAST, SLOW, FAR, csr, STEP, step]))
    file = tmp_path / "bench.png"
    drawn.savefig(file)
    assert file.read_bytes().startswith(b"\x89PNG")
    panels = {axis.get_title(): axis for axis in drawn.axes if axis.get_title()}
    # a panel without a time in place is titled so
    sizes = ("table, page size 64", "table, page size 1", "csr, page size 64, back to back")
    assert list(panels) == [*sizes, "steps, workload fast"]
    first, last = panels["table, page size 64"], panels["steps, workload fast"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["fast", "slow"]
    assert [label.get_text() for label in last.get_yticklabels()] == ["flashmla, 64, decode"]
    assert first.get_xlabel() == "us on the GPU, in place"
    assert panels[sizes[2]].get_xlabel() == "us on the GPU, back to back"
    # sglang 0.5.23, 0.5.12, read_table, xkv, least: a mark for each workload, at its time
    marks = [series.get_offsets().tolist() for series in first.collections]
    assert marks[0] == [[8.0, 0.0], [2.0, 1.0]]
    assert marks[3] == [[2.0, 0.0], [4.0, 1.0]]
    assert marks[4] == [[2.0, 0.0], [2.0, 1.0]]
    assert [len(axis.collections) for axis in panels.values()] == [5, 3, 3, 1]
    assert last.collections[0].get_offsets().tolist() == [[2.0, 0.0]]
    assert all(axis.get_xscale() == "log" for axis in panels.values())
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        SGLANG, SGLANG_512, READ_TABLE, OURS, LEAST, "token_blocks",
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
