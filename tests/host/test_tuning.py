"""Tuning rows: what they may hold, which one serves whom, and the grids that follow from them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xkv import cuda, dispatch, rocm
from xkv.cli.kernels.variants import csr
from xkv.dispatch import tuning_row as lookup
from xkv.draft import DraftTree
from xkv.launch.grid import PartSchedule, group_grid, make_schedule, part_schedule
from xkv.params import CSR, INT32_MAX, ROW_MAX, SLOTS, TABLE, Build, View
from xkv.platforms import tuning
from xkv.platforms.detect import CPU, Platform
from xkv.platforms.tuning import Tuning

PATTERNS = get_args(tuning.AccessPattern)
MAX_BATCH = 65536
WARP_SIZE = {"cuda": 32, "hip": 64}
TABLES = {("cuda", arch): rows for arch, rows in cuda.TUNING.items()}
TABLES |= {("hip", arch): rows for arch, rows in rocm.TUNING.items()}
TABLES |= {("cpu", "cpu"): tuning.CPU_ROWS}
ROWS = [
    pytest.param(vendor, row, id=f"{arch}-{row.access_pattern}-{row.max_batch}")
    for (vendor, arch), rows in TABLES.items()
    for row in rows
]


def gpu(vendor: str, arch: str, compute_units: int = 100) -> Platform:
    return Platform(vendor, arch, WARP_SIZE.get(vendor, 1), compute_units)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A lookup logs once; whether it has is this test's own affair."""
    forget()
    yield
    forget()


def forget() -> None:
    for value in vars(dispatch).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


