"""What engines' kernels need beside what ops do, in all that a `Build` can say of it: against the oracle."""

from __future__ import annotations

import random
from bisect import bisect_left
from typing import Any

import building
import pytest
import torch

import xkv
from xkv import reference
from xkv.cli.check import memory, oracle
from xkv.cli.check.oracle_parts import rank_positions
from xkv.launch import launch
from xkv.params import CSR, OUTPUTS, TABLE, Build, View
from xkv.platforms import tuning
from xkv.shard import Shard

# tiles so small that there is a second phase, and large enough that there is none
ROWS = [
    tuning.Tuning("contiguous", None, 16, 1, 2, 1, 2, 16, 1, 2, 16, True, "test"),
    tuning.Tuning("contiguous", None, 64, 4, 2, 9, 2, 64, 1, 2, 16, False, "test"),
]
I32, I64 = torch.int32, torch.int64


class Made:
    """Tensors of random sizes for a build of ``batch`` rows, on a source of ``rows`` by ``tokens``."""

    def __init__(self, rng: random.Random, device: str, page_size: int) -> None:
        self.rng, self.device, self.page_size = rng, device, page_size
        self.batch, self.rows, self.tokens = rng.randint(1, 7), 4, rng.randint(1, 9) * 16
        unit = max(page_size, 16)
        self.source = building.paged_source(rng, self.rows, self.tokens, unit, 1, I32, device)

    def ints(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=self.rng.choice([I32, I64]), device=self.device)

    def row(self) -> torch.Tensor:
        """Rows, some of them none."""
        return self.ints([self.rng.choice([0, 1, 2, 3, 3, -1, 4]) for _ in range(self.batch)])

    def upto(self, most: int) -> list[int]:
        odd = (0, most + 3, 1 << 28, (1 << 31) - 1)
        sane = [self.rng.randint(0, most) for _ in range(self.batch)]
        return [n if self.rng.random() < 0.7 else self.rng.choice(odd) for n in sane]

    def view(self, form: int, room: int, *names: str, **more: Any) -> View:
        sums = {name: memory.guarded_1d(self.batch + OUTPUTS[name], I32, self.device) for name in names}
        if form == TABLE:
            return View(memory.guarded(self.batch, room, room + 3, I32, self.device), **sums, **more)
        return View(memory.guarded_1d(room, I32, self.device), **sums, **more)

    def status(self) -> torch.Tensor:
        return memory.guarded_1d(1, I64, self.device).fill_((1 << 63) - 1)


