"""The public ops as users call them: results against the oracle, and sizes of new outputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from op_arguments import (
    ALL,
    BATCH,
    CSR,
    I32,
    I64,
    LENS,
    ROWS,
    SLOTS,
    STARTS,
    TABLE,
    TOKENS,
    assert_right,
    call,
    every_op,
    ids,
    sizes,
)

import xkv
from xkv import KVIndices, Reason


def new(op: str, given: dict[str, Any], **options: Any) -> Any:
    """The same call without ``out``."""
    return getattr(xkv, op)(**{k: v for k, v in given.items() if k != "out"} | options)


@every_op
@sizes
def test_every_size(op: str, P: int, S: int, device: str) -> None:
    """Into buffers longer than they need be; a new output has the same, and no more."""
    given = call(op, device, P=P, S=S)
    assert assert_right(op, given) is None
    made, out = new(op, given), given["out"]
    if op == TABLE:
        assert made.dtype is I32
        width, live = TOKENS // P, [-(-n // P) for n in LENS]
        rows = out[:BATCH, :width].tolist()
        assert made.tolist() == [row[:n] + [0] * (width - n) for row, n in zip(rows, live, strict=True)]
    elif op == CSR:
        assert isinstance(made, KVIndices)
        assert {x.dtype for x in made} == {I32}
        assert made.kv_indptr.tolist() == out.kv_indptr[: BATCH + 1].tolist()
        assert made.kv_indices.tolist() == out.kv_indices[: made.kv_indptr[-1]].tolist()
        assert made.kv_last_page_len.tolist() == out.kv_last_page_len[:BATCH].tolist()
    else:
        assert made.dtype is I64
        assert made.tolist() == out[: sum(LENS)].tolist()


@pytest.mark.parametrize("S", [1, 16])
@pytest.mark.parametrize("max_tokens", [None, 64])
def test_slot_mapping(S: int, max_tokens: int | None, device: str) -> None:
    queries = [0, 1, 1, 5, 33, 0]
    given = call(SLOTS, device, S=S, room=70, query_lens=queries, max_tokens=max_tokens)
    assert assert_right(SLOTS, given) is None
    made = new(SLOTS, given)
    assert made.shape == (40 if max_tokens is None else max_tokens,)
    assert made[:40].tolist() == given["out"][:40].tolist()


@pytest.mark.parametrize("S", [1, 16, 3])
@pytest.mark.parametrize("dtypes", [(I32, I64), (I64, I32)], ids=["int32", "int64"])
def test_slots_at_positions(dtypes: tuple[torch.dtype, torch.dtype], S: int, device: str) -> None:
    """In any order, some of them twice; a row without query tokens, and two of padding."""
    given = call(
        SLOTS, device, S=S, room=20, positions=[0, 16, 3, 63, 0, 0, 127, 1, 1, 9],
        query_start_loc=[0, 0, 1, 3, 4, 4, 8, 10, 10], req_pool_indices=[*ROWS, -1, -1],
        seq_lens=[0, 1, 17, 64, TOKENS, 128, 5, 0], source=ids(S, tokens=129), pad_value=-1,
    )  # fmt: skip
    given["positions"], given["query_start_loc"] = (
        given[name].to(dtype) for name, dtype in zip(("positions", "query_start_loc"), dtypes, strict=True)
    )
    assert assert_right(SLOTS, given) is None
    made = new(SLOTS, given)
    assert made.tolist() == given["out"][:10].tolist()
    assert new(SLOTS, given | {"max_tokens": 12})[:10].tolist() == made.tolist()
    flat = [[x * S + n for x in row for n in range(S)] for row in ids(S, tokens=129)]
    at = [(0, 0), (2, 16), (2, 3), (2, 63), (4, 0), (4, 0), (4, 127), (4, 1)]
    assert made.tolist() == [*(flat[row][t] for row, t in at), -1, -1]


def test_positions_from_a_limit_on_have_no_slot(device: str) -> None:
    """Drafts past the longest context would overwrite another request's block (vllm #32628)."""
    given = call(
        SLOTS, device, room=4, positions=[5, 6, 7, 2], query_start_loc=[0, 3, 4], max_position=6,
        req_pool_indices=[1, 2], seq_lens=[6, 3],
    )  # fmt: skip
    assert assert_right(SLOTS, given) is None
    source = ids(1)
    assert given["out"].tolist() == [source[1][5], -1, -1, source[2][2]]


