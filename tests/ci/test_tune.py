"""The sweep of ci/tune.py: what it sweeps, how it picks, what it prints; times are made up."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from benching import TINY

import xkv
from xkv.cli.bench import inputs, timing
from xkv.cli.bench import machine as bench_machine
from xkv.cli.bench.workloads import WORKLOADS, Workload
from xkv.cli.tune import classes, command, results, sweep
from xkv.cli.tune import rows as tune_rows
from xkv.cli.tune.chosen_rows import CHOSEN_CLASSES
from xkv.cli.tune.points import Point
from xkv.launch import launch
from xkv.params import CSR, SLOTS, TABLE
from xkv.platforms import detect
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import AccessPattern, Tuning

A = Tuning("strided_far", 16, 64, 4, 8, 2, 8, 64, 1, 2, 16, False, "swept")
B = dataclasses.replace(A, num_page_per_block=128)
C = dataclasses.replace(A, num_warps=2)
MANY = Workload("many", (20,) * 17, 100)
HOPPER = Platform("cuda", "sm90", 32, 132)


def test_classes() -> None:
    """Every row of a vendor's table has its class, and every workload is in one of each kind.

    But for extensions, which need room for more tokens, and slots, which have one class.
    """
    others = {"query_tokens", "extension"}
    assert [(each.access_pattern, each.max_batch) for each in classes.CLASSES] == [
        (row.access_pattern, row.max_batch) for row in xkv.cuda.TUNING["sm90"]
    ]
    for pattern in set(get_args(AccessPattern)) - others:
        small, large = (each for each in classes.CLASSES if each.access_pattern == pattern)
        assert {load.name for load in small.loads} == {"1 x 128K", "1 x 1M", "8 x 8K in 1M"}
        assert sorted([*small.loads, *large.loads]) == sorted(
            load for load in WORKLOADS if "ops" in load.suites
        )
    (slots,) = (each for each in classes.CLASSES if each.access_pattern == "query_tokens")
    assert sorted(slots.loads) == sorted(load for load in WORKLOADS if "ops" in load.suites)
    extensions = [each for each in classes.CLASSES if each.access_pattern == "extension"]
    assert [sorted({load.batch for load in each.loads}) for each in extensions] == [[8], [32], [256], [512]]
    assert set(classes.SWEPT) | {"access_pattern", "max_batch", "provenance"} == {
        field.name for field in dataclasses.fields(Tuning)
    }


@pytest.mark.parametrize("each", classes.CLASSES, ids=lambda each: each.name)
def test_candidates(each: classes.Class) -> None:
    base = dataclasses.replace(
        A, access_pattern=each.access_pattern, max_batch=each.max_batch, num_page_per_block=8
    )
    rows = tune_rows.candidates(base, each.grid)
    assert rows[0] == base
    assert len(set(rows)) == len(rows) > 6
    for row in rows[1:]:
        assert row.num_warps * row.programs_per_cu <= 64
        assert all(getattr(row, name) in values for name, values in each.grid.items())
        # what is not swept is the row's in use
        same = {name: getattr(base, name) for name in each.grid}
        assert dataclasses.replace(row, **same) == base
    assert tune_rows.candidates(base, each.grid) == rows


@pytest.mark.parametrize("each", [*classes.CLASSES, *CHOSEN_CLASSES], ids=lambda each: each.name)
def test_candidates_of_wide_warps(each: classes.AnyClass) -> None:
    """Half as many warps and smaller tiles too, but no more entries than the registers of a lane hold."""
    wide = classes.widened(each, 64)
    assert classes.widened(each, 32) == each
    where = Platform("hip", "gfx942", 64, 304)
    base = sweep.in_use(each, where)
    rows = tune_rows.candidates(base, wide.grid, 64)
    assert len(set(rows)) == len(rows) > 6
    for row in rows[1:]:
        if isinstance(row, Tuning):
            assert row.num_warps * 64 * max(row.programs_per_cu, row.balanced_per_cu) <= 2048
            assert max(row.num_page_per_block, row.balanced_num_page_per_block) <= 4 * 64 * row.num_warps
            assert not row.pdl_on_streams
        else:
            assert row.block <= 4 * 64 * row.num_warps
    assert {max(n // 2, 1) for n in each.grid["num_warps"]} <= set(wide.grid["num_warps"])


def test_candidates_of_two_values() -> None:
    grid = {"num_warps": (4, 8, 16), "programs_per_cu": (4, 8)}  # 16 warps of 8 programs: too many
    rows = tune_rows.candidates(A, grid)
    assert {(row.num_warps, row.programs_per_cu) for row in rows} == {(4, 8), (4, 4), (8, 8), (8, 4)}
    assert len(rows) == 4


def test_ranking() -> None:
    times = {A: {"x": 2.0, "y": 8.0}, B: {"x": 4.0, "y": 4.0}, C: {"x": 2.0, "y": 5.0}}
    scores = tune_rows.ranked(times)
    assert [score.row for score in scores] == [C, A, B]  # 1 and 1.25; 1 and 2, as B, but 2 and 1
    assert scores[0].mean == pytest.approx(1.25**0.5)
    assert [(score.worst, score.where) for score in scores] == [(1.25, "y"), (2.0, "y"), (2.0, "x")]
    assert tune_rows.ranked({}) == []
    assert tune_rows.finalists(scores, B, 1) == [B, C]
    assert tune_rows.finalists(scores, C, 2) == [C, A]


def test_of_rows_with_like_means_the_one_without_a_bad_point() -> None:
    times = {
        A: {"x": 1.0, "y": 1.0, "z": 1.2},
        B: {"x": 1.06, "y": 1.06, "z": 1.08},
        C: {"x": 1.3, "y": 1.0, "z": 1.0},
    }
    scores = tune_rows.ranked(times)
    assert [score.row for score in scores] == [B, A, C]
    assert scores[0].mean > scores[1].mean


def test_source() -> None:
    """It is the row, and no line of it is longer than ruff allows."""
    score = tune_rows.Score(C, 1.0234, 1.119, '1 x 1M + 255 x 4K in 1M, page 64, csr "quoted"')
    machine = {"gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0+cu128", "triton": "3.6.0"}
    text = tune_rows.provenance(score, machine, "2026-11-23")
    start = "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu128, Triton 3.6.0: ci/tune.py, 1.023 of"
    assert text.startswith(start)
    assert "most 1.12 (1 x 1M + 255 x 4K in 1M, page 64" in text
    for row in (dataclasses.replace(C, provenance=text), dataclasses.replace(A, max_batch=None)):
        source = tune_rows.source(row)
        assert all(len(line) <= 110 for line in source.splitlines())
        assert source == "\n".join(line.rstrip() for line in source.splitlines())
        assert eval(source.strip().removesuffix(",")) == row


def test_values() -> None:
    assert classes.values("4,8") == (4, 8)
    assert classes.values("true,false") == (True, False)
    args = command.parser().parse_args(
        ["--num-warps", "1,2", "--access-patterns", "contiguous", "--tiles-per-program", "2"]
    )
    assert (args.num_warps, args.access_patterns, args.tiles_per_program) == ((1, 2), ["contiguous"], (2,))
    assert args.batch_block is None


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> sweep.Sweep:
    """On the CPU, in little; a row's time is its NUM_PAGE_PER_BLOCK."""
    monkeypatch.setattr(classes, "WORKLOADS", (*TINY, MANY))
    monkeypatch.setattr(inputs, "LAUNCHES", 2)
    monkeypatch.setattr(timing, "in_place", in_place)
    return sweep.Sweep(classes.CLASSES[:2], HOPPER, stream=True, device="cpu")


