"""What `MetadataGroup`, `SlotMapping`, `DraftTree` and their builders refuse, by the argument's name."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
import torch

import xkv

SOURCE = torch.arange(256, dtype=torch.int32).view(4, 64)
SIZES: dict[str, Any] = {"max_batch_size": 4, "max_context_len": 64, "page_size": 4}
ROWS, LENS = torch.tensor([0, 1]), torch.tensor([7, 3])
STARTS = torch.tensor([0, 2, 3])


def builder(**options: Any) -> xkv.MetadataBuilder:
    return xkv.MetadataBuilder("flash_attention", SOURCE, **{**SIZES, **options})


SLOTS, TREE = xkv.SlotMapping(3), xkv.DraftTree(2, 3, 1, 4)
WITH: dict[str, Any] = {"slot_mapping": SLOTS}
GIVEN: dict[str, Any] = {"positions": LENS, "query_start_loc": STARTS}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xkv.MetadataGroup([]), "number of builders must be from 1 to 64, got 0"),
        (lambda: xkv.MetadataGroup([builder(), SOURCE]), "builders must be xkv.MetadataBuilder objects"),
        (lambda: xkv.SlotMapping(0), "max_tokens of SlotMapping must be from 1"),
        (lambda: xkv.SlotMapping(4, "int16"), "id_dtype of SlotMapping must be"),
        (lambda: xkv.SlotMapping(4, pad_value="0"), "pad_value of SlotMapping must be an int"),
        (lambda: xkv.SlotMapping(4, max_position=-1), "max_position of SlotMapping must be from 0"),
        (lambda: xkv.SlotMapping(4, query_seqlens=1), "query_seqlens of SlotMapping must be a bool"),
        (lambda: xkv.DraftTree(0, 1, 1), "topk of DraftTree must be from 1"),
        (lambda: xkv.DraftTree(2, 3, 4), "step of DraftTree must be from 1 to 3, got 4"),
        (lambda: xkv.DraftTree(2, 3, 1, 3), "page_size of DraftTree must be a power of two"),
        (lambda: builder(slot_mapping=8), "slot_mapping must be an xkv.SlotMapping, got int"),
        (lambda: builder(draft=(2, 3, 1)), "draft must be an xkv.DraftTree, got tuple"),
        (lambda: builder(draft=xkv.DraftTree(2, 3, 1, 8)), "page_size of DraftTree must be the builder's, 4"),
        (lambda: builder(draft=TREE, slot_mapping=SLOTS), "slot_mapping must be None with"),
        (lambda: builder(draft=TREE, shard=xkv.Shard(2, 0)), "shard must be None with"),
        (lambda: builder(window_is_absolute=True), "window_is_absolute needs a sliding_window"),
        (lambda: builder(window_is_absolute=1, sliding_window=4), "window_is_absolute must be a bool"),
        (lambda: builder(sink_tokens=4), "sink_tokens=4 needs a sliding_window"),
        (lambda: builder(sink_tokens=5, sliding_window=8), "sink_tokens must be whole pages of 4 tokens"),
        (lambda: builder(window_page_map=SOURCE), "window_page_map must have 1 dimension"),
    ],
)  # fmt: skip
def test_made_of_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, GIVEN, "need a builder with a slot_mapping"),
        (WITH, {"positions": LENS}, "query_start_loc must be a torch.Tensor with positions"),
        (WITH, {"query_start_loc": STARTS}, "positions must be a torch.Tensor"),
        (WITH, GIVEN | {"query_start_loc": LENS}, "must have 3 entries, one more"),
        (WITH, GIVEN | {"positions": torch.arange(4)}, "at most max_"),
        (WITH, {"query_lens": 2}, "query tokens must be at most max_tokens=3"),
        (WITH, {"max_tokens": 9}, "max_tokens must be None with a slot mapping"),
        (
            WITH,
            GIVEN | {"query_lens": LENS}, "query_lens must be 1",
        ),
        ({"draft": TREE}, {"query_lens": LENS}, "query_lens must be an int"),
        ({"sliding_window": 8, "sink_tokens": 4}, {"window_kv_start": LENS}, "must be None with sink_tokens"),
        (WITH, {"window_kv_start": LENS}, "window_kv_start needs a builder with a sliding"),
        (WITH, {"seq_lens_delta": 1.5}, "seq_lens_delta must be an int"),
        (WITH, {"query_lens_sign": 1}, "query_lens_sign needs query_lens as a tensor"),
    ],
)  # fmt: skip
def test_a_build_of_what_does_not_fit(options: Any, given: Any, message: str) -> None:
    """Also once a call like it is known."""
    made = builder(**options)
    before = made.build(ROWS, LENS).page_table.clone()
    with pytest.raises((TypeError, ValueError), match=message):
        made.build(ROWS, LENS + 9, **given)
    assert torch.equal(made.build(ROWS[:0], LENS[:0])._view.out[: len(before)], before)


def test_a_batch_of_another_size_or_type() -> None:
    group = xkv.MetadataGroup([builder(slot_mapping=SLOTS), builder(max_batch_size=2)])
    assert group.max_batch_size == 2
    first, _ = group.build(ROWS, LENS)
    for rows, lens in ((ROWS[:1], LENS), (ROWS, LENS.float()), (torch.arange(3), torch.arange(3))):
        with pytest.raises((TypeError, ValueError), match=r"req_pool_indices|seq_lens"):
            group.build(rows, lens)
    assert first.slot_mapping is not None
    assert first.slot_mapping.tolist() == [6, 66]


def test_a_tensor_whose_memory_was_freed() -> None:
    made = builder(slot_mapping=SLOTS)
    made.build(ROWS, LENS, seq_lens_delta=LENS)
    freed = LENS.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="seq_lens_delta must have memory"):
        made.build(ROWS, LENS, seq_lens_delta=freed)


def test_an_int_of_a_class_of_its_own() -> None:
    one = IntEnum("Number", {"ONE": 1}).ONE  # type: ignore[attr-defined]
    made = builder(slot_mapping=SLOTS)
    want = made.build(ROWS, LENS, seq_lens_delta=1).slot_mapping
    assert want is not None
    want = want.clone()
    got = made.build(ROWS, LENS, seq_lens_delta=one).slot_mapping
    assert got is not None
    assert torch.equal(got, want)
