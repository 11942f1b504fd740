"""The public ops as users call them: results against plain loops, and what is refused, in words."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from building import SENTINEL, guarded, guarded_1d, whole

import xkv
from xkv import KVIndices, Reason, Status

I32, I64 = torch.int32, torch.int64
TOKENS = 128  # in a row of the source
ROWS = [3, 0, 2, 2, 1, 4]
LENS = [0, 1, 17, 64, TOKENS, 70]
STARTS = [0, 0, 5, 63, 100, 70]
BATCH = len(LENS)
SIZES = [(1, 1), (16, 1), (64, 1), (16, 16), (64, 16), (16, 64), (1, 16)]  # page, source page
sizes = pytest.mark.parametrize(("P", "S"), SIZES)


def ids(S: int, *, rows: int = 5, tokens: int = TOKENS, missing: int = 0) -> list[list[int]]:
    """A source: any ids at all, some of them missing."""
    rng = random.Random(S)
    width = tokens // S
    flat = rng.sample(range(4 * rows * width), rows * width)
    for k in rng.sample(range(len(flat)), missing):
        flat[k] = -1 - k
    return [flat[r * width : (r + 1) * width] for r in range(rows)]


def source_tensor(source: list[list[int]], dtype: torch.dtype, device: str) -> torch.Tensor:
    """The source inside a wider buffer."""
    out = guarded(len(source), len(source[0]), len(source[0]) + 3, dtype, device)
    out.copy_(torch.tensor(source))
    return out


def page(
    entry: int, t: int, P: int, S: int,
    token_map: list[int] | None = None, page_map: list[int] | None = None, M: int = 1,
) -> int | None:  # fmt: skip
    """The page of token t, which a source entry holds; None where an id is missing."""
    if entry < 0:
        return None
    token = entry * S + t % S
    if token_map is not None:
        token = token_map[token] if token < len(token_map) else -1
    if token >= 0 and page_map is not None:
        target = page_map[token // M] if token // M < len(page_map) else -1
        token = target * M + token % M if target >= 0 else -1
    return token // P if token >= 0 else None


def pages(
    source: list[list[int]], P: int, S: int, *,
    starts: list[int] | None = None, lens: list[int] = LENS, missing_id: int = -1, **maps: Any,
) -> list[list[int]]:  # fmt: skip
    """What each request's pages are: from the one with its first token to the one with its last."""
    table = []
    for r, start, end in zip(ROWS, starts or [0] * BATCH, lens, strict=True):
        positions = range(start // P * P, end, P) if start < end else ()
        found = [page(source[r][t // S], t, P, S, **maps) for t in positions]
        table.append([missing_id if p is None else p for p in found])
    return table


def last_lens(table: list[list[int]], P: int, lens: list[int] = LENS) -> list[int]:
    return [(n - 1) % P + 1 if row else 0 for row, n in zip(table, lens, strict=True)]


def fresh_table(rows: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return guarded(rows, width, width + 5, dtype, device)


def fresh_csr(capacity: int, dtype: torch.dtype, device: str, batch: int = BATCH) -> KVIndices:
    """Buffers longer than they need be, inside guard words."""
    return KVIndices(
        guarded_1d(batch + 3, I32, device),
        guarded_1d(capacity, dtype, device),
        guarded_1d(batch + 2, I32, device),
    )


def assert_holds(x: torch.Tensor, wanted: list[int] | list[list[int]]) -> None:
    """x begins (each row of it begins) with what is wanted; its whole buffer is else untouched."""
    expected = torch.full_like(whole(x), SENTINEL)
    view = expected.as_strided(x.shape, x.stride(), x.storage_offset())
    for n, part in enumerate(wanted):
        if isinstance(part, list):
            view[n, : len(part)] = torch.tensor(part, dtype=x.dtype)
        else:
            view[n] = part
    assert whole(x).tolist() == expected.tolist()


def assert_csr(out: KVIndices, table: list[list[int]], P: int, lens: list[int] = LENS, tail: int = 0) -> None:
    """Guarded buffers hold rows, prefix sums and last page lengths, and nothing more."""
    assert_holds(out.kv_indptr, [0, *itertools.accumulate(map(len, table))])
    assert_holds(out.kv_indices, [*itertools.chain(*table), *[0] * tail])
    assert_holds(out.kv_last_page_len, last_lens(table, P, lens))


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
    assert status.read() == (4, Reason.CUT)  # 128 tokens, a page too many


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
    assert status.read() == (3, Reason.CUT)


@pytest.mark.parametrize("allocate", [True, False], ids=["new", "out"])
def test_empty_batch(allocate: bool, device: str) -> None:
    none = torch.empty(0, dtype=I64, device=device)
    arguments = (source_tensor(ids(1), I32, device), none, none)
    status = Status(device)
    table = None if allocate else fresh_table(2, 4, I32, device)
    got = xkv.build_page_table(*arguments, page_size=16, out=table, tail_fill=0, status=status)
    assert got.shape == ((0, 0) if allocate else (2, 4))
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
    assert status.read() == (1, Reason.CUT)
    status.clear()
    csr = xkv.build_kv_indices(*arguments, out=fresh_csr(0, I32, device, 2), status=status)
    assert_holds(csr.kv_indptr, [0, 0, 0])
    assert status.read() == (1, Reason.CUT)


MAPS = {
    "token_map": ({"token_map"}, None),
    "page_map": ({"page_map"}, None),
    "page_map of 4": ({"page_map"}, 4),
    "both": ({"token_map", "page_map"}, 4),
}


@pytest.mark.parametrize("missing_id", [None, 123456])
@pytest.mark.parametrize(("given", "M"), MAPS.values(), ids=MAPS)
@pytest.mark.parametrize(("P", "S"), [(16, 1), (1, 1), (4, 16)])
def test_maps(P: int, S: int, given: set[str], M: int | None, missing_id: int | None, device: str) -> None:
    """Maps and a source that lack ids: missing_id stands in, or -1 and a report."""
    source = ids(S, missing=20 // S)
    tokens = (max(map(max, source)) + 1) * S
    rng = random.Random(7)
    maps = {
        name: [rng.randrange(size) if rng.random() < 0.9 else -rng.randint(1, 9) for _ in range(size)]
        for name, size in (("token_map", tokens), ("page_map", tokens // (M or P) + 1))
        if name in given
    }
    stand_in = -1 if missing_id is None else missing_id
    table = pages(source, P, S, missing_id=stand_in, M=M or P, **maps)
    missing = pages(source, P, S, M=M or P, **maps)
    lost = [b for b, row in enumerate(missing) if -1 in row]
    assert lost, "a case without a missing id shows nothing"
    kwargs: dict[str, Any] = {k: torch.tensor(v, device=device) for k, v in maps.items()}
    kwargs |= {"page_size": P, "source_page_size": S, "map_page_size": M, "missing_id": missing_id}
    arguments = (
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
    )  # fmt: skip
    status = Status(device)
    out = fresh_table(BATCH, TOKENS // P, I32, device)
    assert_holds(xkv.build_page_table(*arguments, out=out, status=status, **kwargs), table)
    assert status.read() == (None if missing_id is not None else (lost[0], Reason.BAD_ID))
    csr = fresh_csr(sum(map(len, table)), I32, device)
    assert_csr(xkv.build_kv_indices(*arguments, out=csr, **kwargs), table, P)


def test_slots_through_maps(device: str) -> None:
    source = [[5, 3, -1, 0]]
    token_map = torch.tensor([2, 9, 9, -1, 9, 1], device=device)
    page_map = torch.tensor([3, 2], device=device)
    got = xkv.build_slot_mapping(
        torch.tensor(source, device=device), torch.tensor([0], device=device),
        torch.tensor([4], device=device), torch.tensor([4], device=device),
        token_map=token_map, page_map=page_map, map_page_size=2, missing_id=-7,
    )  # fmt: skip
    # 5 -> 1 -> page 0 at 1 -> page 3: 7; 3 -> none; no id; 0 -> 2 -> page 1 at 0 -> page 2: 4
    assert got.tolist() == [7, -7, -7, 4]


def test_id_beyond_a_map_is_reported_even_where_missing_ids_are_expected(device: str) -> None:
    status = Status(device)
    got = xkv.build_page_table(
        torch.tensor([[0, 1], [2, 3]], device=device), torch.tensor([0, 1], device=device),
        torch.tensor([2, 2], device=device),
        page_size=1, token_map=torch.tensor([5, 6, 7], device=device), missing_id=0, status=status,
    )  # fmt: skip
    assert got.tolist() == [[5, 6], [7, 0]]
    assert status.read() == (1, Reason.BAD_MAP)


TABLE_TAILS = [  # live: 0, 1, 2, 4, 8 and 5 pages, in a table of 10
    (None, [10] * 6),
    (1, [1, 1, 2, 4, 8, 5]),
    (4, [4, 4, 4, 4, 8, 8]),
    (6, [6, 6, 6, 6, 10, 6]),
    (64, [10] * 6),
]


@pytest.mark.parametrize(("tile", "filled"), TABLE_TAILS, ids=str)
def test_tail_of_a_table(tile: int | None, filled: list[int], device: str) -> None:
    source = ids(1)
    out = fresh_table(BATCH, 10, I32, device)
    xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=16, out=out, tail_fill=-9, tail_tile=tile,
    )  # fmt: skip
    table = pages(source, 16, 1)
    assert_holds(out, [row + [-9] * (n - len(row)) for row, n in zip(table, filled, strict=True)])


@pytest.mark.parametrize(("tile", "filled"), [(None, 300), (1, 280), (16, 288), (256, 300)])
def test_tail_of_a_stream(tile: int | None, filled: int, device: str) -> None:
    source = ids(1)
    arguments = (
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
    )  # fmt: skip
    out = fresh_csr(300, I32, device)
    xkv.build_kv_indices(*arguments, out=out, tail_fill=0, tail_tile=tile)
    table = pages(source, 1, 1)
    assert_csr(out, table, 1, tail=filled - sum(LENS))
    slots = guarded_1d(300, I64, device)
    queries = torch.tensor(LENS, device=device)
    xkv.build_slot_mapping(*arguments, queries, out=slots, tail_fill=0, tail_tile=tile)
    assert_holds(slots, [*itertools.chain(*table), *[0] * (filled - sum(LENS))])


def test_tail_fill_of_a_new_table(device: str) -> None:
    source = ids(1)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor(ROWS, device=device), torch.tensor(LENS, device=device),
        page_size=64, tail_fill=-1,
    )  # fmt: skip
    assert got.tolist() == [[*row, -1, -1][:2] for row in pages(source, 64, 1)]


# What only the device knows: (op, what differs, what is reported).
OFFENCES: list[tuple[str, dict[str, Any], tuple[int, Reason]]] = [
    ("build_page_table", {"req_pool_indices": [0, 5, -1]}, (1, Reason.BAD_ROW)),
    ("build_kv_indices", {"req_pool_indices": [0, -1, 5]}, (1, Reason.BAD_ROW)),
    ("build_slot_mapping", {"req_pool_indices": [0, 1, 5]}, (2, Reason.BAD_ROW)),
    ("build_page_table", {"seq_lens": [3, 4, -1]}, (2, Reason.BAD_LENGTH)),
    ("build_kv_indices", {"seq_lens": [TOKENS + 1, 4, -1]}, (0, Reason.BAD_LENGTH)),
    ("build_slot_mapping", {"seq_lens": [3, 2**62, 9]}, (1, Reason.BAD_LENGTH)),
    ("build_page_table", {"seq_lens_delta": -9}, (0, Reason.BAD_LENGTH)),
    ("build_page_table", {"kv_start": [0, 5, 0]}, (1, Reason.BAD_START)),
    ("build_kv_indices", {"kv_start": [0, 0, -1]}, (2, Reason.BAD_START)),
    ("build_slot_mapping", {"query_lens": [1, 5, 1]}, (1, Reason.BAD_QUERY)),
    ("build_slot_mapping", {"query_lens": [-1, 5, 1]}, (0, Reason.BAD_QUERY)),
    ("build_slot_mapping", {"max_tokens": 2}, (2, Reason.CUT)),
]


def to(value: Any, device: str) -> Any:
    return torch.tensor(value, device=device) if isinstance(value, list) else value


@pytest.mark.parametrize(("op", "change", "offence"), OFFENCES, ids=str)
def test_offence(op: str, change: dict[str, Any], offence: tuple[int, Reason], device: str) -> None:
    status = Status(device)
    arguments: dict[str, Any] = {
        "req_to_token": ids(1), "req_pool_indices": [0, 1, 2], "seq_lens": [3, 4, 5],
    }  # fmt: skip
    arguments |= {"page_size": 1} if op != "build_slot_mapping" else {"query_lens": [1, 1, 1]}
    wrong = {k: to(v, device) for k, v in (arguments | change).items()}
    getattr(xkv, op)(**wrong, status=status)
    assert status.read() == offence
    status.clear()
    getattr(xkv, op)(**{k: to(v, device) for k, v in arguments.items()}, status=status)
    assert status.read() is None


def test_row_index_of_an_empty_row_is_not_looked_at(device: str) -> None:
    status = Status(device)
    got = xkv.build_page_table(
        torch.tensor([[4, 8]], device=device), torch.tensor([0, 99, -5], device=device),
        torch.tensor([2, 0, 0], device=device), page_size=1, status=status,
    )  # fmt: skip
    assert got.tolist() == [[4, 8], [0, 0], [0, 0]]
    assert status.read() is None


def test_lengths_near_the_ends_of_int64_are_cut_not_wrapped(device: str) -> None:
    source, status = ids(1), Status(device)
    got = xkv.build_page_table(
        source_tensor(source, I32, device),
        torch.tensor([1, 2, 3], device=device),
        torch.tensor([2**63 - 1, -(2**63), 3], device=device),
        page_size=1, seq_lens_delta=torch.tensor([2**63 - 1, -(2**63), 1], device=device),
        status=status,
    )  # fmt: skip
    assert got.tolist() == [source[1], [0] * TOKENS, source[3][:4] + [0] * (TOKENS - 4)]
    assert status.read() == (0, Reason.BAD_LENGTH)


def test_id_that_the_output_cannot_hold(device: str) -> None:
    wide = torch.tensor([[2**31 - 1, 2**31, 2**40]], device=device)
    arguments = (wide, torch.tensor([0], device=device), torch.tensor([3], device=device))
    status = Status(device)
    got = xkv.build_page_table(*arguments, page_size=1, status=status)
    assert got.tolist() == [[2**31 - 1, -1, -1]]
    assert status.read() == (0, Reason.BAD_ID)
    status.clear()
    got = xkv.build_page_table(*arguments, page_size=1, dtype=I64, status=status)
    assert got.tolist() == wide.tolist()
    assert status.read() is None


def test_subclasses_and_expanded_sources_are_tensors_too(device: str) -> None:
    class Sub(torch.Tensor):
        pass

    row = torch.arange(10, 18, device=device).expand(3, 8)
    arguments = (
        row.as_subclass(Sub),
        torch.nn.Parameter(torch.tensor([2, 0], device=device), requires_grad=False),
        torch.tensor([8, 3], device=device).as_subclass(Sub),
    )
    got = xkv.build_page_table(*arguments, page_size=2)
    assert got.tolist() == [[5, 6, 7, 8], [5, 6, 0, 0]]


# What the host refuses. Every case: the op, what replaces good arguments (or a function of the
# good arguments that gives it), the error, what its message begins with, and what else it says.

TABLE, CSR, SLOTS = "build_page_table", "build_kv_indices", "build_slot_mapping"
ALL = (TABLE, CSR, SLOTS)
Change = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]


def good(op: str, device: str) -> dict[str, Any]:
    """Arguments of an op that all is well with."""
    made: dict[str, Any] = {
        "req_to_token": source_tensor(ids(1), I32, device),
        "req_pool_indices": torch.tensor([1, 2], device=device),
        "seq_lens": torch.tensor([20, 33], device=device),
        "status": Status(device),
    }
    if op == SLOTS:
        made["query_lens"] = torch.tensor([2, 3], device=device)
        made["out"] = guarded_1d(9, I64, device)
    else:
        made["page_size"] = 16
        made["out"] = fresh_table(2, 4, I32, device) if op == TABLE else fresh_csr(9, I32, device, 2)
    return made


REFUSED: list[Any] = []


def refuse(
    ops: tuple[str, ...], error: type[Exception], begins: str, *says: str, name: str = "",
    **change: Any,
) -> None:  # fmt: skip
    """Adds one case for every op; a function among the changes gets the good arguments."""
    for op in ops:
        values = "-".join(str(v)[:20] for v in change.values() if not callable(v))
        label = f"{op.removeprefix('build_')}-{'-'.join(change)}-{name or values}"
        REFUSED.append(pytest.param(op, change, error, begins, says, id=label))


def swap(name: str, how: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    return {name: lambda given: how(given[name])}


TENSORS = [(ALL, name) for name in ("req_to_token", "req_pool_indices", "seq_lens")]
TENSORS += [((SLOTS,), "query_lens"), ((TABLE, SLOTS), "out")]
for ops, name in TENSORS:
    # out=None and kv_start=None are fine; [] has no dtype to be right by accident
    for label, how in {
        "a list": lambda x: x.tolist(),
        "numpy": lambda x: x.cpu().numpy(),
        "an int": lambda x: 3,
    }.items():
        refuse(ops, TypeError, f"{name} must be a torch.Tensor", "got ", name=label, **swap(name, how))
    for dtype in (torch.int16, torch.uint8, torch.bool, torch.float32, torch.complex64):
        refuse(
            ops, TypeError, f"{name} must be int32 or int64", f"got {dtype}", name=str(dtype),
            **swap(name, lambda x, dtype=dtype: x.to(dtype)),
        )  # fmt: skip
    refuse(
        ops, TypeError, f"{name} must be a dense tensor", "got torch.sparse_coo", name="sparse",
        **swap(name, lambda x: x.to_sparse()),
    )  # fmt: skip
    refuse(
        ops, TypeError, f"{name} must be a dense tensor", "got a nested tensor", name="nested",
        **swap(name, lambda x: torch.nested.nested_tensor([x[0].flatten()] * 2)),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have ", "dimension(s), got shape ()", name="0-d",
        **swap(name, lambda x: x.flatten()[0]),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have ", "dimension(s), got shape (1, ", name="one more",
        **swap(name, lambda x: x[None]),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have an inner stride of 1", "got strides", name="strided",
        **swap(name, lambda x: x.repeat_interleave(2, -1)[..., ::2]),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have an inner stride of 1", "got strides", name="expanded",
        **swap(name, lambda x: x[..., :1].expand(x.shape)),
    )  # fmt: skip
    if name != "req_to_token":
        refuse(
            ops, ValueError, f"{name} must be on ", "like req_to_token, got meta", name="meta",
            **swap(name, lambda x: x.to("meta")),
        )  # fmt: skip
refuse(
    ALL, TypeError, "req_to_token must be a dense tensor", "got torch.sparse_csr", name="csr",
    **swap("req_to_token", lambda x: x.to_sparse_csr()),
)  # fmt: skip
refuse(
    ALL, ValueError, "req_to_token must be on a GPU", "CPU, got meta", name="meta",
    **swap("req_to_token", lambda x: x.to("meta")),
)  # fmt: skip
refuse(
    ALL, ValueError, "req_to_token must be on a GPU", "CPU, got meta", name="all meta",
    req_to_token=lambda g: g["req_to_token"].to("meta"),
    req_pool_indices=lambda g: g["req_pool_indices"].to("meta"),
    seq_lens=lambda g: g["seq_lens"].to("meta"), out=None,
)  # fmt: skip
refuse(
    ALL, ValueError, "req_to_token's rows must hold at most 268435455 tokens", "got 268435456",
    req_to_token=lambda g: g["req_to_token"].new_empty(1, 2**18), source_page_size=1024,
    name="too wide",
)  # fmt: skip

# What there must be one of for every request, or may be None.
PER_ROW = [(ALL, name, {}) for name in ("req_pool_indices", "seq_lens_delta")]
PER_ROW += [((SLOTS,), "query_lens", {})]
PER_ROW += [((TABLE, CSR), "kv_start", more) for more in ({}, {"out": None})]
for ops, name, more in PER_ROW:
    for rows in (0, 1, 3):
        refuse(
            ops, ValueError, f"{name} must have one entry a request",
            "2 as in seq_lens", f"got {rows}", name=f"{rows} rows",
            **{name: lambda g, rows=rows: g["seq_lens"].new_zeros(rows)}, **more,
        )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have 1 dimension(s)", "got shape ()", name="0-d",
        **{name: lambda g: g["seq_lens"][0]}, **more,
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have 1 dimension(s)", "got shape (1, 2)", name="2-d",
        **{name: lambda g: g["seq_lens"][None]}, **more,
    )  # fmt: skip
    refuse(
        ops, TypeError, f"{name} must be int32 or int64", "got torch.float32", name="float",
        **{name: lambda g: g["seq_lens"].float()}, **more,
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must be on ", "like req_to_token, got meta", name="meta",
        **{name: lambda g: g["seq_lens"].to("meta")}, **more,
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have an inner stride of 1", "got strides (0,)",
        name="expanded", **{name: lambda g: g["seq_lens"][:1].expand(2)}, **more,
    )  # fmt: skip
for more in ({}, {"out": None}):
    for value in (0, [0, 0], np.zeros(2, np.int64)):
        refuse(
            (TABLE, CSR), TypeError, "kv_start must be a torch.Tensor",
            f"got {type(value).__name__}", kv_start=value, **more,
        )  # fmt: skip

for name in ("token_map", "page_map"):
    refuse(ALL, TypeError, f"{name} must be a torch.Tensor", "got list", **{name: [0, 1]})
    refuse(ALL, TypeError, f"{name} must be a torch.Tensor", "got dict", **{name: {}})
    refuse(
        ALL, TypeError, f"{name} must be int32 or int64", "got torch.int16", name="int16",
        **{name: lambda g: g["seq_lens"].short()},
    )  # fmt: skip
    refuse(
        ALL, ValueError, f"{name} must have 1 dimension(s)", "got shape (1, 2)", name="2-d",
        **{name: lambda g: g["seq_lens"][None]},
    )  # fmt: skip
    refuse(
        ALL, ValueError, f"{name} must be on ", "got meta", name="meta",
        **{name: lambda g: g["seq_lens"].to("meta")},
    )  # fmt: skip

for ops, name in (((TABLE, CSR), "page_size"), (ALL, "source_page_size"), (ALL, "map_page_size")):
    for value in (0, -16, 3, 48, 2048, 2**40):
        refuse(
            ops, ValueError, f"{name} must be a power of two from 1 to 1024", f"got {value}",
            **{name: value},
        )  # fmt: skip
    for value in (True, 16.0, "16", np.int64(16), torch.tensor(16)):
        refuse(ops, TypeError, f"{name} must be an int", f"got {type(value).__name__}", **{name: value})
refuse((TABLE, CSR), TypeError, "page_size must be an int", "got NoneType", page_size=None)

# Plain integers: (ops, name, what else must be given, bounds).
INTEGERS: list[tuple[tuple[str, ...], str, dict[str, Any], int, int]] = [
    (ALL, "seq_lens_delta", {}, -(2**28) + 1, 2**28 - 1),
    (ALL, "missing_id", {}, -(2**31) + 1, 2**31 - 1),
    (ALL, "tail_fill", {}, -(2**31) + 1, 2**31 - 1),
    (ALL, "tail_tile", {"tail_fill": 0}, 1, 2**31 - 1),
    ((TABLE,), "max_seq_len", {}, 0, 2**28 - 1),
    ((CSR, SLOTS), "max_tokens", {}, 0, 2**31 - 1),
]
for ops, name, more, low, high in INTEGERS:
    for value in (low - 2, high + 1, 10**30):
        refuse(
            ops, ValueError, f"{name} must be from ", f" to {high}, got {value}",
            **{name: value}, **more,
        )  # fmt: skip
    for value in (True, 1.0, "1", np.int32(1)):
        refuse(
            ops, TypeError, f"{name} must be an int", f"got {type(value).__name__}",
            **{name: value}, **more,
        )  # fmt: skip
refuse(ALL, ValueError, "tail_tile=4 needs tail_fill", "got None", tail_tile=4)

for value in (0, "ok", object(), torch.zeros(1, dtype=I64)):
    refuse(ALL, TypeError, "status must be an xkv.Status", f"got {type(value).__name__}", status=value)


def status_with(word: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], Status]:
    def make(given: dict[str, Any]) -> Status:
        given["status"].word = word(given["status"].word)
        return given["status"]

    return make


for label, how in {
    "int32": lambda x: x.int(), "none": lambda x: x[:0], "two": lambda x: x.expand(2).clone()
}.items():  # fmt: skip
    refuse(
        ALL, ValueError, "status.word must be one int64", "got torch.int", name=label,
        status=status_with(how),
    )  # fmt: skip
refuse(
    ALL, ValueError, "status must be on ", "like req_to_token, got meta", name="meta",
    status=lambda g: Status("meta"),
)  # fmt: skip
for value in (torch.int16, torch.float32, torch.bool, "int32", None, int):
    refuse(
        ALL, TypeError, "dtype must be torch.int32 or torch.int64", f"got {value}",
        dtype=value, out=None,
    )  # fmt: skip

refuse(
    (TABLE,), ValueError, "out must have at least 2 rows", "got 1", name="a row short",
    **swap("out", lambda x: x[:1]),
)  # fmt: skip
refuse((TABLE,), ValueError, "out is too narrow", "4 pages of 16", "max_seq_len=65", max_seq_len=65)
refuse(
    (TABLE,), ValueError, "out's rows must not overlap", "got strides (0, 1)", name="one row",
    **swap("out", lambda x: x[:1].expand(2, 4)),
)  # fmt: skip
refuse(
    (TABLE,), ValueError, "out's rows must not overlap", "got strides (3, 1)", name="sheared",
    **swap("out", lambda x: x.as_strided((2, 4), (3, 1), x.storage_offset())),
)  # fmt: skip
refuse(
    (TABLE,), ValueError, "out must have at most 2147483647 entries a row", "got 2147483648",
    req_pool_indices=lambda g: g["seq_lens"][:0], seq_lens=lambda g: g["seq_lens"][:0],
    out=lambda g: g["out"].new_empty(0, 2**31), name="too wide",
)  # fmt: skip
refuse((SLOTS,), ValueError, "out must have at least 10 rows or entries", "got 9", max_tokens=10)
for value in ([], (1, 2, 3), 3):
    refuse((CSR,), TypeError, "out must be an xkv.KVIndices", f"got {type(value).__name__}", out=value)
refuse(
    (CSR,), TypeError, "out must be an xkv.KVIndices", "got tuple", name="plain",
    **swap("out", tuple),
)  # fmt: skip
refuse(
    (CSR,), TypeError, "out must be an xkv.KVIndices", "got Tensor", name="indices alone",
    **swap("out", lambda out: out.kv_indices),
)  # fmt: skip
refuse(
    (CSR,), ValueError, "out.kv_indices is too short", "9 entries of 16", "max_tokens=145",
    max_tokens=145,
)  # fmt: skip
for field in KVIndices._fields:
    part = f"out.{field}"

    def with_field(
        how: Callable[[torch.Tensor], Any], field: str = field
    ) -> dict[str, Callable[[dict[str, Any]], KVIndices]]:
        return {"out": lambda g: g["out"]._replace(**{field: how(getattr(g["out"], field))})}

    refuse(
        (CSR,), TypeError, f"{part} must be a torch.Tensor", "got NoneType", name=f"{field} None",
        **with_field(lambda x: None),
    )  # fmt: skip
    refuse(
        (CSR,), TypeError, f"{part} must be int32", "got torch.int16", name=f"{field} int16",
        **with_field(lambda x: x.short()),
    )  # fmt: skip
    refuse(
        (CSR,), ValueError, f"{part} must have 1 dimension(s)", "got shape (1, ",
        name=f"{field} 2-d", **with_field(lambda x: x[None]),
    )  # fmt: skip
    refuse(
        (CSR,), ValueError, f"{part} must have an inner stride of 1", "got strides (0,)",
        name=f"{field} expanded", **with_field(lambda x: x[:1].expand(9)),
    )  # fmt: skip
    refuse(
        (CSR,), ValueError, f"{part} must be on ", "got meta", name=f"{field} meta",
        **with_field(lambda x: x.to("meta")),
    )  # fmt: skip
    if field != "kv_indices":
        refuse(
            (CSR,), TypeError, f"{part} must be int32", "got torch.int64", name=f"{field} int64",
            **with_field(lambda x: x.long()),
        )  # fmt: skip
        refuse(
            (CSR,), ValueError, f"{part} must have at least ", "got 1", name=f"{field} short",
            **with_field(lambda x: x[:1]),
        )  # fmt: skip


def over(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A view shaped like ``like`` whose first element is x's last."""
    end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    buffer = whole(x).view(like.dtype)
    at = end * x.element_size() // like.element_size()
    return buffer.as_strided(like.shape, like.stride(), at)


SHARED = [(ALL, name) for name in ("req_to_token", "req_pool_indices", "seq_lens", "token_map")]
SHARED += [(ALL, "page_map"), (ALL, "seq_lens_delta"), ((TABLE, CSR), "kv_start")]
SHARED += [((SLOTS,), "query_lens"), (ALL, "status")]


@pytest.mark.parametrize(("op", "name"), [(op, name) for ops, name in SHARED for op in ops], ids=str)
def test_out_over_an_input(op: str, name: str, device: str) -> None:
    given = good(op, device)
    # int64: an output of either width can begin at its last entry
    if name == "req_to_token":
        target = given[name] = guarded(5, 8, 10, I64, device).fill_(1)
    elif name == "status":
        target = given[name].word = guarded_1d(1, I64, device).fill_(2**63 - 1)
    else:
        target = given[name] = guarded_1d(2, I64, device).fill_(1)
    if op == CSR:
        for field in KVIndices._fields:
            bad = over(target, getattr(given["out"], field))
            out = given["out"]._replace(**{field: bad})
            assert_refused(op, given | {"out": out}, ValueError, f"out.{field} must not share memory", ())
    else:
        out = over(target, given["out"])
        assert_refused(op, given | {"out": out}, ValueError, "out must not share memory", ())


@pytest.mark.parametrize(("a", "b"), [*itertools.permutations(KVIndices._fields, 2)])
def test_outputs_over_each_other(a: str, b: str, device: str) -> None:
    given = good(CSR, device)
    out = given["out"]
    given["out"] = out._replace(**{a: over(getattr(out, b), getattr(out, a)[:3])})
    later = max(a, b, key=KVIndices._fields.index)
    assert_refused(CSR, given, ValueError, f"out.{later} must not share memory", ())


def test_neighbours_in_one_buffer_do_not_overlap(device: str) -> None:
    """One allocation for all that a step needs is usual; only what is shared is refused."""
    source = ids(1)
    buffer = torch.full((200,), SENTINEL, dtype=I32, device=device)
    lens, rows, indptr, last, indices = (
        buffer[a:b] for a, b in ((0, 6), (6, 12), (12, 19), (19, 25), (25, 66))
    )
    lens.copy_(torch.tensor([3, 0, 5, 9, 20, 4]))
    rows.copy_(torch.tensor(ROWS))
    out = KVIndices(indptr, indices, last)
    xkv.build_kv_indices(source_tensor(source, I32, device), rows, lens, out=out)
    assert indptr.tolist() == [0, 3, 3, 8, 17, 37, 41]
    assert indices.tolist() == [*itertools.chain(*pages(source, 1, 1, lens=lens.tolist()))]
    assert buffer[66:].unique().tolist() == [SENTINEL]


def tensors_in(given: dict[str, Any]) -> list[torch.Tensor]:
    found = []
    for value in given.values():
        parts = value if isinstance(value, tuple) else [getattr(value, "word", value)]
        found += [x for x in parts if isinstance(x, torch.Tensor)]
    return found


def contents(x: torch.Tensor) -> list[Any]:
    """The whole buffer, where x has one with something in it."""
    if x.is_meta or x.is_nested or x.layout is not torch.strided or x.numel() == 0:
        return []
    return whole(x).tolist()


def assert_refused(
    op: str, given: dict[str, Any], error: type[Exception], begins: str, says: tuple[str, ...]
) -> None:
    """The op raises just that error with that message, and writes nothing at all."""
    before = [contents(x) for x in tensors_in(given)]
    with pytest.raises(error) as info:
        getattr(xkv, op)(**given)
    message = str(info.value)
    assert type(info.value) is error, message
    assert message.startswith(begins)
    for part in says:
        assert part in message
    assert [contents(x) for x in tensors_in(given)] == before


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse).*:UserWarning")
@pytest.mark.parametrize(("op", "change", "error", "begins", "says"), REFUSED)
def test_refused(
    op: str, change: dict[str, Any], error: type[Exception], begins: str, says: tuple[str, ...],
    device: str,
) -> None:  # fmt: skip
    given = good(op, device)
    changed = {k: v(given) if callable(v) and not isinstance(v, type) else v for k, v in change.items()}
    assert_refused(op, given | changed, error, begins, says)


@pytest.mark.parametrize("op", ALL)
def test_what_the_refusals_start_from_is_good(op: str, device: str) -> None:
    given = good(op, device)
    before = [contents(x) for x in tensors_in({"out": given["out"]})]
    getattr(xkv, op)(**given)
    assert [contents(x) for x in tensors_in({"out": given["out"]})] != before
    assert given["status"].read() is None
