"""Builds whose prefix sums are the caller's: the kernel against the oracle, and the oracle against a loop."""

from __future__ import annotations

import random

import building
import pytest
import torch
from compiling import GPUS, need, specialization

import xkv
from xkv import dispatch, reference
from xkv.cli.check import memory
from xkv.cli.kernels.compiling import compiled
from xkv.cli.kernels.resources import read
from xkv.cli.kernels.variants import meta, plain
from xkv.launch import launch
from xkv.launch.grid import make_schedule
from xkv.params import CSR, TABLE, Build, View
from xkv.platforms import tuning

# tiles so small that there is a second phase, and large enough that there is none
ROWS = [
    tuning.Tuning("contiguous", None, 16, 1, 2, 1, 2, 16, 1, 2, 16, True, "test"),
    tuning.Tuning("contiguous", None, 64, 4, 2, 9, 2, 64, 1, 2, 16, False, "test"),
]


def stream(rng: random.Random, device: str, *, hostile: bool = False) -> Build:
    """Token CSR whose rows lie apart from each other, in any order."""
    width, batch = rng.randint(1, 150), rng.randint(1, 7)
    source = building.paged_source(rng, 4, width, 16, 1, torch.int32, device)
    lens = [rng.randint(0, width) for _ in range(batch)]
    at, begins = rng.randint(0, 3), [0] * batch
    for b in rng.sample(range(batch), batch):
        begins[b] = at
        at += lens[b] + rng.choice([0, 2])
    if hostile:
        begins = [rng.choice([x, x, -1, -(2**31), 2**31 - 1]) for x in begins]
    ints = lambda x: torch.tensor(x, dtype=rng.choice([torch.int32, torch.int64]), device=device)  # noqa: E731
    room = at - rng.choice([0, 0, 9]) if at > 9 else at
    view = View(memory.guarded_1d(room, torch.int32, device), kv_indptr=ints(begins))
    rows = [rng.randrange(4) for _ in range(batch)]
    return Build(
        source, ints(rows), ints(lens), CSR, 1, 1, 1, (view,), report_missing=False, indptr_is_input=True
    )


@pytest.mark.kernel
@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=["shared", "whole"])
def test_stream(row: tuning.Tuning, hostile: bool, device: str) -> None:
    rng = random.Random(f"{row} {hostile}")
    for _ in range(60 if device == "cuda" else 8):
        build = stream(rng, device, hostile=hostile)
        want = building.twin(build)
        launch.launch(build, row, xkv.platform(device))
        reference.run(want)
        building.assert_same(build, want)


def test_stream_by_definition() -> None:
    rng = random.Random(7)
    for _ in range(40):
        build = stream(rng, "cpu")
        view = build.views[0]
        want = memory.whole(view.out).tolist()
        for b, begin in enumerate(view.kv_indptr.tolist()):
            for j in range(build.seq_lens[b]):
                if begin + j < view.out.shape[0]:
                    want[view.out.storage_offset() + begin + j] = int(
                        build.req_to_token[build.req_pool_indices[b], j]
                    )
        indptr = view.kv_indptr.clone()
        reference.run(build)
        assert memory.whole(view.out).tolist() == want
        assert torch.equal(view.kv_indptr, indptr)


@pytest.mark.kernel
def test_leading_zeros_of_tables_are_the_callers(device: str) -> None:
    rng = random.Random(3)
    source = building.paged_source(rng, 4, 100, 16, 1, torch.int32, device)
    rows, lens = torch.tensor([1, 3], device=device), torch.tensor([100, 17], device=device)
    sums = [memory.guarded_1d(3, torch.int32, device) for _ in range(2)]
    view = View(memory.guarded(2, 7, 9, torch.int32, device), cu_seqlens_k=sums[0], cu_seqlens_q=sums[1])
    build = Build(source, rows, lens, TABLE, 16, 1, 16, (view,), query_len=4, indptr_is_input=True)
    want = building.twin(build)
    launch.run(build)
    reference.run(want)
    building.assert_same(build, want)
    assert [x.tolist() for x in sums] == [[memory.SENTINEL, 100, 117], [memory.SENTINEL, 4, 8]]


@pytest.mark.compile
@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
@pytest.mark.parametrize("indptr", [torch.int32, torch.int64])
def test_compiles_to_machine_code(arch: str, indptr: torch.dtype) -> None:
    """Rows are shared out, so that both places that look a row's beginning up are compiled."""
    where = GPUS[arch]
    need(where)
    build = plain(CSR, 1, 1, 64)
    build.views[0].kv_indptr, build.indptr_is_input = meta(64, dtype=indptr), True
    row = next(row for row in dispatch.rows_of(where)[1] if row.access_pattern == "ragged")
    assert make_schedule(build, row, where).balance
    found = specialization(build, row, where)
    assert found["indptr_ptr"][0] == f"*i{indptr.itemsize * 8}"
    assert read(compiled(build, row, where)).spills == 0
