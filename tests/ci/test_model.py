"""ci/model.py: what is counted in assembly, what a model makes of it, and how measured times judge it."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xkv.cli.tune.chosen_rows import CHOSEN_CLASSES
from xkv.cli.tune.classes import CLASSES, Class
from xkv.launch.grid import Schedule
from xkv.platforms.tuning import Tuning

CI = Path(__file__).resolve().parents[2] / "ci"
sys.path.append(str(CI))
import model  # noqa: E402
import model_counts  # noqa: E402
import model_times  # noqa: E402
from model_counts import Counts, Kernel  # noqa: E402

# A loop over tiles in two forms, the shorter of which has 16-byte accesses; a loop over the batch before it,
# which only loads; a load ahead that is skipped at the end; code past the end that nothing reaches.
AMD = """
kernel:
	s_load_dword s0, s[0:1], 0x0
.LBB0_1:
	global_load_dword v0, v[0:1], off
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	v_mov_b32_e32 v1, 0
	s_branch .LBB0_3
.LBB0_9:
	s_nop 0
.LBB0_3:
	s_cbranch_vccnz .LBB0_5
	global_load_dwordx4 v[0:3], v[0:1], off
	s_cbranch_execz .LBB0_4
	global_store_dwordx4 v[0:1], v[0:3], off
.LBB0_4:
	s_cbranch_scc0 .LBB0_3
	s_endpgm
.LBB0_5:
	global_load_dword v0, v[0:1], off
	global_load_dword v1, v[0:1], off
	global_store_dword v[0:1], v0, off
	global_store_dword v[0:1], v1, off
	s_branch .LBB0_4
"""

NVIDIA = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P1 LDG.E R13, desc[UR8][R10.64] ;
        /*0020*/               @P0 EXIT ;
.L_x_2:
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/              @!P0 LDG.E R18, desc[UR8][R6.64] ;
.L_x_1:
        /*0050*/                   IADD3 R1, R1, R2, RZ ;
        /*0060*/              @!P1 STG.E desc[UR8][R2.64], R31 ;
        /*0070*/              @!P4 BRA P5, `(.L_x_2) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3) ;
"""


def kernel_of(vendor: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(model_counts, "cubin_text", lambda *_: text)
    target = SimpleNamespace(backend=vendor)
    return SimpleNamespace(metadata=SimpleNamespace(target=target), asm={"cubin": b"", "amdgcn": text})


def test_the_shortest_tile_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = model_counts.count(kernel_of("hip", AMD, monkeypatch))
    # the 16-byte form: the branches of its first and its last block, load, masked branch, store
    assert found.tile == Counts(5, 2, 1, 1)
    assert found.before == Counts(5, 2, 1, 0)  # each loop over the batch is passed once


def test_a_load_ahead_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = model_counts.count(kernel_of("cuda", NVIDIA, monkeypatch))
    assert found.tile == Counts(5, 5, 1, 1)
    assert found.before == Counts(3, 3, 1, 0)


def test_without_tiles_the_whole_way_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = model_counts.count(kernel_of("cuda", NVIDIA, monkeypatch), has_tiles=False)
    assert found == Kernel(Counts(8, 8, 1, 1), Counts(0, 0, 0, 0))


def test_code_without_such_a_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = AMD.replace("_store", "_atomic")
    with pytest.raises(ValueError, match="no loop that loads and stores"):
        model_counts.count(kernel_of("hip", text, monkeypatch))


@pytest.mark.compile
@pytest.mark.parametrize("arch", model_times.GPUS)
def test_real_code(arch: str) -> None:
    """Tiles of more entries a lane have as many more accesses, or wider ones."""
    far, near = (
        next(c for c in CLASSES if c.name == f"{x}, batch any") for x in ("strided_far", "contiguous")
    )
    counted = model.Model(arch)
    lanes = counted.unit.platform.warp_size
    for each, words in ((far, 1), (near, 4)):
        point = model.coarse(each)[0]
        for tile in (256, 512):
            row = dataclasses.replace(
                counted.in_use(each), num_page_per_block=tile * words, num_warps=128 // lanes,
                programs_per_cu=64,
                tiles_per_program=1 << 20,
            )  # fmt: skip
            found = counted.counted(row, point)
            assert found.schedule.num_page_per_block == tile * words
            per_lane = tile // 128
            assert (found.kernel.tile.loads, found.kernel.tile.stores) == (per_lane, per_lane)
            assert found.kernel.before.loads > 0
            assert not found.spills


ROW = Tuning("strided_far", None, 128, 4, 8, 2, 2, 128, 1, 1, 256, False, "counted")
GPU = model_times.Gpu(
    ghz=1.0, lanes=128, gb_s=1000, memory_us=1.0, cache_us=0.25, line=64, starts=64
)  # fmt: skip


def launch(**changed: Any) -> model_times.Launch:
    """Two rows of 1,024 entries in eight tiles of 128; two programs a row, and two that write sums."""
    work = Counts(50, 50, 1, 1)
    made = model_times.Launch(
        entries=[1024, 1024], stride=256, stream=False, schedule=Schedule((3, 2, 1), 128, 8, False, False),
        tuning=ROW, kernel=Kernel(Counts(250, 250, 1, 0), work), resident=16, units=4, warp_size=32,
    )  # fmt: skip
    return made._replace(**changed)


def test_a_time_by_hand() -> None:
    found = model_times.estimate(launch(), GPU)
    # 6 programs of 250 instructions and 16 tiles of 50, of 128 lanes each, on 4 units of 128
    assert found.issue == pytest.approx((6 * 250 + 16 * 50) / 4 / 1e3)
    # two loads of a cache, 250 instructions of 4 cycles, and for each of 4 tiles a load and 50 of 4 cycles
    first = 2 * 0.25 + 1.0
    starting = 6 * 4 / (4 * 64)
    assert found.latency == pytest.approx(starting + first + 4 * (1.0 + 0.2))
    assert found.memory == pytest.approx(2048 * (64 + 4) / 1e6 + first + 1.0)
    assert found.useful == pytest.approx(8 / 68)
    assert found.us == found.latency


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"kernel": Kernel(Counts(250, 250, 1, 0), Counts(5000, 5000, 1, 1))}, "issue"),
        ({"stride": 16}, "useful"),
        ({"entries": [1024, 100_000]}, "memory"),
        ({"resident": 1, "units": 1}, "latency"),
        ({"stream": True}, "latency"),
    ],
)
def test_more_work_takes_longer(changed: dict[str, Any], name: str) -> None:
    before, after = (model_times.estimate(launch(**each), GPU) for each in ({}, changed))
    assert getattr(after, name) > getattr(before, name)


