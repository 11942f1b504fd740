"""The plugin's own kernels against plain Python, compiled for GPUs that are not here, and launched."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
import torch
from compiling import GPUS, need
from conftest import INTERPRETED
from launchers import Compiled, Launcher, Nested
from recorded import Recorded, arguments, on_gpu

from xkv.cli.check.memory import SENTINEL, guarded, guarded_1d, whole
from xkv.cli.kernels.compiling import plugged
from xkv.integrations.vllm import earlier, indices, kernels, launching, tables
from xkv.launch import triton_launcher
from xkv.params import Build

I32, I64 = torch.int32, torch.int64


def pointers(tensors: list[torch.Tensor], device: str) -> torch.Tensor:
    return torch.tensor([x.data_ptr() for x in tensors], dtype=torch.uint64).to(device)


def ints(values: Any, device: str, dtype: torch.dtype = I32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@pytest.mark.kernel
@pytest.mark.parametrize("window", [False, True])
def test_gather(device: str, window: bool) -> None:
    """Rows out of range are rows of zeros, counts beyond the width are cut, all else stays."""
    widths, num_rows, batch, padded = [5, 2000], 4, 5, 7
    rows, counts = [2, -1, 0, 99, 3], [[3, 1, 5, 0], [1, 2000, 1500, 2500]]
    computed, reach, sizes = [0, 0, 40, 900], [0, 100], [16, 64]
    src = [torch.randint(1 << 20, (num_rows, w), dtype=I32, device=device) for w in widths]
    out = [guarded(padded, w, w, I32, device) for w in widths]
    assert tables.gather_block_tables(
        (2, padded), ints(rows, device), pointers(src, device), pointers(out, device),
        ints(widths, device, I64), ints(counts, device), num_rows, batch,
        ints(computed, device), ints(reach, device), ints(sizes, device),
        MASK_SLIDING_WINDOW=window, BLOCK_SIZE=1024,
    )  # fmt: skip
    for g, width in enumerate(widths):
        for b in range(padded):
            want = [SENTINEL] * width
            row = rows[b] if b < batch else -1
            if 0 <= row < num_rows:
                live = min(counts[g][row], width)
                want[:live] = src[g][row, :live].tolist()
                null = max(computed[row] - reach[g], 0) // sizes[g] if window and reach[g] else 0
                want[: min(null, live)] = [0] * min(null, live)
            else:
                want = [0] * width
            assert out[g][b].tolist() == want, (g, b)
        assert (whole(out[g]) == SENTINEL).sum() >= 48


@pytest.mark.kernel
def test_slots_stay_within_the_buffer_and_the_row(device: str) -> None:
    """Positions that no column has, past int32 or below zero, have no slot; the end holds."""
    table = ints([[10, 11], [20, 21], [30, 31]], device)
    starts = ints([0, 3, 6, 40], device)  # the last says more tokens than there is room for
    positions = ints([0, 7, 8, -1, 2**33, 5, 3, 4], device, I64)
    out = guarded_1d(8, I64, device)
    assert tables.slot_mapping(
        (4,), 8, 8, starts, positions, table, 2, out, KV_CACHE_BLOCK_SIZE=4, TOTAL_CP_WORLD_SIZE=1,
        TOTAL_CP_RANK=0, CP_KV_CACHE_INTERLEAVE_SIZE=1, PAD_ID=-1, BLOCK_SIZE=1024,
    )  # fmt: skip
    assert out.tolist() == [40, 47, -1, -1, -1, 85, 123, 124]
    assert (whole(out) == SENTINEL).sum() == 48


@pytest.mark.kernel
def test_slots_past_int32(device: str) -> None:
    """A cache of more than 2**31 tokens."""
    table, out = ints([[2**30 + 1]], device), guarded_1d(3, I64, device)
    assert tables.slot_mapping(
        (2,), 1, 3, ints([0, 1], device), ints([5], device, I64), table, 1, out, 16, 1, 0, 1, -1, 1024
    )
    assert out.tolist() == [(2**30 + 1) * 16 + 5, -1, -1]


@pytest.mark.kernel
def test_page_indices_leave_what_they_cannot_say(device: str) -> None:
    out, table, sums = guarded_1d(4, I32, device), ints([[1, 2], [3, 4]], device), ints([0, 2, 3], device)
    assert not indices.expand_page_indices((2,), out, table, 2, 1, sums, sums, 48, 1024)
    assert not indices.expand_page_indices((2,), out, table, 2, 1, sums, sums[:1], 1, 1024, CLAMP_TAIL=True)
    assert not indices.expand_page_indices((2,), out, table, 2, 2, sums, sums, 1, 1024)
    assert not indices.expand_page_indices((2,), out, table, 3, 1, sums, sums, 1, 1024)
    assert not indices.expand_page_indices((3,), out, table, 2, 1, sums, sums, 1, 1024)
    assert not indices.expand_page_indices((2,), out, table.float(), 2, 1, sums, sums, 1, 1024)
    assert not indices.copy_page_indices((2,), out, table, 3, sums, 1024)
    assert not indices.copy_page_indices((3,), out, table, 2, sums, 1024)
    assert not indices.copy_page_indices((2,), out, table, 2, sums[:2], 1024)
    assert (whole(out) == SENTINEL).all()
    assert indices.copy_page_indices((2,), out, table, 2, sums, 1024)
    assert out.tolist() == [1, 2, 3, SENTINEL]


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [I32, I64])
def test_page_indices_stay_within_the_buffer_and_the_row(device: str, dtype: torch.dtype) -> None:
    """Rows of many tiles in several parts; sums that fall, are negative, or lie past the end."""
    width = 20000
    table = torch.randint(1 << 20, (5, width), dtype=I32, device=device)
    far = 2**31 - 1 if dtype is I32 else 2**63 - 1
    for sums in (
        [0, 3, 17003, 17003, 17503, 17504], [0, width, width + 9, width + 9, 3 * width, 3 * width + 1],
        [5, 2, -1, 9, far, 4], [-far, far, -far, 100, 60000, far], [far, far, far, far, 0, 3],
    ):  # fmt: skip
        out = guarded_1d(60000, I32, device)
        want = [SENTINEL] * 60000
        for b in range(5):
            begin, end = min(sums[b], 60000), max(min(sums[b + 1], 60000), 0)
            if begin >= 0 and end > begin:
                count = min(end - begin, width)
                want[begin : begin + count] = table[b, :count].tolist()
        assert indices.copy_page_indices((5,), out, table, width, ints(sums, device, dtype), 1024)
        assert out.tolist() == want, sums
        assert (whole(out) == SENTINEL).sum() == want.count(SENTINEL) + whole(out).numel() - 60000


def test_page_indices_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what is launched is what would be launched if nothing were remembered."""
    launched: list[list[Any]] = []
    built: list[Build] = []
    monkeypatch.setattr(indices.launch, "run", lambda build: built.append(build) or Recorded(build, launched))
    monkeypatch.setattr(indices, "served", lambda _: 0)
    indices.forget()
    rng, fast = random.Random(3), 0
    for _ in range(80):
        batch, width, stride = rng.randint(1, 40), rng.randint(1, 6000), rng.randint(0, 5)
        table = torch.zeros(batch + rng.randint(0, 3), width + stride, dtype=I32)[:, :width]
        sums, out = torch.zeros(batch + 1, dtype=I32), torch.zeros(rng.randint(1, 9000), dtype=I32)
        size = rng.choice([1, 16])
        sources = on_gpu(table), width + stride, 1, on_gpu(sums), None
        call = ((batch,), on_gpu(out), *sources, size, 1024)
        count = len(built)
        assert indices.expand_page_indices(*call)
        if len(built) > count:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(indices.LaunchCache, "get", lambda *_: None)
            assert indices.expand_page_indices(*call)
        assert launched[-1] == arguments(built[-1])
        fast += 1
    indices.forget()
    assert fast > 60