def in_place(
    calls: Any, before: Any, launches: Any, warm: Any, rounds: int, stream: bool
) -> dict[str, list[float]]:
    assert stream
    for call in calls.values():
        for number in launches:
            before(number)
            call(number)
    blocks = {name: call.args[0][0].func.__self__._config.NUM_PAGE_PER_BLOCK for name, call in calls.items()}
    return {name: [float(block)] * rounds for name, block in blocks.items()}


POINTS = [
    Point(TINY[0], 64, TABLE), Point(TINY[1], 16, CSR), Point(TINY[1], 1, CSR),
    Point(TINY[1], 1, CSR, 16), Point(TINY[1], 1, TABLE, 16), Point(TINY[0], 16, TABLE, 1, "map"),
    Point(TINY[0], 16, CSR, 1, "map"), Point(TINY[0], 16, TABLE, 1, "extension"),
    Point(TINY[0], 20, SLOTS), Point(TINY[1], 1, SLOTS),
]  # fmt: skip
NAMES = [
    "skewed, page 64", "one, page 16, csr", "one, page 1, csr",
    "one, page 1 of 16, csr", "one, page 1 of 16", "skewed, page 16, map", "skewed, page 16, csr, map",
    "skewed, page 16, extension", "skewed, 4 query tokens each", "one, 1 query tokens each",
]  # fmt: skip


@pytest.mark.interpret
def test_times(rig: sweep.Sweep) -> None:
    found = rig.times([A, B, C], POINTS, 3, math.inf)
    assert found == {row: dict.fromkeys(NAMES, float(row.num_page_per_block)) for row in (A, B, C)}
    assert (rig.wrong, rig.left_out) == ([], [])


@pytest.mark.interpret
def test_no_time(rig: sweep.Sweep) -> None:
    """The first row and point are always timed."""
    found = rig.times([A, B, C], POINTS, 3, -math.inf)
    assert found == {A: {NAMES[0]: 64.0}}
    assert rig.left_out == [f"{NAMES[0]}: 2 of 3 rows", *NAMES[1:]]


