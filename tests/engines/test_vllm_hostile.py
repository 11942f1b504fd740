"""The plugin's own kernels for vLLM on hostile data, between guard words, against a Python loop.

What the host gives (sizes, widths, addresses of tables) is right here. No row index of slots is past the last
row: vLLM does not tell the kernel how many there are. Where starts fall, two requests claim one token, and it
has the slot that one of them would write.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import GPUS
from test_vllm_kernels import ints, pointers

from xkv.cli.check import values
from xkv.cli.check.memory import SENTINEL, guarded, guarded_1d, whole
from xkv.integrations.vllm import indices, step, tables

pytestmark = pytest.mark.kernel

I32, I64 = torch.int32, torch.int64
CASES = 200 if GPUS else 6
PAD = -1


def vector(rng: random.Random, most: list[int], dtype: torch.dtype, heat: float, edge: int) -> list[int]:
    return [int(x) for x in values.vector(rng, most, dtype, heat, edge)]


def starts(rng: random.Random, batch: int, room: int, heat: float) -> tuple[list[int], torch.dtype]:
    """Where each request's tokens begin, and where the last one's end."""
    dtype = rng.choice([I32, I64])
    sane = [*sorted(rng.randint(0, room) for _ in range(batch)), room]
    odd = vector(rng, [0] * (batch + 1), dtype, 1, room + 1)
    return [o if rng.random() < heat else s for s, o in zip(sane, odd, strict=True)], dtype


def slots_of(at: list[int], positions: list[int], room: int, slot: Any, pad_from: int) -> dict[int, set[int]]:
    """Token -> the slots that the requests and the padding would write."""
    found: dict[int, set[int]] = {}
    for b in range(len(at) - 1):
        for token in range(max(at[b], 0), min(at[b + 1], room)):
            found.setdefault(token, set()).add(slot(b, positions[token]))
    for token in range(max(pad_from, 0), room):
        found.setdefault(token, set()).add(PAD)
    return found


def slot_in(row: list[int] | None, size: int, position: int) -> int:
    if row is None or not 0 <= position < 2**31 or position // size >= len(row):
        return PAD
    return row[position // size] * size + position % size


def assert_written(out: torch.Tensor, want: dict[int, set[int]]) -> None:
    first = out.storage_offset()
    for at, got in enumerate(whole(out).tolist()):
        allowed = want.get(at - first, {SENTINEL})
        assert got in allowed, f"token {at - first}: {got}, and not {allowed}"


@pytest.mark.parametrize("groups", [False, True])
def test_starts_just_before_the_buffer(groups: bool, device: str) -> None:
    """Of the first request's tokens, and of the padding."""
    table, room = ints([[5], [6]], device), 4
    at, positions = ints([-3, 2, -2], device), ints([0, 1, 2, 3], device, I64)
    out = guarded_1d(room, I64, device)
    if groups:
        one, on = ints([1], device, I64), torch.tensor([True], device=device)
        assert tables.slot_mappings(
            (1, 3), room, ints([1, 0], device), at, positions, pointers([table], device), one,
            ints([4], device), on, on, out[None], room, 0, 1, 1, PAD, 1024,
        )  # fmt: skip
        assert_written(out, {0: {24, PAD}, 1: {25, PAD}, 2: {PAD}, 3: {PAD}})
    else:
        assert tables.slot_mapping((3,), 3, room, at, positions, table, 1, out, 4, 1, 0, 1, PAD, 1024)
        assert_written(out, {0: {20}, 1: {21}, 3: {PAD}})


@pytest.mark.parametrize("heat", [0, 0.2, 1])
def test_slot_mapping(heat: float, device: str) -> None:
    """Model runner V1's."""
    rng = random.Random(f"v1 {heat}")
    for _ in range(CASES):
        batch, size, width = rng.randint(1, 5), rng.choice([1, 4, 16]), rng.randint(1, 4)
        room = rng.choice([1, 9, 1500])
        table = torch.randint(1 << 20, (batch, width), dtype=I32)
        at, dtype = starts(rng, batch, room, heat)
        positions = vector(rng, [size * width - 1] * room, I64, heat, size * width)
        tokens = rng.randint(0, room)
        out = guarded_1d(room, I64, device)
        assert tables.slot_mapping(
            (batch + 1,), tokens, room, ints(at, device, dtype), ints(positions, device, I64),
            table.to(device), width, out, size, 1, 0, 1, PAD, 1024,
        )  # fmt: skip
        rows = table.tolist()
        want = slots_of(at, positions, room, lambda b, p, r=rows, s=size: slot_in(r[b], s, p), tokens)
        assert_written(out, want)


