"""The public ops as users call them: results against plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from building import guarded_1d
from op_arguments import (
    BATCH,
    I32,
    I64,
    LENS,
    ROWS,
    STARTS,
    TOKENS,
    assert_csr,
    assert_holds,
    fresh_csr,
    fresh_table,
    ids,
    last_lens,
    page,
    pages,
    sizes,
    source_tensor,
)

import xkv
from xkv import KVIndices, Reason, Status


@sizes
def test_new_page_table(P: int, S: int, device: str) -> None:
    source = ids(S)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=P, source_page_size=S,
    )  # fmt: skip
    width = TOKENS // P
    assert got.dtype is I32
    assert got.tolist() == [row + [0] * (width - len(row)) for row in pages(source, P, S)]


@sizes
def test_page_table_into_a_view(P: int, S: int, device: str) -> None:
    source = ids(S)
    out = fresh_table(BATCH + 2, TOKENS // P + 3, I32, device)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=P, source_page_size=S, out=out, max_seq_len=TOKENS,
    )  # fmt: skip
    assert got is out
    assert_holds(out, pages(source, P, S))


@sizes
def test_new_kv_indices(P: int, S: int, device: str) -> None:
    source = ids(S)
    table = pages(source, P, S)
    got = xkv.build_kv_indices(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=P, source_page_size=S,
    )  # fmt: skip
    assert isinstance(got, KVIndices)
    assert {x.dtype for x in got} == {I32}
    assert got.kv_indptr.tolist() == [0, *itertools.accumulate(map(len, table))]
    assert got.kv_indices.tolist() == [*itertools.chain(*table)]
    assert got.kv_last_page_len.tolist() == last_lens(table, P)


@sizes
def test_kv_indices_into_buffers(P: int, S: int, device: str) -> None:
    source = ids(S)
    out = fresh_csr(sum(LENS) // P + BATCH + 9, I32, device)
    got = xkv.build_kv_indices(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=P, source_page_size=S, out=out, max_tokens=sum(LENS),
    )  # fmt: skip
    assert got is out
    assert_csr(out, pages(source, P, S), P)


@pytest.mark.parametrize("S", [1, 16])
@pytest.mark.parametrize("max_tokens", [None, 64])
def test_slot_mapping(S: int, max_tokens: int | None, device: str) -> None:
    source = ids(S)
    queries = [0, 1, 1, 5, 33, 0]
    slots = [
        page(source[r][t // S], t, 1, S)
        for r, n, q in zip(ROWS, LENS, queries, strict=True)
        for t in range(n - q, n)
    ]
    arguments = (
        source_tensor(source, I32, device), torch.tensor(ROWS, device=device),
        torch.tensor(LENS, device=device), torch.tensor(queries, device=device),
    )  # fmt: skip
    new = xkv.build_slot_mapping(*arguments, source_page_size=S, max_tokens=max_tokens)
    assert new.dtype is I64
    assert new.shape == (len(slots) if max_tokens is None else max_tokens,)
    assert new[: len(slots)].tolist() == slots
    out = guarded_1d(70, I64, device)
    got = xkv.build_slot_mapping(
        *arguments, source_page_size=S, max_tokens=max_tokens, out=out
    )  # fmt: skip
    assert got is out
    assert_holds(out, slots)


# Every mix of any four of the five: the fifth follows from an even number of int64.
DTYPES = [d for d in itertools.product((I32, I64), repeat=5) if d.count(I64) % 2 == 0]


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "".join("34"[x is I64] for x in d))
def test_dtypes(dtypes: tuple[torch.dtype, ...], device: str) -> None:
    """Of source, indices, lengths, the other per-row ints and out."""
    of_source, of_rows, of_lens, of_ints, of_out = dtypes
    source = ids(1)
    arguments = (
        source_tensor(source, of_source, device),
        torch.tensor(ROWS, dtype=of_rows, device=device),
        torch.tensor(LENS, dtype=of_lens, device=device),
    )
    starts = torch.tensor(STARTS, dtype=of_ints, device=device)
    table = pages(source, 16, 1, starts=STARTS)
    width = max(map(len, table))
    out = fresh_table(BATCH, width, of_out, device)
    assert_holds(xkv.build_page_table(*arguments, page_size=16, kv_start=starts, out=out), table)
    csr = fresh_csr(sum(map(len, table)), of_out, device)
    assert_csr(xkv.build_kv_indices(*arguments, page_size=16, kv_start=starts, out=csr), table, 16)
    queries = torch.tensor([0, 1, 0, 2, 0, 3], dtype=of_ints, device=device)
    slots = xkv.build_slot_mapping(*arguments, queries, dtype=of_out)
    assert slots.dtype is of_out
    assert slots.tolist() == [source[0][0], *source[2][62:64], *source[4][67:70]]


@pytest.mark.parametrize("P", [1, 16])
@pytest.mark.parametrize("starts", [None, STARTS], ids=["", "kv_start"])
@pytest.mark.parametrize("delta", [3, -1, "tensor"])
def test_start_and_delta(P: int, starts: list[int] | None, delta: int | str, device: str) -> None:
    source = ids(1)
    lens = [10, 1, 17, 64, TOKENS - 3, 71]
    more = [0, 1, 60, -1, 3, 2] if delta == "tensor" else [delta] * BATCH
    ends = [a + b for a, b in zip(lens, more, strict=True)]
    table = pages(source, P, 1, starts=starts, lens=ends)
    kwargs = {
        "page_size": P,
        "seq_lens_delta": torch.tensor(more, device=device) if delta == "tensor" else delta,
        "kv_start": None if starts is None else torch.tensor(starts, device=device),
    }
    arguments = (
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(lens, device=device),
    )  # fmt: skip
    out = fresh_table(BATCH, max(map(len, table)), I32, device)
    assert_holds(xkv.build_page_table(*arguments, out=out, **kwargs), table)
    csr = fresh_csr(sum(map(len, table)), I32, device)
    assert_csr(xkv.build_kv_indices(*arguments, out=csr, **kwargs), table, P, ends)
    new = xkv.build_kv_indices(*arguments, **kwargs)
    assert new.kv_indices.tolist() == [*itertools.chain(*table)]
    width = -(-max(ends) // P)
    assert xkv.build_page_table(*arguments, **kwargs).tolist() == [
        row + [0] * (width - len(row)) for row in table
    ]


def test_delta_moves_the_query_tokens(device: str) -> None:
    source = ids(1)
    got = xkv.build_slot_mapping(
        source_tensor(source, I32, device),
        torch.tensor([3, 1], device=device), torch.tensor([4, 9], device=device),
        torch.tensor([2, 1], device=device), seq_lens_delta=torch.tensor([2, -1], device=device),
    )  # fmt: skip
    assert got.tolist() == [source[3][4], source[3][5], source[1][7]]


def test_max_seq_len_bounds_a_new_table(device: str) -> None:
    source, status = ids(1), Status(device)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=16, max_seq_len=97, status=status,
    )  # fmt: skip
    assert got.tolist() == [(row + [0] * 7)[:7] for row in pages(source, 16, 1)]
    assert status.read() == (4, Reason.BAD_LENGTH)  # 128 tokens


@pytest.mark.parametrize("again", [False, True], ids=["first call", "a call like an earlier one"])
def test_max_seq_len_bounds_a_given_table(again: bool, device: str) -> None:
    """Whatever the table has room for. A later call with another bound, or none, is not held to this one."""
    source, status = ids(1), Status(device)
    arguments = (
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
    )  # fmt: skip
    table = pages(source, 16, 1)
    bounds = [None, 64, 128, 97] if again else [97]
    for bound in bounds:
        out = fresh_table(BATCH, 10, I32, device)
        xkv.build_page_table(*arguments, page_size=16, max_seq_len=bound, out=out, status=status)
        most = TOKENS if bound is None else bound
        assert_holds(out, [row[: -(-most // 16)] for row in table])
        assert status.read() == (None if most >= max(LENS) else (4, Reason.BAD_LENGTH))
        status.clear()


@pytest.mark.parametrize(("tile", "width"), [(None, 1), (1, 1), (4, 4)])
def test_a_new_table_has_a_column(tile: int | None, width: int, device: str) -> None:
    """Also for lengths that are all 0: a reader takes no table of width 0."""
    none = torch.zeros(3, dtype=I64, device=device)
    fill = {} if tile is None else {"pad_value": 7, "pad_to_multiple_of": tile}
    for bound in ({}, {"max_seq_len": 0}):
        got = xkv.build_page_table(
            source_tensor(ids(1), I32, device), none, none, page_size=16, **fill, **bound
        )
        assert got.tolist() == [[0 if tile is None else 7] * width] * 3


def test_a_new_table_has_whole_tiles(device: str) -> None:
    source = ids(1)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=16, pad_value=-9, pad_to_multiple_of=3,
    )  # fmt: skip
    filled = [max(-(-len(row) // 3) * 3, 3) for row in pages(source, 16, 1)]
    assert got.shape == (BATCH, 9)
    for row, want, end in zip(got.tolist(), pages(source, 16, 1), filled, strict=True):
        assert row[:end] == want + [-9] * (end - len(want))


def test_out_must_hold_max_seq_len_exactly(device: str) -> None:
    source = ids(1)
    out = fresh_table(1, 2, I32, device)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor([1], device=device), torch.tensor([32], device=device),
        page_size=16, max_seq_len=32, out=out,
    )  # fmt: skip
    assert_holds(got, [[source[1][0] // 16, source[1][16] // 16]])


@pytest.mark.parametrize("P", [1, 4, 16])
def test_max_tokens_is_room_enough(P: int, device: str) -> None:
    """However the rows' first and last tokens lie in their pages, the promised sum fits."""
    source = ids(1)
    starts = [P - 1, 2 * P - 1, 0, P // 2, 3, P - 1]
    lens = [P + 1, 2 * P + 1, 2, P // 2 + 1, 3, 2 * P]
    total = sum(n - s for n, s in zip(lens, starts, strict=True))
    table = pages(source, P, 1, starts=starts, lens=lens)
    status = Status(device)
    got = xkv.build_kv_indices(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(lens, device=device),
        kv_start=torch.tensor(starts, device=device),
        page_size=P, max_tokens=total, status=status,
    )  # fmt: skip
    status.check()
    live = [*itertools.chain(*table)]
    assert got.kv_indptr.tolist() == [0, *itertools.accumulate(map(len, table))]
    assert got.kv_indices[: len(live)].tolist() == live


def test_short_stream_is_cut_everywhere(device: str) -> None:
    source, status = ids(1), Status(device)
    out = fresh_csr(20, I32, device)
    xkv.build_kv_indices(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        out=out, status=status,
    )  # fmt: skip
    assert_holds(out.kv_indptr, [0, 0, 1, 18, 20, 20, 20])
    assert_holds(out.kv_indices, [*itertools.chain(*pages(source, 1, 1))][:20])
    assert_holds(out.kv_last_page_len, [0, 1, 1, 1, 0, 0])
    assert status.read() == (3, Reason.TRUNCATED)


@pytest.mark.parametrize("allocate", [True, False], ids=["new", "out"])
def test_empty_batch(allocate: bool, device: str) -> None:
    none = torch.empty(0, dtype=I64, device=device)
    arguments = (source_tensor(ids(1), I32, device), none, none)
    status = Status(device)
    table = None if allocate else fresh_table(2, 4, I32, device)
    got = xkv.build_page_table(*arguments, page_size=16, out=table, pad_value=0, status=status)
    assert got.shape == ((0, 1) if allocate else (2, 4))
    assert xkv.build_page_table(*arguments, page_size=16, max_seq_len=40).shape == (0, 3)
    csr = xkv.build_kv_indices(
        *arguments, out=None if allocate else fresh_csr(3, I32, device, 0), status=status
    )
    slots = xkv.build_slot_mapping(
        *arguments, none, out=None if allocate else guarded_1d(3, I64, device), status=status
    )
    if allocate:
        assert [x.tolist() for x in csr] == [[0], [], []]
        assert slots.shape == (0,)
    else:
        assert_holds(table, [])
        assert_holds(csr.kv_indptr, [0])
        assert_holds(csr.kv_indices, [])
        assert_holds(csr.kv_last_page_len, [])
        assert_holds(slots, [])
    assert status.read() is None


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)])
def test_empty_source(shape: tuple[int, int], device: str) -> None:
    """Nothing can be looked up in it: rows without tokens are served, others are cut."""
    arguments = (
        torch.empty(shape, dtype=I32, device=device),
        torch.zeros(2, dtype=I64, device=device), torch.tensor([0, 3], device=device),
    )  # fmt: skip
    status = Status(device)
    out = fresh_table(2, 2, I32, device)
    assert_holds(xkv.build_page_table(*arguments, page_size=2, out=out, status=status), [])
    reason = Reason.BAD_ROW if shape[0] == 0 else Reason.BAD_LENGTH
    assert status.read() == (1, reason)
    csr = xkv.build_kv_indices(*arguments, page_size=2, out=fresh_csr(4, I32, device, 2))
    assert_holds(csr.kv_indptr, [0, 0, 0])
    assert_holds(csr.kv_indices, [])


def test_buffers_without_room(device: str) -> None:
    arguments = (
        source_tensor(ids(1), I32, device),
        torch.zeros(2, dtype=I64, device=device), torch.tensor([0, 3], device=device),
    )  # fmt: skip
    status = Status(device)
    xkv.build_page_table(*arguments, page_size=2, out=fresh_table(2, 0, I32, device), status=status)
    assert status.read() == (1, Reason.TRUNCATED)
    status.clear()
    csr = xkv.build_kv_indices(*arguments, out=fresh_csr(0, I32, device, 2), status=status)
    assert_holds(csr.kv_indptr, [0, 0, 0])
    assert status.read() == (1, Reason.TRUNCATED)
