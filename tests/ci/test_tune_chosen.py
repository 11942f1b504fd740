"""The sweep of the rows of translations of chosen positions: as tests/ci/test_tune.py, times are made up."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

import xkv
from xkv.cli.bench import inputs, timing
from xkv.cli.tune import chosen, chosen_rows, classes, command, points, results, rows, sweep
from xkv.cli.tune.chosen import ChosenPoint
from xkv.cli.tune.chosen_rows import CHOSEN_CLASSES
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import ChosenTuning

HOPPER = Platform("cuda", "sm90", 32, 132)
A = ChosenTuning(16, False, 32, 4, 1, 1, True, 4, False, "swept")
B = dataclasses.replace(A, block=64)
POINTS = [ChosenPoint(2, 40, 64, kind) for kind in ("", "compact", "shard")]
NAMES = ["2 x 40, page 64", "2 x 40, page 64, compact", "2 x 40, page 64, shard"]


def of(point: ChosenPoint, *those: ChosenTuning) -> list[ChosenTuning]:
    return [dataclasses.replace(row, whole_rows=bool(point.kind)) for row in those]


def test_classes() -> None:
    """Every row of a vendor's table has its class, which is timed where that row serves."""
    assert [(each.max_tokens, each.whole_rows) for each in CHOSEN_CLASSES] == [
        (row.max_tokens, row.whole_rows) for row in xkv.cuda.CHOSEN["sm90"]
    ]
    for each in CHOSEN_CLASSES:
        kinds = {"compact", "shard"} if each.whole_rows else {""}
        assert {point.kind for point in chosen.fine(each)} == kinds
        assert set(chosen.coarse(each)) < set(chosen.fine(each))
        served = {xkv.dispatch.chosen_row(HOPPER, n, each.whole_rows).max_tokens for n in each.tokens}
        assert served == {each.max_tokens}
        base = sweep.in_use(each, HOPPER)
        assert isinstance(base, ChosenTuning)
        found = rows.candidates(base, each.grid)
        assert found[0] == base
        assert len(set(found)) == len(found) > 6
        assert all(row.min_warps <= row.num_warps for row in found[1:])
    assert {*chosen_rows.SWEPT, "max_tokens", "whole_rows", "provenance"} == {
        field.name for field in dataclasses.fields(ChosenTuning)
    }


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> sweep.Sweep:
    monkeypatch.setattr(inputs, "LAUNCHES", 2)
    monkeypatch.setattr(timing, "in_place", in_place)
    return sweep.Sweep(CHOSEN_CLASSES[:1], HOPPER, device="cpu")


def in_place(
    calls: Any, before: Any, launches: Any, warm: Any, rounds: int, stream: bool
) -> dict[str, list[float]]:
    """Each call is half as fast as the one before."""
    for call in calls.values():
        for number in launches:
            before(number)
            call(number)
    return {name: [2.0**n] * rounds for n, name in enumerate(calls)}


@pytest.mark.interpret
@pytest.mark.parametrize("point", POINTS, ids=NAMES)
def test_times(point: ChosenPoint, rig: sweep.Sweep) -> None:
    found = rig.times(of(point, A, B), [point], 3, math.inf)
    assert found == {row: {point.name: us} for row, us in zip(of(point, A, B), (1.0, 2.0), strict=True)}
    assert point.name == NAMES[POINTS.index(point)]
    assert (rig.wrong, rig.left_out) == ([], [])


@pytest.mark.interpret
@pytest.mark.parametrize("point", POINTS, ids=NAMES)
def test_a_wrong_row_is_out(point: ChosenPoint, rig: sweep.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    right = chosen.launched
    monkeypatch.setattr(
        chosen, "launched",
        lambda build, row, where: right(build, row, where) if row.block == 32 else lambda: None,
    )  # fmt: skip
    a, b = of(point, A, B)
    assert list(rig.times([a, b], [point], 3, math.inf)) == [a]
    (said,) = rig.wrong
    assert said.startswith(f"{point.name}: {b}: out: entry [0, 0] is -7, not ")


def test_a_record_of_them() -> None:
    """Their rows are printed as source, from the record that they are in."""
    times = {A: {"x": 2.0}, B: {"x": 1.0}}
    found = results.entry(CHOSEN_CLASSES[0].name, A, (times, times))
    setting = {"gpu": "H200", "torch": "2.11", "triton": "3.6", "date": "2026-11-29", "left_out": []}
    record = {**setting, "rows": [dataclasses.asdict(results.best(found, setting))]}
    made = eval("[" + "\n".join(results.end(record)) + "]")
    assert dataclasses.replace(made[0], provenance="swept") == B
    assert made[0].provenance.startswith("H200, 2026-11-29, torch 2.11, Triton 3.6: ci/tune.py, 1.000 of")
    assert "chosen, query tokens <= 16: 2 rows, then 2" in results.table(found)
    assert " block " in results.table(found)


def test_flags() -> None:
    """A flag of a field that only these rows have changes only their classes."""
    args = command.parser().parse_args(["--block", "64", "--num-warps", "1", "--access-patterns", "chosen"])
    assert args.access_patterns == ["chosen"]
    plain, these = (command._with_flags(each, args) for each in (classes.CLASSES[0], CHOSEN_CLASSES[0]))
    assert these.grid == CHOSEN_CLASSES[0].grid | {"block": (64,), "num_warps": (1,)}
    assert plain.grid == classes.CLASSES[0].grid | {"num_warps": (1,)}


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    """Every kind of launch that a sweep has, compiled."""
    each = next(each for each in classes.CLASSES if each.kind == "extension")
    slots = next(each for each in classes.CLASSES if each.access_pattern == "query_tokens")
    mapped = next(each for each in classes.CLASSES if each.kind == "map")
    where = xkv.platform()
    for one in (each, slots, mapped):
        rig = sweep.Sweep([one], where)
        base = sweep.in_use(one, where)
        found = rig.times([base], points.coarse(one)[:1], 3, math.inf)
        assert rig.wrong == []
        assert len(found) == 1 or rig.left_out  # lost in noise, if anything else runs there
    rig = sweep.Sweep(CHOSEN_CLASSES, where)
    for point in POINTS:
        rig.times(of(point, A), [point], 3, math.inf)
    assert rig.wrong == []