def test_leftover_tiles_are_shared() -> None:
    """A long row takes as long as its programs need, unless others take its tiles."""
    long = launch(entries=[128 * 64, 128])
    alone = model_times.estimate(long._replace(schedule=Schedule((2, 2, 1), 128, 64, False, False)), GPU)
    shared = model_times.estimate(long._replace(schedule=Schedule((10, 2, 1), 128, 4, True, False)), GPU)
    assert shared.latency < alone.latency


def test_rank_correlation() -> None:
    assert model.rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 21.0]) == pytest.approx(1)
    assert model.rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert model.rank_correlation([1.0, 1.0, 2.0], [1.0, 1.0, 2.0]) == pytest.approx(1)  # ties share a rank
    assert math.isnan(model.rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_a_choice_is_judged_by_all_that_is_preferred() -> None:
    """Not by the one that happens to come first."""
    rows = [dataclasses.replace(ROW, num_page_per_block=n) for n in (64, 128, 256)]
    counted = {rows[0]: {"p": 1.0}, rows[1]: {"p": 1.0}, rows[2]: {"p": 2.0}}
    times = {rows[0]: {"p": 4.0}, rows[1]: {"p": 1.0}, rows[2]: {"p": 2.0}}
    (each, *_) = CLASSES
    found = model.compared(each, rows[2], counted, times)
    assert found[1] == 3
    assert found[3:] == [2, pytest.approx(2.0), 4.0, 2.0, 2.0, 4.0]


@pytest.mark.compile
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [each._replace(grid={"tiles_per_program": (2, 4)}) for each in CLASSES if each.name in NAMES]
    monkeypatch.setattr(model, "CLASSES", small)
    monkeypatch.setattr(Class, "loads", property(lambda self: [MIXED]))
    counted = model.Model("sm90")
    times = []
    for each in small:
        base = counted.in_use(each)
        rows = [dataclasses.replace(base, tiles_per_program=n) for n in (2, 4)]
        stage = [
            {"row": dataclasses.asdict(row), "us": {p.name: 2.0 + n for p in model.coarse(each)}}
            for n, row in enumerate(rows)
        ]
        times.append({"class": each.name, "base": dataclasses.asdict(base), "stages": [stage, stage]})
    (tmp_path / "tune.json").write_text(json.dumps({"classes": times}))
    assert model.main(["sm90", "--measured", str(tmp_path / "tune.json")]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)
    assert "rank correlation" in out
    assert out.count("Tuning(") == len(NAMES) - 1  # an extension's rows are counted, not ranked
    assert model.main(["gfx942"]) == 0
    out = capsys.readouterr().out
    assert "rank correlation" not in out
    assert all(each.name in out for each in CHOSEN_CLASSES)


NAMES = ("strided_near, batch any", "extension, batch <= 256")
MIXED = next(load for each in CLASSES for load in each.loads if load.name.startswith("4 x 128K"))