@pytest.mark.parametrize("heat", [0, 0.2, 1])
def test_slot_mappings_of_groups(heat: float, device: str) -> None:
    """Model runner V2's; the rows are the engine's, -1 for none."""
    rng = random.Random(f"v2 {heat}")
    for _ in range(CASES):
        batch, groups, num_rows = rng.randint(1, 5), rng.randint(1, 3), rng.randint(1, 6)
        room = rng.choice([1, 9, 1500])
        sizes, widths = ([rng.choice(pick) for _ in range(groups)] for pick in ([1, 4, 16], [1, 3]))
        source = [torch.randint(1 << 20, (num_rows, w), dtype=I32, device=device) for w in widths]
        enabled = [rng.random() < 0.8 for _ in range(groups)]
        rows = [rng.choice([-1, -(2**31), *range(num_rows)]) for _ in range(batch)]
        at, dtype = starts(rng, batch, room, heat)
        longest = max(s * w for s, w in zip(sizes, widths, strict=True))
        positions = vector(rng, [longest - 1] * room, I64, heat, longest)
        out = guarded(groups, room, room, I64, device)
        assert tables.slot_mappings(
            (groups, batch + 1), room, ints(rows, device), ints(at, device, dtype),
            ints(positions, device, I64), pointers(source, device), ints(widths, device, I64),
            ints(sizes, device), torch.tensor(enabled, device=device), torch.tensor(enabled, device=device),
            out, out.stride(0), 0, 1, 1, PAD, 1024,
        )  # fmt: skip
        want: dict[int, set[int]] = {}
        for g, size in enumerate(sizes):
            held = [source[g][row].tolist() if row >= 0 and enabled[g] else None for row in rows]

            def slot(b: int, p: int, held: Any = held, size: int = size) -> int:
                return slot_in(held[b], size, p)

            found = slots_of(at, positions, room, slot, at[-1])
            want |= {g * room + token: values for token, values in found.items()}
        assert_written(out, want)


@pytest.mark.parametrize("heat", [0, 0.2, 1])
def test_copy_page_indices(heat: float, device: str) -> None:
    """FlashInfer's: an entry that two rows claim has the page of one of them."""
    rng = random.Random(f"pages {heat}")
    for _ in range(CASES):
        batch, width, room = rng.randint(1, 5), rng.choice([1, 9, 2500]), rng.choice([1, 9, 3000])
        table = torch.randint(1 << 20, (batch, width), dtype=I32)
        at, dtype = starts(rng, batch, room, heat)
        out = guarded_1d(room, I32, device)
        assert indices.copy_page_indices(
            (batch,), out, table.to(device), width, ints(at, device, dtype), 1024
        )
        want: dict[int, set[int]] = {}
        for b, row in enumerate(table.tolist()):
            end = min(at[b + 1], room, at[b] + width)
            for entry in range(at[b], end if at[b] >= 0 else at[b]):
                want.setdefault(entry, set()).add(row[entry - at[b]])
        assert_written(out, want)


