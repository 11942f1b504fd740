"""The interpreter's memory checker finds what is planted, and shows that no needless entry is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from cases import CASES, make
from conftest import INTERPRETED
from test_kernel import ROWS, check
from triton.runtime import interpreter

import xkv
from xkv.cli.check import memory
from xkv.kernel import entry, extension
from xkv.launch import launch
from xkv.params import CSR, TABLE, Build, View

pytestmark = pytest.mark.interpret

if INTERPRETED:
    import shadow


def csr() -> Build:
    return make(CASES["skewed"], CSR, 1, 1, torch.int32, "cpu")


def test_what_is_right_passes() -> None:
    check(csr(), ROWS[0], "cpu")


def test_an_entry_too_many_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gap behind a row is the source's storage, and none of its entries."""
    honest: Callable[[Build], int] = Build.source_tokens.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Build, "source_tokens", property(lambda build: honest(build) + 1))
    build = csr()
    build.seq_lens = torch.full_like(build.seq_lens, honest(build) + 1)
    with pytest.raises(Exception, match=r"program \(\d+, \d+, \d+\): read byte \d+ of src_ptr "):
        launch.launch(build, ROWS[0], xkv.platform("cpu"))


def test_an_entry_too_many_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = View.capacity
    monkeypatch.setattr(View, "capacity", lambda view, form: honest(view, form) + 1)
    build = csr()
    build.views[0].out = build.views[0].out[: int(build.seq_lens.clamp(min=0).sum()) // 2]
    with pytest.raises(Exception, match=r"write byte \d+ of out_ptr "):
        launch.launch(build, ROWS[0], xkv.platform("cpu"))


def test_an_input_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = entry.load_entries

    def load_entries(idx: Any, row: Any, req: Any, *rest: Any) -> Any:
        tl.store(req.lens_ptr, 0)
        return plain(idx, row, req, *rest)

    monkeypatch.setattr(entry, "load_entries", load_entries)
    with pytest.raises(Exception, match=r"write byte \d+ of lens_ptr "):
        launch.launch(csr(), ROWS[0], xkv.platform("cpu"))


def test_two_programs_write_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them write all that is shared out: the same words, so that no comparison sees it."""
    monkeypatch.setattr(entry, "split_evenly", lambda pid, programs, tiles: (tiles * 0, tiles))
    with pytest.raises(AssertionError, match="written twice in one launch"):
        check(csr(), ROWS[0], "cpu")


def test_what_is_written_is_read() -> None:
    build = make(CASES["odd lengths"], TABLE, 1, 1, torch.int32, "cpu")
    build.views[0].out = build.req_to_token[: build.batch]
    with pytest.raises(AssertionError, match="read and written in one launch"):
        launch.launch(build, ROWS[0], xkv.platform("cpu"))


def test_two_programs_share_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are read and replaced in one launch, by one program each: not also by its neighbour."""
    source = torch.arange(640, dtype=torch.int32).view(10, 64)
    builder = xkv.MetadataBuilder(
        "flash_attention", source, max_batch_size=10, max_context_len=64, page_size=4
    )
    inputs = torch.arange(10), torch.full((10,), 30)
    builder.build(*inputs)
    builder.extend(*inputs)
    plain = extension._load_record

    def load_record(b: Any, mask: Any, view: Any) -> Any:
        return plain(tl.maximum(b - 1, 0), mask, view)

    monkeypatch.setattr(extension, "_load_record", load_record)
    with pytest.raises(AssertionError, match=r"read and written in one launch: byte .* of record_ptr"):
        builder.extend(*inputs)


def test_a_hint_that_does_not_hold() -> None:
    handle = interpreter.TensorHandle(np.array([32, 40], dtype=np.uint64), tl.int64)
    handle.set_attr("tt.divisibility", [8])
    with pytest.raises(AssertionError, match="is no multiple of 16"):
        handle.set_attr("tt.divisibility", [16])


@pytest.mark.parametrize(
    ("shape", "stride", "inside", "outside"),
    [
        ((4, 3), (0, 1), [0, 8], [-4, 9, 12]), ((4, 3), (2, 1), [0, 32], [-4, 36]),
        ((4, 1), (0, 1), [0], [-4, 4]), ((4, 3), (5, 1), [0, 20, 68], [12, 16, 72]),
        ((4, 0), (0, 1), [], [0]), ((0, 3), (0, 1), [], [0]),
        ((3,), (1,), [0, 8], [-4, 12]), ((1,), (0,), [0], [4]),
    ],
)  # fmt: skip
def test_where_a_tensor_lies(
    shape: tuple[int, ...], stride: tuple[int, ...], inside: list[int], outside: list[int]
) -> None:
    """Bytes at which an entry begins, and others; rows may lie over each other, as of an expanded tensor."""
    x = torch.zeros(30, dtype=torch.int32).as_strided(shape, stride)
    found = shadow.region("out", x)
    at = found.begin + np.array([*inside, *outside], dtype=np.int64)
    assert found.holds(at, 4).tolist() == [True] * len(inside) + [False] * len(outside)


def test_an_expanded_source_and_what_lies_behind_it() -> None:
    build = csr()
    build.req_to_token = build.req_to_token[:1].expand(build.req_to_token.shape)
    launch.launch(build, ROWS[0], xkv.platform("cpu"))
    place = shadow.region("src_ptr", build.req_to_token)
    assert (place.rows, place.width) == (1, build.req_to_token.shape[1] * 4)


def given_sums(begins: list[int], lens: list[int]) -> Build:
    """A stream whose rows begin where an engine says."""
    source, rows = torch.arange(800, dtype=torch.int32).view(2, 400), torch.arange(len(lens)) % 2
    view = View(memory.guarded_1d(700, torch.int32, "cpu"), kv_indptr=torch.tensor(begins))
    return Build(
        source, rows, torch.tensor(lens), CSR, 1, 1, 1, (view,), report_missing=False, indptr_is_input=True
    )


def test_rows_that_claim_one_word() -> None:
    """All of them may write it; it then has the value of one of them."""
    build = given_sums([3, 1], [4, 5])
    launch.launch(build, ROWS[0], xkv.platform("cpu"))
    found = build.views[0].out.tolist()
    assert (found[1:3], found[6:8]) == ([400, 401], [3, memory.SENTINEL])
    assert all(found[at] in (at - 3, 399 + at) for at in (3, 4, 5))


def test_words_that_one_row_claims_may_not_be_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "split_evenly", lambda pid, programs, tiles: (tiles * 0, tiles))
    with pytest.raises(AssertionError, match="written twice in one launch"):
        launch.launch(given_sums([0, 290], [300, 400]), ROWS[0], xkv.platform("cpu"))


