"""The kernel at the edges of its integers and of its buffers, against the oracle; each case has its fault."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import building
import pytest
import torch
from cases import CASES, make
from test_kernel import NAMES, ROWS, check

import xkv
from xkv import Reason, reference
from xkv.cli.check.memory import SENTINEL, guarded, guarded_1d
from xkv.launch import grid, launch
from xkv.params import CSR, SLOTS, TABLE, Build, View
from xkv.platforms.detect import Platform

pytestmark = pytest.mark.kernel
FORMS = (TABLE, CSR, SLOTS)
every_form = pytest.mark.parametrize("form", FORMS, ids=NAMES.get)
# int64 values whose low half looks like a small, good one, and the ends of either width
WIDE = [2**32 + 1, 2**31 + 1, -(2**32) + 1, 2**33, -(2**63), 2**63 - 1, 2**31 - 1, -(2**31), 3]


def plain(form: int, device: str, lens: list[int], rows: list[int], room: int) -> Build:
    """A build of int64 rows and lengths on a source of 3 rows of 40 tokens, with all outputs."""
    source = guarded(3, 40, 43, torch.int32, device)
    source.copy_(torch.arange(120).view(3, 40))
    ints = lambda values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
    page_size = 1 if form == SLOTS else 4
    build = Build(source, ints(rows), ints(lens), form, page_size, 1, page_size, ())
    if form == SLOTS:
        build.query_lens = ints([2] * len(lens))
    build.status = guarded_1d(1, torch.int64, device).fill_(2**63 - 1)
    batch, ints32 = len(lens), lambda n: guarded_1d(n, torch.int32, device)
    if form == TABLE:
        view = View(guarded(batch, room, room + 2, torch.int32, device), cu_seqlens_k=ints32(batch + 1))
    else:
        view = View(guarded_1d(room, torch.int32, device), kv_indptr=ints32(batch + 1))
    if form != SLOTS:
        view.cache_seqlens, view.kv_last_page_len = ints32(batch), ints32(batch)
    build.views = (view,)
    return build


@every_form
@pytest.mark.parametrize("what", ["rows", "lens", "deltas", "query", "start"])
def test_int64_beyond_31_bits(what: str, form: int, device: str) -> None:
    """Nothing is taken for its low half, and no sum wraps."""
    few = [9, 7, 11] * 3
    rows, lens = WIDE if what == "rows" else [1, 2, 0] * 3, WIDE if what == "lens" else few
    build = plain(form, device, lens, rows, 40)
    other = torch.tensor(WIDE, device=device)
    if what == "deltas":
        build.seq_lens_delta, build.seq_lens_delta_rows = 2**28 - 1, other
    elif what == "query":
        build.query_lens, build.query_sign = other, 1
    elif what == "start":
        build.views[0].kv_start = other
    elif what == "lens":
        build.seq_lens_delta = 5
    check(build, ROWS[0], device)


@every_form
@pytest.mark.parametrize("row", [3, -1])
def test_first_row_past_either_end(row: int, form: int, device: str) -> None:
    check(plain(form, device, [9, 7, 11], [1, row, 0], 40), ROWS[0], device)


@every_form
def test_no_row_indices(form: int, device: str) -> None:
    """Row b is request b's; what is behind the source's rows is not there, and reported."""
    given, without = (plain(form, device, [9, 7, 11, 5], [0, 1, 2, 3], 40) for _ in range(2))
    without.req_pool_indices = None
    for build in (given, without):
        check(build, ROWS[0], device)
    building.assert_same(without, given)
    assert without.status is not None
    assert without.status.item() == 3 * 256 + Reason.BAD_ROW


@pytest.mark.parametrize("out", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("where", ["source", "source, mapped", "token_map", "page_map"])
def test_huge_ids(where: str, out: torch.dtype, device: str) -> None:
    """Ids that would wrap where they are turned into tokens, or that the output cannot hold."""
    ids = [2**47, 2**47 - 1, 2**62, 2**63 - 1, 2**31, 2**31 - 1, 2**40, 2**33 - 1, 5]
    huge = torch.tensor(ids, dtype=torch.int64, device=device)
    for page_size, source_page_size in ((1, 1), (4, 1), (4, 16)):
        build = plain(TABLE, device, [33, 9 * source_page_size], [1, 0], 40)
        build.page_size, build.source_page_size = page_size, source_page_size
        build.req_to_token = torch.arange(9, device=device).repeat(2, 5)
        if where.startswith("source"):
            build.req_to_token = huge.repeat(2, 5)
        build.views[0].out = guarded(2, 45, 47, out, device)
        if where == "source, mapped":
            build.views[0].token_map = torch.arange(200, device=device)
        if where == "token_map":
            build.views[0].token_map = huge.repeat(20)
        if where == "page_map":
            build.views[0].page_map = huge.repeat(20)
        check(build, ROWS[0], device)


@pytest.mark.parametrize("out", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=["of int32", "of int64"])
@every_form
def test_pages_in_larger_pages(form: int, ids: torch.dtype, out: torch.dtype, device: str) -> None:
    """The last source page of which all pages fit in the output, the first of which none does, and worse."""
    for pages, unit in ((1, 16), (4, 16), (1, 3), (4, 52), (1024, 65_536)):
        page_size = 1 if form == SLOTS else pages
        last = 2**31 // (unit // page_size) - 1
        source = [last, last + 1, 5, -1, 2**31 - 1, last - 1]
        if ids == torch.int64:
            source += [2**31, 2**32 + 5, 2**47 - 1, 2**47, 2**62 + 3, -(2**62), -(2**32) + 5]
        longest = unit * len(source) - 3 if form != SLOTS or unit < 100 else 400
        build = plain(form, device, [longest, 40, 1], [0, 1, 0], 400)
        build.page_size, build.source_page_size = page_size, unit
        build.req_to_token = torch.tensor(source, dtype=ids, device=device).repeat(2, 1)
        if form == SLOTS:
            build.query_lens = build.seq_lens
        view = build.views[0]
        view.out = guarded(3, 400, 401, out, device) if form == TABLE else guarded_1d(900, out, device)
        check(build, ROWS[0], device)


@pytest.mark.parametrize("report_missing", [True, False])
def test_id_just_past_a_map(report_missing: bool, device: str) -> None:
    """It is reported, also where missing ids are expected."""
    for size in (36, 37):  # the last page begins at token 36
        build = plain(CSR, device, [40], [0], 10)
        build.report_missing = report_missing
        build.views[0].token_map = guarded_1d(size, torch.int32, device).copy_(torch.arange(size))
        check(build, ROWS[0], device)


def test_stream_that_just_fits(device: str) -> None:
    """No violation; with one entry less there is one."""
    for room in (8, 7):
        build = plain(CSR, device, [9, 0, 17], [1, 0, 2], room)
        check(build, ROWS[0], device)
        assert (int(build.status) == 2**63 - 1) == (room == 8)


@pytest.mark.parametrize("tiles", [1, 9], ids=["balanced", "own tiles"])
def test_stream_beyond_31_bits(tiles: int, device: str) -> None:
    """Rows that would begin past 2**31 entries, in a stream with room for a few."""
    row = dataclasses.replace(ROWS[0], tiles_per_program=tiles)
    build = plain(CSR, device, [2**28 - 1024] * 10, [0] * 10, 20)
    build.req_to_token = torch.arange(2**18 - 1, dtype=torch.int32, device=device)[None]
    build.source_page_size, build.page_size = 1024, 1
    if device == "cpu":  # a GPU has programs enough
        assert grid.make_schedule(build, row, xkv.platform(device)).balance == (tiles == 1)
    check(build, row, device)


@pytest.mark.parametrize("form", [TABLE, CSR], ids=NAMES.get)
def test_tile_of_one_entry(form: int, device: str) -> None:
    """It is written in an empty row, or an empty stream, too."""
    for lens in ([0, 4, 0], [0, 0, 0]):
        build = plain(form, device, lens, [1, 0, 2], 6)
        build.pad_value, build.pad_to_multiple_of = -9, 1
        check(build, ROWS[0], device)


@pytest.mark.parametrize("form", [TABLE, CSR], ids=NAMES.get)
def test_long_rows_in_every_chunk_of_the_batch(form: int, device: str) -> None:
    """Help goes on from one chunk of rows to the next."""
    build = plain(form, device, [24] * 12, [0, 1, 2] * 4, 40 if form == TABLE else 300)
    build.page_size = 1
    check(build, ROWS[1], device)


@pytest.mark.parametrize("form", [TABLE, CSR], ids=NAMES.get)
def test_least_last_page_of_an_empty_row(form: int, device: str) -> None:
    build = plain(form, device, [0, 4, 5], [1, 0, 2], 6)
    build.min_last_page_len = 1
    check(build, ROWS[0], device)
    assert build.views[0].kv_last_page_len.tolist() == [1, 4, 1]


@pytest.mark.interpret
def test_least_violation_as_on_amd(device: str) -> None:
    """A program reports once: later tiles of later rows do not hide what it saw in the first."""
    build = plain(TABLE, device, [16, 300, 300], [0, 1, 2], 300)
    build.page_size = 1
    build.req_to_token = torch.arange(900, dtype=torch.int32, device=device).view(3, 300).clone()
    build.req_to_token[0, 5] = -1  # the first row's one tile
    build.req_to_token[1:, 21::16] = -1  # the same position of all tiles but the first
    want = building.twin(build)
    launch.launch(build, ROWS[0], Platform("hip", "gfx942", 64, 4))
    reference.run(want)
    building.assert_same(build, want)
    assert int(build.status) == Reason.BAD_ID


def test_second_view_narrower_than_the_first(device: str) -> None:
    build = make(CASES["two views"], TABLE, 4, 1, torch.int32, device)
    second = build.views[1]
    second.out = guarded(build.batch, 2, 3, torch.int32, device)
    build.pad_value = -9
    check(build, ROWS[0], device)


@pytest.mark.interpret
def test_strides_beyond_31_bits(tmp_path: Path, device: str) -> None:
    """Rows 2**31 entries and more from the first, of which a sparse file holds what is touched."""
    stride = 2**30 + 1
    made = []
    for name in ("source", "out"):
        size = 2 * stride + 64
        flat = torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=torch.int32)
        made.append(flat.as_strided((3, 40), (stride, 1)))
    source, out = made
    source.copy_(torch.arange(120).view(3, 40))
    out.fill_(SENTINEL)
    rows, lens = torch.tensor([0, 2, 2]), torch.tensor([5, 40, 11])
    build = Build(source, rows, lens, TABLE, 4, 1, 4, (View(out),))
    launch.launch(build, ROWS[0], xkv.platform(device))
    for b, (r, n) in enumerate(zip(rows.tolist(), lens.tolist(), strict=True)):
        pages = -(-n // 4)
        assert out[b, :pages].tolist() == [(40 * r + 4 * j) // 4 for j in range(pages)]
        assert out[b, pages:].tolist() == [SENTINEL] * (40 - pages)