# Every mix of any four of the five: the fifth follows from an even number of int64.
DTYPES = [d for d in itertools.product((I32, I64), repeat=5) if d.count(I64) % 2 == 0]


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "".join("34"[x is I64] for x in d))
def test_dtypes(dtypes: tuple[torch.dtype, ...], device: str) -> None:
    """Of source, indices, lengths, the other per-row ints and out."""
    of_source, of_rows, of_lens, of_ints, of_out = dtypes
    for op in ALL:
        starts = {"query_lens": [0, 1, 0, 2, 0, 3]} if op == SLOTS else {"kv_start": STARTS}
        given = call(op, device, P=16, of_source=of_source, of_out=of_out, **starts)
        for name, dtype in (("req_pool_indices", of_rows), ("seq_lens", of_lens), (*starts, of_ints)):
            given[name] = given[name].to(dtype)
        assert assert_right(op, given) is None
    slots = new(SLOTS, given, dtype=of_out)
    assert slots.dtype is of_out
    source = ids(1)
    assert slots.tolist() == [source[0][0], *source[2][62:64], *source[4][67:70]]


@pytest.mark.parametrize("P", [1, 16])
@pytest.mark.parametrize("starts", [None, STARTS], ids=["", "kv_start"])
@pytest.mark.parametrize("delta", [3, -1, "tensor"])
def test_start_and_delta(P: int, starts: list[int] | None, delta: int | str, device: str) -> None:
    more = [0, 1, 60, -1, 3, 2] if delta == "tensor" else delta
    for op in (TABLE, CSR):
        options = {"seq_lens": [10, 1, 17, 64, TOKENS - 3, 71], "kv_start": starts, "seq_lens_delta": more}
        given = call(op, device, P=P, **options)
        assert_right(op, given)
        made = new(op, given)
        if op == CSR:
            assert made.kv_indices.tolist() == given["out"].kv_indices[: made.kv_indptr[-1]].tolist()
        else:
            ends = given["seq_lens"] + given["seq_lens_delta"]
            assert made.shape == (BATCH, -(-int(ends.max()) // P))


def test_delta_moves_the_query_tokens(device: str) -> None:
    source = ids(1)
    given = call(
        SLOTS, device, req_pool_indices=[3, 1], seq_lens=[4, 9], query_lens=[2, 1], seq_lens_delta=[2, -1]
    )
    assert new(SLOTS, given).tolist() == [source[3][4], source[3][5], source[1][7]]


def test_max_seq_len_bounds_a_new_table(device: str) -> None:
    given = call(TABLE, device, P=16, room=7, max_seq_len=97)
    assert assert_right(TABLE, given) == (4, Reason.BAD_LENGTH)  # 128 tokens
    given["status"].clear()
    assert new(TABLE, given)[4].tolist() == given["out"][4].tolist()
    assert given["status"].read() == (4, Reason.BAD_LENGTH)


@pytest.mark.parametrize("again", [False, True], ids=["first call", "a call like an earlier one"])
def test_max_seq_len_bounds_a_given_table(again: bool, device: str) -> None:
    """Whatever the table has room for. A later call with another bound, or none, is not held to this one."""
    for bound in [None, 64, 128, 97] if again else [97]:
        given = call(TABLE, device, P=16, room=10, max_seq_len=bound)
        cut = bound is not None and bound < max(LENS)
        assert assert_right(TABLE, given) == ((4, Reason.BAD_LENGTH) if cut else None)


@pytest.mark.parametrize(("tile", "width"), [(None, 1), (1, 1), (4, 4)])
def test_a_new_table_has_a_column(tile: int | None, width: int, device: str) -> None:
    """Also for lengths that are all 0: a reader takes no table of width 0."""
    fill = {} if tile is None else {"pad_value": 7, "pad_to_multiple_of": tile}
    given = call(TABLE, device, P=16, seq_lens=[0, 0, 0], req_pool_indices=[0, 0, 0], **fill)
    for bound in ({}, {"max_seq_len": 0}):
        assert new(TABLE, given, **bound).tolist() == [[0 if tile is None else 7] * width] * 3


def test_a_new_table_has_whole_tiles(device: str) -> None:
    given = call(TABLE, device, P=16, room=9, pad_value=-9, pad_to_multiple_of=3)
    assert assert_right(TABLE, given) is None
    made = new(TABLE, given)
    assert made.shape == (BATCH, 9)
    for row, out, n in zip(made.tolist(), given["out"].tolist(), LENS, strict=False):
        end = max(-(-n // 48) * 3, 3)
        assert row[:end] == out[:end]


def test_out_must_hold_max_seq_len_exactly(device: str) -> None:
    given = call(TABLE, device, P=16, room=2, batch=1, req_pool_indices=[1], seq_lens=[32], max_seq_len=32)
    assert assert_right(TABLE, given) is None
    source = ids(1)
    assert given["out"].tolist() == [[source[1][0] // 16, source[1][16] // 16]]


@pytest.mark.parametrize("P", [1, 4, 16])
def test_max_tokens_is_room_enough(P: int, device: str) -> None:
    """However the rows' first and last tokens lie in their pages, the promised sum fits."""
    starts = [P - 1, 2 * P - 1, 0, P // 2, 3, P - 1]
    lens = [P + 1, 2 * P + 1, 2, P // 2 + 1, 3, 2 * P]
    total = sum(n - s for n, s in zip(lens, starts, strict=True))
    given = call(CSR, device, P=P, seq_lens=lens, kv_start=starts)
    assert assert_right(CSR, given) is None
    made = new(CSR, given, max_tokens=total)
    given["status"].check()
    assert made.kv_indptr.tolist() == given["out"].kv_indptr[: BATCH + 1].tolist()
    live = int(made.kv_indptr[-1])
    assert made.kv_indices[:live].tolist() == given["out"].kv_indices[:live].tolist()


def test_short_stream_is_cut_everywhere(device: str) -> None:
    given = call(CSR, device, room=20)
    assert assert_right(CSR, given) == (3, Reason.TRUNCATED)
    assert given["out"].kv_indptr[: BATCH + 1].tolist() == [0, 0, 1, 18, 20, 20, 20]
    assert given["out"].kv_last_page_len[:BATCH].tolist() == [0, 1, 1, 1, 0, 0]


@every_op
def test_empty_batch(op: str, device: str) -> None:
    none = torch.empty(0, dtype=I64, device=device)
    empty = {"req_pool_indices": none, "seq_lens": none} | ({"query_lens": none} if op == SLOTS else {})
    given = call(op, device, P=16, room=4, **empty)
    assert assert_right(op, given) is None
    made = new(op, given)
    if op == TABLE:
        assert made.shape == (0, 1)
        assert new(op, given, max_seq_len=40).shape == (0, 3)
        assert assert_right(op, given | {"pad_value": 0}) is None
    else:
        assert (made.tolist() if op == SLOTS else [x.tolist() for x in made]) == (
            [] if op == SLOTS else [[0], [], []]
        )


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)])
@pytest.mark.parametrize("op", [TABLE, CSR])
def test_empty_source(op: str, shape: tuple[int, int], device: str) -> None:
    """Nothing can be looked up in it: rows without tokens are served, others are cut."""
    given = call(op, device, P=2, req_pool_indices=[0, 0], seq_lens=[0, 3])
    given["req_to_token"] = torch.empty(shape, dtype=I32, device=device)
    assert assert_right(op, given) == (1, Reason.BAD_ROW if shape[0] == 0 else Reason.BAD_LENGTH)


@pytest.mark.parametrize("op", [TABLE, CSR])
def test_buffers_without_room(op: str, device: str) -> None:
    given = call(op, device, P=2, room=0, req_pool_indices=[0, 0], seq_lens=[0, 3])
    assert assert_right(op, given) == (1, Reason.TRUNCATED)