@pytest.mark.skipif(INTERPRETED, reason="interpreted, CPU tensors are served")
def test_cpu_tensors_are_not_served() -> None:
    out, table, sums = torch.zeros(4, dtype=I32), ints([[1, 2]], "cpu"), ints([0, 2], "cpu")
    assert not indices.copy_page_indices((1,), out, table, 2, sums, 1024)
    assert not tables.slot_mapping((2,), 1, 4, sums, sums, table, 2, out.long(), 4, 1, 0, 1, -1, 1024)


def test_an_earlier_warmup_compiles_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM 0.29 gives its arguments by position, 0.30 and 0.31 by name."""
    seen: list[Any] = []
    monkeypatch.setattr(tables.slots, "warmup", lambda *args: seen.append(args))
    starts, positions, table, out = (torch.zeros(1, dtype=x) for x in (I32, I64, I32, I64))
    names = {"TOTAL_CP_WORLD_SIZE": 2, "PAD_ID": -1, "KV_CACHE_BLOCK_SIZE": 16, "BLOCKS_PER_KV_BLOCK": 1}
    earlier.warm_slot_mapping_of_kernel_blocks(2, 2, starts, positions, table, 7, 16, out, **names)
    given = {"query_start_loc_ptr": starts, "positions_ptr": positions, "block_table_ptr": table}
    given |= {"slot_mapping_ptr": out, "num_tokens": 2, "max_num_tokens": 2, "block_table_stride": 7}
    earlier.warm_slot_mapping_of_kernel_blocks(**given, block_size=16, **names)
    tables.warm_slot_mapping(starts, positions, table, out, 2, -1)
    assert seen[0] == seen[1] == seen[2]


ARCHES = ("sm90", "sm100", "gfx942", "gfx950")


def slots_arguments(groups: bool, number: int) -> tuple[Any, ...]:
    given = (I64, I32, I32, I64, torch.uint64, I64, I32, torch.bool, torch.bool)
    if not groups:
        given = (I64, None, I32, I64, I32, None, None, None, None)
    return (*given, number, number % 2**31, number, number, number, *[number % 2**31] * 3)


@pytest.mark.compile
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("variant", ["window", "gather", "pages", "v1", "v1 cp", "v2", "v2 cp"])
def test_one_machine_code_serves_every_number(arch: str, variant: str) -> None:
    """1, multiples of 16 and what needs int64 are the same kernel: nothing compiles while serving."""
    where = GPUS[arch]
    need(where)
    first, _, second = variant.partition(" ")
    made = []
    kernel = {
        "window": kernels.gather_block_tables, "gather": kernels.gather_block_tables,
        "pages": kernels.copy_page_indices, "v1": kernels.slot_mappings, "v2": kernels.slot_mappings,
    }[first]  # fmt: skip
    with plugged(kernel, where):
        for number in (1, 16, 7, 2**40 + 3):
            if kernel is kernels.slot_mappings:
                constexprs: tuple[Any, ...] = (first == "v2", second == "cp", -1, 1024)
                args = slots_arguments(first == "v2", number)
            elif kernel is kernels.copy_page_indices:
                constexprs, args = indices.PAGES_CONSTEXPRS, (I32, I32, I32, number, number, number)
            else:
                constexprs = (first == "window", 2048)
                args = (I32, torch.uint64, torch.uint64, I64, I32, I32, I32, I32, number, number)
            made.append(kernel.warmup(*args, *constexprs, grid=(1,), num_warps=8))
    assert all(x is made[0] for x in made)
    assert made[0].asm["cubin" if where.vendor == "cuda" else "hsaco"]
    if where.vendor == "hip":
        assert ".vgpr_spill_count: 0" in made[0].asm["amdgcn"]


@pytest.mark.parametrize("kind", [Launcher, Nested])
def test_the_second_launch_is_the_driver_s(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this call's pointers, integers, grid and stream; another grid needs nothing compiled."""
    run, front = kind(), []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args: front.append((grid, args))

        def warmup(self, *args: Any, grid: Any) -> Any:
            return Compiled(run)

    monkeypatch.setattr(kernels, "slot_mappings", Kernel())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 77, raising=False)
    watched: list[bool] = [False]
    monkeypatch.setattr(launching, "launch_hooks_active", lambda: watched[0])
    launch = launching.Launcher("slot_mappings")
    x, y = torch.zeros(4, dtype=I32), torch.zeros(4, dtype=I32)
    launch(0, (3, 1, 1), (x, None), (5,), ("C",))
    assert front == [((3, 1, 1), (x, None, 5, "C"))]
    launch(0, (3, 1, 1), (y, None), (6,), ("C",))
    launch(0, (4, 2, 1), (x, None), (7,), ("C",))
    assert len(front) == 1
    seen = [[v for v in call if v is not False] for call in run.calls]
    flat = [[*call[:-1], *call[-1]] if isinstance(call[-1], list) else call for call in seen]
    assert [call[:4] for call in flat] == [[3, 1, 1, 77], [4, 2, 1, 77]]
    assert [call[-4:] for call in flat] == [[y.data_ptr(), None, 6, "C"], [x.data_ptr(), None, 7, "C"]]
    launch(0, (3, 1, 1), (x.long(), None), (5,), ("C",))  # another dtype
    watched[0] = True
    launch(0, (3, 1, 1), (x, None), (5,), ("C",))
    assert len(front) == 3
    assert len(run.calls) == 2


def test_an_unknown_launcher_keeps_the_front_door(monkeypatch: pytest.MonkeyPatch) -> None:
    front: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args: front.append(grid)

        def warmup(self, *args: Any, grid: Any) -> Any:
            return object()

    assert triton_launcher.record(object(), 1) is None
    monkeypatch.setattr(kernels, "slot_mappings", Kernel())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    launch = launching.Launcher("slot_mappings")
    for _ in range(2):
        launch(0, (3, 1, 1), (torch.zeros(1),), (), ("C",))
    assert front == [(3, 1, 1)] * 2


@pytest.mark.parametrize(
    ("rows", "groups", "most", "want", "few"),
    [(1, 1, 64, 64, 64), (8, 2, 16, 16, 4), (256, 1, 64, 4, 1), (256, 3, 64, 1, 1), (1, 1, 0, 1, 1)],
)
def test_parts(rows: int, groups: int, most: int, want: int, few: int) -> None:
    """Few parts: a read of a count each, about half a wave of them or one a row."""
    assert launching.parts(rows, groups, most) == want
    assert launching.few_parts(rows, groups, most) == few