COUNTS = (("programs", "cu"), ("tiles", "program"), ("balanced", "cu"))
GOOD = Tuning("strided_far", None, 256, 4, 8, 4, 4, 256, 1, 2, 256, True, "made up")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_page_per_block", x) for x in (0, -64, 3, 96, 1 << 16)),
        *(("num_warps", x) for x in (0, -1, 3, 12, 32)),
        *(("batch_block", x) for x in (0, -16, 5, 100)),
        *((f"{name}_per_{of}", x) for name, of in COUNTS for x in (0, -8)),
        ("balanced_own_tiles", 0),
    ],
)
def test_bad_row(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got {value}$"):
        dataclasses.replace(GOOD, **{field: value})


def test_row_is_frozen_and_says_what_it_is() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.num_warps = 8  # type: ignore[misc]
    for part in ("256", "num_warps=4", "made up"):
        assert part in str(GOOD)


def test_archs() -> None:
    """The archs that the design names have tables; each vendor's default is one of them."""
    assert {"sm90", "sm100", "sm103", "sm120"} <= set(cuda.TUNING)
    assert {"gfx942", "gfx950"} <= set(rocm.TUNING)
    assert cuda.DEFAULT_ARCH in cuda.TUNING
    assert rocm.DEFAULT_ARCH in rocm.TUNING


@pytest.mark.parametrize(("vendor", "row"), ROWS)
def test_row_of_a_table(vendor: str, row: Tuning) -> None:
    assert row.num_warps * WARP_SIZE.get(vendor, 1) <= 1024
    assert row.provenance.strip()
    assert row.access_pattern in PATTERNS
    assert row.max_batch is None or 1 <= row.max_batch < MAX_BATCH


def batches_of(rows: Any) -> list[int]:
    """Every batch size at which another row may begin to serve, and the ends."""
    edges = {row.max_batch for row in rows if row.max_batch is not None}
    return sorted({0, 1, MAX_BATCH} | edges | {edge + 1 for edge in edges})


@pytest.mark.parametrize(("vendor", "arch"), TABLES)
def test_every_batch_is_served_and_no_row_is_idle(vendor: str, arch: str) -> None:
    rows = TABLES[vendor, arch]
    served = []
    for pattern in PATTERNS:
        for batch in batches_of(rows):
            row = lookup(gpu(vendor, arch), pattern, batch)
            assert row.access_pattern == pattern
            bounds = [r.max_batch or MAX_BATCH for r in rows if r.access_pattern == pattern]
            assert (row.max_batch or MAX_BATCH) == min(n for n in bounds if n >= batch)
            served.append(row)
    assert set(served) == set(rows)


def records(caplog: pytest.LogCaptureFixture, platform: Platform) -> list[logging.LogRecord]:
    """What looking up every pattern and batch logs."""
    with caplog.at_level(logging.DEBUG, "xkv"):
        for pattern in PATTERNS:
            for batch in (1, 2, 300, 1, MAX_BATCH):
                lookup(platform, pattern, batch)
    return caplog.records


@pytest.mark.parametrize(("vendor", "arch"), TABLES)
def test_exact_arch_is_silent(vendor: str, arch: str, caplog: pytest.LogCaptureFixture) -> None:
    assert records(caplog, gpu(vendor, arch)) == []
    rows = [lookup(gpu(vendor, arch), pattern, 1) for pattern in PATTERNS]
    assert set(rows) <= set(TABLES[vendor, arch])


FAMILY = [
    ("cuda", "sm101", "sm100"),
    ("cuda", "sm121", "sm120"),
    ("hip", "gfx940", "gfx942"),
    ("hip", "gfx941", "gfx942"),
]
UNKNOWN = [("cuda", a) for a in ("sm75", "sm89", "sm110", "sm900")]
UNKNOWN += [("hip", a) for a in ("gfx90a", "gfx1100", "gfx1250")]


def same(a: Platform, b: Platform) -> bool:
    """Whether two platforms are served alike."""
    return all(lookup(a, k, n) == lookup(b, k, n) for k in PATTERNS for n in (1, 17, 400, MAX_BATCH))


@pytest.mark.parametrize(("vendor", "arch", "family"), FAMILY)
def test_family(vendor: str, arch: str, family: str, caplog: pytest.LogCaptureFixture) -> None:
    (record,) = records(caplog, gpu(vendor, arch))
    assert (record.name, record.levelname) == ("xkv", "INFO")
    assert f"no tuning rows for {arch}: using those of {family}" in record.getMessage()
    assert same(gpu(vendor, arch), gpu(vendor, family))


@pytest.mark.parametrize(("vendor", "arch"), UNKNOWN)
def test_vendor_default(vendor: str, arch: str, caplog: pytest.LogCaptureFixture) -> None:
    default = {"cuda": cuda, "hip": rocm}[vendor].DEFAULT_ARCH
    (record,) = records(caplog, gpu(vendor, arch))
    assert (record.name, record.levelname) == ("xkv", "WARNING")
    assert f"does not know {arch}: using the tuning rows of {default}" in record.getMessage()
    assert same(gpu(vendor, arch), gpu(vendor, default))


def test_each_unknown_arch_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        for vendor, arch in UNKNOWN:
            records(caplog, gpu(vendor, arch))
    assert len(caplog.records) == len(UNKNOWN)


def test_cpu_under_an_override_keeps_the_interpreters_rows() -> None:
    assert same(Platform("cpu", "sm90", 1, 4), CPU)


@pytest.mark.parametrize(
    ("page_size", "source_page_size", "pattern"),
    [
        *((*sizes, "contiguous") for sizes in [(1, 1), (64, 64)]),
        *((*sizes, "expand") for sizes in [(1, 64), (16, 64), (1, 2)]),
        *((*sizes, "strided_near") for sizes in [(2, 1), (16, 1), (64, 16), (1024, 64)]),
        *((*sizes, "strided_far") for sizes in [(32, 1), (64, 1)]),
    ],
)
def test_access_pattern(page_size: int, source_page_size: int, pattern: str) -> None:
    """How far apart the source entries are that neighbouring items read."""
    assert tuning.access_pattern(page_size, source_page_size) == pattern
    stream = tuning.access_pattern(page_size, source_page_size, ragged=True)
    assert stream == ("ragged" if pattern == "contiguous" else pattern)


# Shapes for which nothing is allocated, up to what an engine could ask for and beyond.

POWERS = st.integers(0, 10).map(lambda n: 1 << n)
GPUS = st.sampled_from(
    [
        gpu(vendor, arch, units)
        for vendor, arch in TABLES
        for units in ((20, 132, 148, 188) if vendor == "cuda" else (38, 256, 304))
    ]
)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


@st.composite
def builds(draw: st.DrawFn) -> Build:
    form = draw(st.sampled_from([TABLE, CSR, SLOTS]))
    batch = draw(st.integers(0, 40) | st.integers(0, MAX_BATCH))
    page_size = 1 if form == SLOTS else draw(POWERS)
    source_page_size = draw(POWERS)
    width = draw(st.integers(0, 5000) | st.integers(0, ROW_MAX // source_page_size))

    def view() -> View:
        room = draw(st.integers(0, 100) | st.integers(0, ROW_MAX) | st.just(INT32_MAX))
        return View(meta(batch, room) if form == TABLE else meta(room))

    indices = meta(batch)
    return Build(
        meta(3, width), indices, indices, form, page_size, source_page_size, page_size,
        tuple(view() for _ in range(draw(st.integers(1, 2)))),
        min_seq_len=draw(st.integers(0, 1)) if form != SLOTS else 0,
        pad_value=draw(st.sampled_from([None, 0])), status=draw(st.sampled_from([None, meta(1)])),
    )  # fmt: skip


def most_items(build: Build) -> int:
    """The longest row that the kernel can come to write, whatever the device data say."""
    room = max(view.capacity(build.form) for view in build.views)
    if build.form == SLOTS:  # a query may be longer than its row: it keeps its place
        return room
    if build.form == TABLE and build.pad_value is not None:
        return room
    tokens = max(min(build.req_to_token.shape[1] * build.source_page_size, ROW_MAX), build.min_seq_len)
    return min(room, -(-tokens // build.page_size))


@settings(max_examples=500)
@given(build=builds(), where=GPUS)
def test_grid(build: Build, where: Platform) -> None:
    row = lookup(where, build.access_pattern, build.batch)
    (x, y, z), num_page, own_tiles, balance, _, in_column = make_schedule(build, row, where)
    assert 1 <= x < 2**31
    assert 1 <= y < 65536
    assert z == len(build.views)
    # HIP counts work items, and keeps the count of one launch in 32 bits
    assert x * y * z * row.num_warps * where.warp_size < 2**32
    # every tile of a row is written, as an own tile or as a leftover one
    tiles = -(-most_items(build) // num_page)
    assert balance or tiles <= own_tiles
    if build.tiles_of_tokens:
        programs = max(min(tiles, where.compute_units * row.programs_per_cu), 1)
        assert (x - build.writes_sums, y) == (programs, 1)
        return
    # the grid grows with the batch alone, not with what a row has room for
    rows = max(build.batch, 1) + (build.writes_sums and not in_column)
    leftover = where.compute_units * row.leftover_per_cu if balance else 0
    assert x in (rows, rows + -(-leftover // y))
    assert x > rows or tiles <= own_tiles
    per_cu = row.balanced_per_cu if balance else row.programs_per_cu
    assert rows * (y - in_column) <= max(where.compute_units * per_cu, rows)


def test_the_sums_of_a_few_long_rows_have_a_column() -> None:
    """As a row of the grid they would have as many programs as the one row of the batch."""
    where, width = Platform("cuda", "sm90", 32, 132), 1 << 17
    views = tuple(View(meta(1, width), page_map=meta(1 << 20), cache_seqlens=meta(1)) for _ in "ab")
    build = Build(meta(1, width), meta(1), meta(1), TABLE, 1, 1, 1, views)
    row = lookup(where, build.access_pattern, 1)
    tiles = width // row.num_page_per_block
    assert make_schedule(build, row, where).grid == (1, tiles + 1, 2)
    assert make_schedule(build, dataclasses.replace(row, max_batch=None), where).grid == (2, tiles, 2)


def test_the_grid_of_a_group_has_programs_for_leftover_tiles_of_slots() -> None:
    """Ragged slots have tiles of rows: where a row's programs cannot write a long one, others must."""
    row = dataclasses.replace(
        cuda.TUNING["sm90"][0], balanced_own_tiles=1, balanced_per_cu=1, leftover_per_cu=1
    )
    where = Platform("cuda", "sm90", 32, 132)
    table = PartSchedule(row, 64, balance=False, int64_tiles=False, tiles=1)
    slots = table._replace(balance=True, tiles=100)
    (x, y, z), slot_rows = group_grid(8, [table], [slots], where)
    assert (y, z, slot_rows) == (1, 1, 9 + 132)
    assert x == 9 + slot_rows
    (x, _, _), slot_rows = group_grid(8, [table], [slots._replace(tiles=1)], where)
    assert (x, slot_rows) == (18, 9)
    of_tokens = dataclasses.replace(row, access_pattern="query_tokens")
    tokens = slots._replace(tuning=of_tokens, tiles=5)
    assert group_grid(8, [table], [tokens], where)[1] == 1 + 5


def test_parts_of_a_group_share_the_compute_units_where_rows_have_no_tiles_left_over() -> None:
    row = dataclasses.replace(cuda.TUNING["sm90"][0], balanced_own_tiles=8, balanced_per_cu=4)
    where = Platform("cuda", "sm90", 32, 132)
    short = PartSchedule(row, 64, balance=True, int64_tiles=False, tiles=8)
    assert group_grid(131, [short], [], where)[0] == (132, 4, 1)
    assert group_grid(131, [short] * 2, [], where)[0] == (132, 2, 2)
    long = short._replace(tiles=100)  # of which 16 would be own tiles, not 32
    (_, programs, _), _ = group_grid(131, [short, long], [], where)
    assert programs == 4


@pytest.mark.parametrize(
    ("topk", "window", "programs"), [(4, None, 12), (4, 4096, 4), (1, None, 4)], ids=["tree", "window", "one"]
)
def test_branches_have_more_programs(topk: int, window: int | None, programs: int) -> None:
    """Rows that are as long as the request and read the same entries as others; a window's are not long."""
    where = Platform("cuda", "sm90", 32, 132)
    build = csr(1, 64)
    build.draft, build.views[0].window = DraftTree(topk, 4, 1), window
    alone = lookup(where, build.access_pattern, 64 * topk)
    row = part_schedule(build, where, 64).tuning
    assert (alone.balanced_per_cu, row.balanced_per_cu) == (4, programs)
