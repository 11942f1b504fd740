"""The kernel against the oracle, bit for bit, on the GPU or in the interpreter."""

from __future__ import annotations

import os
import random
from functools import partial

import building
import pytest
import torch
from cases import CASES, make
from conftest import INTERPRETED

import xkv
from xkv import reference
from xkv.launch import launch
from xkv.params import CSR, SLOTS, TABLE, Build
from xkv.platforms import tuning
from xkv.platforms.detect import Platform

pytestmark = pytest.mark.kernel

NAMES = {TABLE: "table", CSR: "csr", SLOTS: "slots"}
# tiles small enough that small cases have several; the tuning tables' own rows come on top
ROWS = [
    tuning.Tuning("strided_far", None, 16, 1, 2, 1, 2, 16, 1, 2, 16, True, "test"),
    tuning.Tuning("strided_far", 16, 8, 4, 1, 2, 1, 8, 2, 2, 4, False, "test"),
]


def check(build: Build, row: tuning.Tuning, device: str) -> None:
    want = building.twin(build)
    launch.launch(build, row, xkv.platform(device))
    reference.run(want)
    building.assert_same(build, want)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("page_size", [1, 16, 32, 64, 128])
@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name, case in CASES.items() for form in case.forms],
    ids=lambda x: NAMES.get(x, x) if isinstance(x, int) else x,
)
def test_curated(name: str, form: int, page_size: int, dtype: torch.dtype, device: str) -> None:
    if INTERPRETED and page_size in (32, 128):
        pytest.skip("as the other page sizes: the interpreter takes seconds")
    row = ROWS[dtype == torch.int64]
    check(make(CASES[name], form, page_size, 1, dtype, device), row, device)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("form", NAMES, ids=NAMES.values())
def test_whole_tiles_without_a_status_word(form: int, dtype: torch.dtype, device: str) -> None:
    """On a GPU of NVIDIA's, lanes take 16 bytes at a time there alone."""
    build = make(CASES["whole tiles"], form, 1, 1, dtype, device)
    build.status = None
    check(build, ROWS[dtype == torch.int64], device)


@pytest.mark.parametrize("source_page_size", [2, 16, 64, 256])
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("name", ["odd lengths", "start", "page map", "two views", "beyond the source"])
def test_page_id_source(name: str, page_size: int, source_page_size: int, device: str) -> None:
    for form in (TABLE, CSR):
        build = make(CASES[name], form, page_size, source_page_size, torch.int32, device)
        check(build, ROWS[0], device)


@pytest.mark.parametrize(
    ("page_size", "source_page_size"), [(1, 3), (16, 528), (64, 640), (128, 640), (64, 2112), (256, 4352)]
)
@pytest.mark.parametrize("name", ["odd lengths", "start", "page map", "beyond the source"])
def test_source_pages_of_no_power_of_two(
    name: str, page_size: int, source_page_size: int, device: str
) -> None:
    """As those of vLLM's hybrid models, whose bytes match those of mamba's state."""
    for form, dtype in ((TABLE, torch.int32), (CSR, torch.int64)):
        check(make(CASES[name], form, page_size, source_page_size, dtype, device), ROWS[0], device)


@pytest.mark.parametrize("source_page_size", [16, 64, 528, 65_536])
def test_slots_of_page_ids(source_page_size: int, device: str) -> None:
    check(make(CASES["slots"], SLOTS, 16, source_page_size, torch.int32, device), ROWS[0], device)


@pytest.mark.parametrize("page_size", [1 << n for n in range(11)])
def test_every_page_size(page_size: int, device: str) -> None:
    for form in (TABLE, CSR):
        build = make(CASES["boundaries"], form, page_size, 1, torch.int32, device)
        check(build, ROWS[0], device)


@pytest.mark.parametrize("num_page", [1 << n for n in range(13)])
def test_any_tile_size(num_page: int, device: str) -> None:
    """NUM_PAGE_PER_BLOCK is free of the page size: SGLang's was 4096 // page_size."""
    row = tuning.Tuning("strided_far", None, num_page, 4, 2, 1, 2, num_page, 1, 2, 16, False, "test")
    lens = 5 if num_page < 8 else 150
    case = CASES["skewed"]
    build = make(case, TABLE, 4, 1, torch.int32, device)
    build.seq_lens = build.seq_lens.clamp(max=lens)
    check(build, row, device)


@pytest.mark.parametrize("arch", ["sm90", "sm100", "gfx942", "gfx950"])
def test_every_tuning_row(arch: str, device: str) -> None:
    """The tables' own rows, with their real block sizes; warps do not change the meaning."""
    from xkv import cuda, rocm

    rows = [r for r in {**cuda.TUNING, **rocm.TUNING}[arch] if r.access_pattern != "extension"]
    for row in {
        (r.num_page_per_block, r.balanced_num_page_per_block, r.batch_block): r for r in rows
    }.values():
        page_size = {"strided_far": 64, "strided_near": 16}.get(row.access_pattern, 1)
        check(make(CASES["skewed"], TABLE, page_size, 1, torch.int32, device), row, device)
        check(make(CASES["odd lengths"], CSR, page_size, 1, torch.int32, device), row, device)


def _seeds() -> list[int]:
    """60 cases in the interpreter; XKV_FUZZ=N for more, XKV_SEED=S to begin elsewhere."""
    begin, count = int(os.environ.get("XKV_SEED", "0")), int(os.environ.get("XKV_FUZZ", "60"))
    return list(range(begin, begin + count))


@pytest.mark.parametrize("seed", _seeds())
def test_random(seed: int, device: str) -> None:
    rng = random.Random(seed)
    row = tuning.Tuning(
        "strided_far", None, rng.choice([16, 64]), rng.choice([1, 4]), rng.choice([1, 2, 5]),
        rng.choice([1, 1, 3]), rng.choice([1, 2, 5]), rng.choice([16, 64]), rng.choice([1, 1, 2, 4]),
        rng.choice([1, 2, 3]),
        rng.choice([4, 16]), False, "test",
    )  # fmt: skip
    launched = partial(launch.launch, tuning=row, target=xkv.platform(device))
    building.any_launch(seed, seed % 2 == 1, launched, device).check()


@pytest.mark.interpret
@pytest.mark.parametrize("seed", range(1, 40, 2))
def test_hostile_data_as_on_amd(seed: int, device: str) -> None:
    """Reports are reduced before they are written there."""
    launched = partial(launch.launch, tuning=ROWS[seed % 4 == 1], target=Platform("hip", "gfx942", 64, 4))
    building.any_launch(seed, True, launched, device).check()


def test_twice_the_same(device: str) -> None:
    """No atomics in the results: equal from run to run, and a rebuild leaves everything as it was."""
    build = make(CASES["skewed"], CSR, 16, 1, torch.int32, device)
    check(build, ROWS[1], device)
    again = building.twin(build)
    launch.launch(again, ROWS[1], xkv.platform(device))
    building.assert_same(again, build)


def test_blocks_counted_in_int64(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if batch times width exceeded 2**31 tiles, for which no test has the memory."""
    plain = launch.make_schedule
    monkeypatch.setattr(launch, "make_schedule", lambda *args: plain(*args)._replace(int64_tiles=True))
    for form in (TABLE, CSR):
        check(make(CASES["skewed"], form, 16, 1, torch.int32, device), ROWS[1], device)