# What is read of the source


@pytest.mark.parametrize("row", ROWS, ids=["16", "8"])
@pytest.mark.parametrize(
    ("op", "page_size", "unit"),
    [
        ("build_page_table", 64, 1), ("build_page_table", 16, 64), ("build_page_table", 1, 1),
        ("build_kv_indices", 1, 1), ("build_kv_indices", 64, 16), ("build_slot_mapping", 1, 16),
    ],
)  # fmt: skip
def test_needed_entries_alone_are_read(
    op: str, page_size: int, unit: int, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them, and none beside: not the stale tail of a row, nor a page's other tokens."""
    monkeypatch.setattr(launch, "tuned", lambda build, where: row)
    rows, width = 5, 1 + 700 // unit
    source = memory.guarded(rows, width, width + 3, torch.int32, "cpu").copy_(
        torch.arange(rows * width).view(rows, width) * page_size
    )
    index = torch.tensor([0, 3, 3, 1, 99, 0])
    lens = torch.tensor([0, width * unit, 7, 333, 40, -1])
    options: dict[str, Any] = {"page_size": page_size} if op != "build_slot_mapping" else {}
    first = torch.zeros_like(lens)
    if op == "build_slot_mapping":
        options["query_lens"] = torch.tensor([0, 400, 9, 1, 5, 2])
        first = (lens - options["query_lens"]).clamp(min=0)
    with shadow.recorded() as read:
        getattr(xkv, op)(source, index, lens, source_page_size=unit, **options)
    entries = {(int(x) - source.data_ptr()) // source.itemsize for part in read for x in part}
    needed = {
        int(r) * (width + 3) + t // unit
        for r, begin, end in zip(index, first, lens, strict=True) if r < rows
        for t in range(int(begin), int(end), page_size)
    }  # fmt: skip
    assert len(needed) > 10
    assert {x for x in entries if 0 <= x < rows * (width + 3)} == needed
