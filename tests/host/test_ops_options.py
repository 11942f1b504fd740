"""The public ops' maps and tails, and what they report of what only the device knows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from op_arguments import BATCH, CSR, I32, I64, SLOTS, TABLE, TOKENS, assert_right, call, ids

import xkv
from xkv import Reason, Status
from xkv.cli.check.memory import SENTINEL, guarded_1d, whole

MAPS = {
    "token_map": ({"token_map"}, None),
    "page_map": ({"page_map"}, None),
    "page_map of 4": ({"page_map"}, 4),
    "both": ({"token_map", "page_map"}, 4),
}


@pytest.mark.parametrize("missing_id", [None, 123456])
@pytest.mark.parametrize(("names", "M"), MAPS.values(), ids=MAPS)
@pytest.mark.parametrize(("P", "S"), [(16, 1), (1, 1), (4, 16)])
def test_maps(P: int, S: int, names: set[str], M: int | None, missing_id: int | None, device: str) -> None:
    """Maps and a source that lack ids: missing_id stands in, or -1 and a report."""
    source = ids(S, missing=20 // S)
    tokens = (max(map(max, source)) + 1) * S
    rng = random.Random(7)
    maps = {
        name: [rng.randrange(size) if rng.random() < 0.9 else -rng.randint(1, 9) for _ in range(size)]
        for name, size in (("token_map", tokens), ("page_map", tokens // (M or P) + 1))
        if name in names
    }
    for op in (TABLE, CSR):
        options = {"map_page_size": M, "missing_id": missing_id, **maps}
        given = call(op, device, P=P, S=S, source=source, **options)
        violation = assert_right(op, given)
        out = given["out"] if op == TABLE else given["out"].kv_indices
        stand_in = -1 if missing_id is None else missing_id
        assert (out == stand_in).any(), "a case without a missing id shows nothing"
        assert (violation is None) == (missing_id is not None)
        assert violation is None or violation.reason is Reason.BAD_ID


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


def test_where_in_their_first_page_rows_begin(device: str) -> None:
    """1500 tokens of an encoder, 10 of its decoder behind them, page size 64, and rows of other kinds."""
    source = torch.arange(4 * 1600, dtype=I32, device=device).view(4, 1600)
    starts = [1500, 1500, 64, 0, 70, 1536]
    lens = [1510, 1600, 1600, 3, 70, 0]
    arguments = (source, torch.tensor([2, 0, 1, 3, 0, 1], device=device), torch.tensor(lens, device=device))
    more = {"page_size": 64, "kv_start": torch.tensor(starts, device=device)}
    offset = guarded_1d(6, I32, device)
    table = xkv.build_page_table(*arguments, **more, kv_start_offset=offset)
    assert offset.tolist() == [28, 28, 0, 0, 0, 0]
    assert int((whole(offset) != SENTINEL).sum()) == 6
    assert table[0, 0] == (2 * 1600 + 1472) // 64

    csr_offset = guarded_1d(6, I32, device)
    csr = xkv.build_kv_indices(*arguments, **more, kv_start_offset=csr_offset)
    assert csr_offset.tolist() == [28, 28, 0, 0, 0, 0]
    assert csr.kv_last_page_len.tolist() == [38, 64, 64, 3, 0, 0]

    for out in (torch.empty(6, dtype=I64, device=device), torch.empty(5, dtype=I32, device=device)):
        with pytest.raises((TypeError, ValueError), match="kv_start_offset"):
            xkv.build_page_table(*arguments, **more, kv_start_offset=out)
    starts32 = torch.tensor(starts, dtype=I32, device=device)
    with pytest.raises(ValueError, match="kv_start_offset must not share memory"):
        xkv.build_page_table(*arguments, page_size=64, kv_start=starts32, kv_start_offset=starts32)


def test_least_last_page_length(device: str) -> None:
    """FlashInfer wants 1 to the page size, also of an empty or padded row."""
    for least, want in ((0, [0, 1, 1, 16, 16, 6]), (1, [1, 1, 1, 16, 16, 6]), (4, [4, 4, 4, 16, 16, 6])):
        given = call(CSR, device, P=16, min_last_page_len=least)
        assert assert_right(CSR, given) is None
        assert given["out"].kv_last_page_len[:BATCH].tolist() == want
    with pytest.raises(ValueError, match="min_last_page_len must be from 0 to 16, got 17"):
        xkv.build_kv_indices(**given | {"min_last_page_len": 17})


TABLE_TAILS = [  # live: 0, 1, 2, 4, 8 and 5 pages, in a table of 10
    (None, [10] * 6),
    (1, [1, 1, 2, 4, 8, 5]),
    (4, [4, 4, 4, 4, 8, 8]),
    (6, [6, 6, 6, 6, 10, 6]),
    (64, [10] * 6),
]


@pytest.mark.parametrize(("tile", "filled"), TABLE_TAILS, ids=str)
def test_tail_of_a_table(tile: int | None, filled: list[int], device: str) -> None:
    given = call(TABLE, device, P=16, room=10, pad_value=-9, pad_to_multiple_of=tile)
    assert assert_right(TABLE, given) is None
    assert [int((row != SENTINEL).sum()) for row in given["out"][:BATCH]] == filled


@pytest.mark.parametrize(("tile", "filled"), [(None, 300), (1, 280), (16, 288), (256, 300)])
def test_tail_of_a_stream(tile: int | None, filled: int, device: str) -> None:
    for op in (CSR, SLOTS):
        given = call(op, device, room=300, pad_value=0, pad_to_multiple_of=tile)
        assert assert_right(op, given) is None
        out = given["out"] if op == SLOTS else given["out"].kv_indices
        assert int((out != SENTINEL).sum()) == filled


def test_pad_value_of_a_new_table(device: str) -> None:
    given = call(TABLE, device, P=64, room=2, pad_value=-1)
    assert assert_right(TABLE, given) is None
    out = given.pop("out")
    assert xkv.build_page_table(**given).tolist() == out[:BATCH].tolist()


GIVEN: dict[str, Any] = {"query_lens": None, "positions": [2, 3, 4], "query_start_loc": [0, 1, 2, 3]}
# What only the device knows: (op, what differs, what is reported).
VIOLATIONS: list[tuple[str, dict[str, Any], tuple[int, Reason]]] = [
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
    ("build_slot_mapping", {"max_tokens": 2}, (2, Reason.TRUNCATED)),
    ("build_slot_mapping", GIVEN | {"positions": [2, 4, 4]}, (1, Reason.BAD_QUERY)),
    ("build_slot_mapping", GIVEN | {"positions": [2, 3, -1]}, (2, Reason.BAD_QUERY)),
    ("build_slot_mapping", GIVEN | {"positions": [2, 3, 2**40]}, (2, Reason.BAD_QUERY)),
    ("build_slot_mapping", GIVEN | {"query_start_loc": [1, 1, 0, 3]}, (1, Reason.BAD_QUERY)),
    ("build_slot_mapping", GIVEN | {"query_start_loc": [-1, 1, 2, 3]}, (0, Reason.BAD_QUERY)),
    ("build_slot_mapping", GIVEN | {"query_start_loc": [0, 1, 2, 4]}, (2, Reason.TRUNCATED)),
    ("build_slot_mapping", GIVEN | {"req_pool_indices": [0, 5, 1]}, (1, Reason.BAD_ROW)),
    ("build_slot_mapping", GIVEN | {"req_pool_indices": [0, -2, 1]}, (1, Reason.BAD_ROW)),
]


@pytest.mark.parametrize(("op", "change", "violation"), VIOLATIONS, ids=str)
def test_violation(op: str, change: dict[str, Any], violation: tuple[int, Reason], device: str) -> None:
    options: dict[str, Any] = {"req_pool_indices": [0, 1, 2], "seq_lens": [3, 4, 5]}
    options |= {"query_lens": [1, 1, 1]} if op == SLOTS else {}
    right = GIVEN if "positions" in change else {}
    for more, reported in ((change, violation), (right, None)):
        given = call(op, device, **options | more)
        del given["out"]
        getattr(xkv, op)(**given)
        assert given["status"].read() == reported


def test_row_index_of_an_empty_row_is_not_looked_at(device: str) -> None:
    status = Status(device)
    got = xkv.build_page_table(
        torch.tensor([[4, 8]], device=device), torch.tensor([0, 99, -5], device=device),
        torch.tensor([2, 0, 0], device=device), page_size=1, status=status,
    )  # fmt: skip
    assert got.tolist() == [[4, 8], [0, 0], [0, 0]]
    assert status.read() is None


def test_lengths_near_the_ends_of_int64_are_cut_not_wrapped(device: str) -> None:
    source = ids(1)
    given = call(
        TABLE, device, room=TOKENS, req_pool_indices=[1, 2, 3], pad_value=0,
        seq_lens=[2**63 - 1, -(2**63), 3], seq_lens_delta=[2**63 - 1, -(2**63), 1],
    )  # fmt: skip
    assert assert_right(TABLE, given) == (0, Reason.BAD_LENGTH)
    assert given["out"][:3].tolist() == [source[1], [0] * TOKENS, source[3][:4] + [0] * (TOKENS - 4)]


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