def local_lengths(rng: random.Random, device: str) -> Build:
    """A rank's own lengths, from a start on, with runs of any length."""
    form, run = rng.choice([TABLE, CSR]), rng.choice([1, 1, 4, 16])
    size = rng.choice([1, 4, 16]) if run % 16 else 16
    made, shard = (
        Made(rng, device, size),
        Shard(rng.choice([2, 3, 16]), 0, run, rng.choice(["global", "local"])),
    )
    shard = Shard(shard.size, rng.randrange(shard.size), run, shard.source)
    ranks = shard.size if shard.source == "local" else 1
    names = ["cache_seqlens", "kv_start_offset", "cu_seqlens_k" if form == TABLE else "kv_indptr"]
    room = rng.choice([made.tokens, 2]) // size + 2
    view = made.view(form, room if form == TABLE else room * made.batch, *names)
    if rng.random() < 0.7:
        view.kv_start = made.ints(made.upto(made.tokens * ranks))
    lens = made.ints(made.upto(made.tokens * ranks // shard.size))
    return Build(
        made.source, made.row(), lens, form, size, 1, size, (view,), shard=shard, lens_are_local=True,
        status=made.status(),
    )  # fmt: skip


def clamped_tail(rng: random.Random, device: str) -> Build:
    """Rows with as many entries as the sums say, some of rows that do not exist."""
    size = rng.choice([1, 4, 16])
    made = Made(rng, device, size)
    sums = [0]
    for _ in range(made.batch):
        sums.append(sums[-1] + rng.randint(0, 2 * made.tokens // size))
    room = max(sums[-1] - rng.choice([0, 0, 7]), 1)
    view = made.view(CSR, room, kv_indptr=made.ints(sums))
    return Build(
        made.source, made.row(), made.ints(made.upto(made.tokens)), CSR, size, 1, size, (view,),
        missing_id=rng.choice([-1, 0]), report_missing=False, indptr_is_input=True, clamps_tail=True,
    )  # fmt: skip


def no_ids(rng: random.Random, device: str) -> Build:
    """Lengths and sums alone, beside a table of one column."""
    size = rng.choice([1, 16])
    made = Made(rng, device, size)
    names = ("cache_seqlens", "cu_seqlens_k", "kv_start_offset", "empty_rows", "cu_seqlens_q")
    view = made.view(TABLE, 1, *names, window=rng.choice([None, rng.randint(1, made.tokens)]))
    view.kv_start = rng.choice([None, made.ints(made.upto(made.tokens))])
    return Build(
        made.source, made.row(), made.ints(made.upto(made.tokens)), TABLE, size, 1, size, (view,),
        query_lens=made.ints(made.upto(5)), query_sign=rng.choice([-1, 0, 1]), writes_ids=False,
        status=made.status(),
    )  # fmt: skip


MAKERS = [local_lengths, clamped_tail, no_ids]


@pytest.mark.kernel
@pytest.mark.parametrize("row", ROWS, ids=["shared", "whole"])
@pytest.mark.parametrize("make", MAKERS)
def test_kernel(make: Any, row: tuning.Tuning, device: str) -> None:
    rng = random.Random(f"{make.__name__} {row}")
    for _ in range(100 if device == "cuda" else 12):
        build = make(rng, device)
        want = building.twin(build, "cpu")
        launch.launch(build, row, xkv.platform(device))
        oracle.run(want)
        building.assert_same(build, want)


@pytest.mark.parametrize("make", MAKERS)
def test_reference(make: Any) -> None:
    rng = random.Random(make.__name__)
    for _ in range(200):
        build = make(rng, "cpu")
        want = building.twin(build)
        reference.run(build)
        oracle.run(want)
        building.assert_same(build, want)


def step(rng: random.Random, device: str) -> Build:
    """Tables of one or two pools, or none, and the slots of new tokens in the last one's."""
    made = Made(rng, device, rng.choice([1, 16]))
    names, has_tables = ("cache_seqlens", "cu_seqlens_k"), rng.random() < 0.7
    views = [made.view(TABLE, made.tokens // made.page_size, *names)]
    if has_tables and rng.random() < 0.7:
        views.append(made.view(TABLE, made.tokens // made.page_size))
    size = made.rows * made.tokens - 1
    targets = [rng.choice([-1, -7, *[rng.randint(0, size)] * 3]) for _ in range(size)]
    views[-1].token_map = made.ints(targets)
    count, room = rng.randint(0, 70), rng.randint(1, 70)
    slots = [rng.choice([-1, -9, size, size + 1, *[rng.randint(0, size - 1)] * 5]) for _ in range(count)]
    return Build(
        made.source, made.row(), made.ints(made.upto(made.tokens)), TABLE, made.page_size, 1, made.page_size,
        tuple(views), report_missing=False, writes_ids=has_tables, out_cache_loc=made.ints(slots),
        window_out_cache_loc=memory.guarded_1d(room, I64, device),
        num_out_tokens=rng.choice([None, 0, rng.randint(0, count + 3)]),
    )  # fmt: skip


def check_slots(run: Any, build: Build) -> None:
    """All that a launch writes: `building.twin` and `building.assert_same` leave out the slots."""
    slots = build.window_out_cache_loc
    assert slots is not None
    want = building.twin(build, "cpu")
    size, first = slots.shape[0], slots.storage_offset()
    around = memory.whole(slots).cpu().clone()
    want.window_out_cache_loc = around[first : first + size]
    run(build)
    oracle.run(want)
    assert torch.equal(memory.whole(slots).cpu(), around)
    building.assert_same(build, want)


@pytest.mark.kernel
@pytest.mark.parametrize("row", ROWS, ids=["shared", "whole"])
def test_kernel_and_slots(row: tuning.Tuning, device: str) -> None:
    rng = random.Random(f"step {row}")
    for _ in range(100 if device == "cuda" else 16):
        check_slots(lambda build: launch.launch(build, row, xkv.platform(device)), step(rng, device))


def test_reference_and_slots() -> None:
    rng = random.Random("step")
    for _ in range(200):
        check_slots(reference.run, step(rng, "cpu"))


@pytest.mark.parametrize("shard", [Shard(2, 1), Shard(3, 0, 16), Shard(5, 4, 4)], ids=str)
def test_positions_without_a_list(shard: Shard) -> None:
    """The oracle's: of rows that are too long for a list they are the same ones."""
    end = (1 << 20) + 77
    found = rank_positions(shard, end)
    assert not isinstance(found, list)
    listed = [t for t in range(end) if t // shard.interleave % shard.size == shard.rank]
    assert len(found) == len(listed)
    assert [found[n] for n in range(len(found))] == listed
    assert bisect_left(found, end - 70) == bisect_left(listed, end - 70)