@pytest.mark.parametrize("heat", [0, 0.2, 1])
@pytest.mark.parametrize("window", [False, True])
def test_gather_block_tables(window: bool, heat: float, device: str) -> None:
    rng = random.Random(f"gather {window} {heat}")
    for _ in range(CASES):
        groups, num_rows, batch = rng.randint(1, 3), rng.randint(1, 6), rng.randint(0, 5)
        padded = batch + rng.choice([0, 2]) or 1
        widths, sizes = ([rng.choice(pick) for _ in range(groups)] for pick in ([1, 5, 1500], [1, 16]))
        source = [torch.randint(1 << 20, (num_rows, w), dtype=I32, device=device) for w in widths]
        out = [guarded(padded, w, w, I32, device) for w in widths]
        rows = vector(rng, [num_rows - 1] * padded, I32, heat, num_rows)
        counts = [vector(rng, [w] * num_rows, I32, heat, w + 1) for w in widths]
        computed = vector(rng, [2000] * num_rows, I32, heat, 4000)
        reach = [rng.choice([0, 30]) for _ in range(groups)]
        assert tables.gather_block_tables(
            (groups, padded), ints(rows, device), pointers(source, device), pointers(out, device),
            ints(widths, device, I64), ints(counts, device), num_rows, batch, ints(computed, device),
            ints(reach, device), ints(sizes, device), MASK_SLIDING_WINDOW=window, BLOCK_SIZE=1024,
        )  # fmt: skip
        for g, width in enumerate(widths):
            want: dict[int, set[int]] = {}
            for b in range(padded):
                row, live = (rows[b] if b < batch else -1), width
                held = [0] * width
                if 0 <= row < num_rows:
                    live, held = min(counts[g][row], width), source[g][row].tolist()
                    if window and reach[g]:
                        null = max(computed[row] - reach[g], 0) // sizes[g]
                        held = [0 if column < null else x for column, x in enumerate(held)]
                want |= {b * width + column: {held[column]} for column in range(max(live, 0))}
            assert_written(out[g], want)


@pytest.mark.parametrize("window", [False, True])
def test_one_launch(window: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and slots of a step, as the two launches above make them of the same data."""
    rng = random.Random(f"step {window}")
    monkeypatch.setattr(step, "pad_of", lambda _: PAD)
    for _ in range(CASES):
        groups, num_rows, batch = rng.randint(1, 3), rng.randint(1, 6), rng.randint(1, 5)
        padded, room = batch + rng.choice([0, 2]), rng.choice([9, 1500])
        widths, sizes = ([rng.choice(pick) for _ in range(groups)] for pick in ([1, 5, 2500], [1, 16]))
        source = [torch.randint(1 << 20, (num_rows, w), dtype=I32, device=device) for w in widths]
        # a row of slots past the last reads what is not vLLM's: that is vLLM's to see to
        rows = ints([rng.choice([-1, -(2**31), *range(num_rows)]) for _ in range(batch)], device)
        at, _ = starts(rng, batch, rng.randint(0, room), 0)
        positions = vector(rng, [max(widths) * 16] * room, I64, 0.3, max(widths))
        counts = ints([vector(rng, [w] * num_rows, I32, 0.5, w + 1) for w in widths], device)
        computed = ints(vector(rng, [2000] * num_rows, I32, 0.5, 4000), device)
        enabled = torch.tensor([rng.random() < 0.8 for _ in range(groups)], device=device)
        given = SimpleNamespace(
            num_kv_cache_groups=groups, _num_dirty_rows=rng.choice([0, padded]), num_blocks=None,
            has_sliding_window_groups=window, cp_size=rng.choice([1, 2]), cp_rank=0, cp_interleave=1,
            block_table_ptrs=pointers(source, device), block_table_strides=ints(widths, device, I64),
            sliding_window_reach=ints([rng.choice([0, 30]) for _ in widths], device),
            block_sizes_tensor=ints(sizes, device), slot_mapping_enabled=enabled, dcp_sharded=enabled,
        )  # fmt: skip
        given.num_blocks = SimpleNamespace(gpu=counts)
        order = SimpleNamespace(
            idx_mapping=rows, num_reqs_after_padding=padded, query_start_loc=ints(at, device),
            positions=ints(positions, device, I64),
        )  # fmt: skip
        found = []
        for together in (True, False):
            out = [guarded(padded, w, w, I32, device) for w in widths]
            slots = guarded(groups, room, room, I64, device)
            given.slot_mappings, given.input_block_table_ptrs = slots, pointers(out, device)
            if together:
                assert step.gather_and_slots(given, order, computed)
            else:
                assert tables.gather_block_tables(
                    (groups, padded), rows, given.block_table_ptrs, given.input_block_table_ptrs,
                    given.block_table_strides, counts, num_rows, batch, computed, given.sliding_window_reach,
                    given.block_sizes_tensor, window, 1024,
                )  # fmt: skip
                assert tables.slot_mappings(
                    (groups, batch + 1), room, rows, order.query_start_loc, order.positions,
                    given.block_table_ptrs, given.block_table_strides, given.block_sizes_tensor, enabled,
                    enabled, slots, room, 0, given.cp_size, 1, PAD, 1024,
                )  # fmt: skip
            found.append([whole(x) for x in (*out, slots)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