@pytest.mark.interpret
def test_a_row_lost_in_noise_is_out(rig: sweep.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(calls: Any, *more: Any, **how: Any) -> dict[str, list[float]]:
        return {name: [us - 64 for us in each] for name, each in in_place(calls, *more, **how).items()}

    monkeypatch.setattr(timing, "in_place", noisy)
    assert rig.times([A, B], POINTS[:1], 3, math.inf) == {B: {NAMES[0]: 64.0}}
    assert rig.left_out == [f"skewed, page 64: {A}: lost in the noise of the kernel before"]


# Of an extension, the first entry that a build did not write.
WRONG = {
    0: "step 0: page_table: live entry 0", 1: "step 0: kv_indices: live entry 0",
    5: "step 0: page_table: live entry 0", 7: "page_table: entry [0, 44]", 8: "slots: entry [0]",
}  # fmt: skip


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("point", "what"), [(POINTS[n], what) for n, what in WRONG.items()], ids=[NAMES[n] for n in WRONG]
)
def test_a_wrong_row_is_out(
    point: Point, what: str, rig: sweep.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = launch.CompiledLaunch.run

    def spoilt(self: Any, build: Any) -> None:
        if self._config.NUM_PAGE_PER_BLOCK != 128 or build.extends != (point.kind == "extension"):
            right(self, build)

    monkeypatch.setattr(launch.CompiledLaunch, "run", spoilt)
    found = rig.times([A, B, C], [point], 3, math.inf)
    assert list(found) == [A, C]
    (said,) = rig.wrong
    assert said.startswith(f"{point.name}: {B}: ")
    assert f"{what} is -7, not" in said
    assert rig.times([B], [point], 3, -math.inf) == {}


@pytest.mark.interpret
def test_main(rig: sweep.Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(detect, "platform", lambda: HOPPER)
    monkeypatch.setattr(sweep, "Sweep", lambda classes, where, predecessor, stream: rig)
    machine = {"gpu": "H100", "torch": "2.11", "triton": "3.6"}
    monkeypatch.setattr(bench_machine, "versions", lambda: machine)
    file = tmp_path / "tune.json"
    flags = ["--num-page-per-block", "16,32", "--num-warps", "4", "--programs-per-cu", "2"]
    flags += ["--batch-block", "16", "--access-patterns", "strided_far", "--keep", "1"]
    flags += ["--tiles-per-program", "2", "--balanced-per-cu", "2", "--balanced-num-page-per-block", "16"]
    # nothing is left out, however slow the machine
    flags += ["--leftover-per-cu", "1", "--pdl-on-streams", "false", "--minutes", "inf"]
    assert command.main([*flags, "--json", str(file)]) == 0
    out, _ = capsys.readouterr()
    record = json.loads(file.read_text())
    base = xkv.cuda.TUNING["sm90"][0]
    small, large = record["classes"]
    assert small["base"]["num_page_per_block"] == base.num_page_per_block
    assert [each["row"]["num_page_per_block"] for each in small["stages"][1]] == [256, 16]
    assert len(small["stages"][0]) == len(large["stages"][0]) == 3
    # coarse: tables at one page size; then every page size, and CSR
    for stages, loads in ((small["stages"], TINY), (large["stages"], [MANY])):
        assert set(stages[0][0]["us"]) == {f"{load.name}, page 64" for load in loads}
        assert set(stages[1][0]["us"]) == {
            f"{load.name}, page {size}{csr}" for load in loads for size in (64, 32) for csr in ("", ", csr")
        }
    printed = out[out.index("    Tuning(") :]
    made = eval("[" + printed + "]")
    assert [row.num_page_per_block for row in made] == [16, 16]
    assert [dataclasses.asdict(row) for row in made] == record["rows"]
    assert made[0].provenance.startswith("H100, ")
    # a record, and the archive that it comes in, are read as they were written
    archive = tmp_path / "report.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(file, results.FILE)
    for came in (file, archive):
        assert command.main(["--from", str(came)]) == 0
        assert capsys.readouterr() == (out, "")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert capsys.readouterr() == ("", "tune: rows are measured on a GPU, and there is none\n")


@pytest.mark.parametrize("missing", ["tabulate", "tqdm"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert command.main([]) == 2
    assert capsys.readouterr() == ("", f"tune: {missing} is missing; pip install 'xkv[bench]'\n")


def test_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(detect, "_torch", detect._torch.__wrapped__)
    assert command.main([]) == 2
    assert capsys.readouterr().err.startswith("tune: torch is not installed, and xkv never installs it: ")


@pytest.mark.gpu
def test_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "WORKLOADS", TINY)
    rig = sweep.Sweep(classes.CLASSES[:1], xkv.platform())
    found = rig.times([A, B], POINTS, 3, math.inf)
    assert (rig.wrong, rig.left_out) == ([], [])
    for us in found.values():
        assert list(us) == NAMES
        assert all(math.isfinite(value) for value in us.values())  # how long depends on what else runs there
