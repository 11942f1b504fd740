"""What only a GPU shows: graphs, streams, and that an op is one kernel; test_sizes_gpu.py: sizes."""

from __future__ import annotations

import building
import pytest
import torch
from cases import CASES, make

import xkv
from xkv import reference
from xkv.launch import launch
from xkv.launch.grid import make_schedule
from xkv.params import CSR, SLOTS, TABLE, Build, View

pytestmark = pytest.mark.gpu


def expect(build: Build) -> Build:
    want = building.twin(build)
    reference.run(want)
    return want


@pytest.mark.parametrize("form", [TABLE, CSR, SLOTS], ids=["table", "csr", "slots"])
@pytest.mark.parametrize("page_size", [1, 64])
def test_graph_replay_with_other_lengths_and_rows(form: int, page_size: int) -> None:
    case = CASES["slots" if form == SLOTS else "skewed"]
    build = make(case, form, page_size, 1, torch.int32, "cuda")
    launch.run(build)  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch.run(build)
    for step in range(5):
        build.seq_lens.copy_(torch.randint_like(build.seq_lens, 0, 20 * page_size + step))
        build.req_pool_indices.copy_(torch.randint_like(build.req_pool_indices, 0, 5))
        want = expect(build)
        graph.replay()
        building.assert_same(build, want)


def test_side_stream() -> None:
    """The launch goes to the current stream: in a capture of that one, nothing runs before a replay."""
    build = make(CASES["skewed"], TABLE, 16, 1, torch.int32, "cuda")
    before, want = building.twin(build), expect(build)
    launch.run(building.twin(build))  # compiles outside of the capture
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
        launch.run(build)
    torch.cuda.synchronize()
    building.assert_same(build, before)
    graph.replay()
    torch.cuda.synchronize()
    building.assert_same(build, want)


def test_sync_free() -> None:
    """With out= nothing syncs: torch raises on one."""
    build = make(CASES["skewed"], TABLE, 16, 1, torch.int32, "cuda")
    args = build.req_to_token, build.req_pool_indices, build.seq_lens
    view = build.views[0]
    csr = xkv.KVIndices(
        torch.empty(7, dtype=torch.int32, device="cuda"),
        torch.empty(4000, dtype=torch.int32, device="cuda"),
        torch.empty(6, dtype=torch.int32, device="cuda"),
    )
    slots = torch.empty(100, dtype=torch.int64, device="cuda")
    status = xkv.Status("cuda")
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        xkv.build_page_table(*args, page_size=16, out=view.out, status=status)
        xkv.build_kv_indices(*args, out=csr, status=status)
        xkv.build_slot_mapping(*args, build.seq_lens, out=slots, status=status)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("form", [TABLE, CSR, SLOTS], ids=["table", "csr", "slots"])
@pytest.mark.parametrize("name", ["skewed", "two views", "empty batch"])
def test_one_kernel(form: int, name: str) -> None:
    case = CASES["slots"] if form == SLOTS else CASES[name]
    build = make(case, form, 16, 1, torch.int32, "cuda")
    launch.run(build)
    assert kernels(lambda: launch.run(build)) == ["xkv_build"]


def kernels(call: object) -> list[str]:
    """The names of what runs on the GPU during the call, copies and fills included."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()  # type: ignore[operator]
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_that_is_not_current() -> None:
    build = make(CASES["skewed"], TABLE, 16, 1, torch.int32, "cuda:1")
    want = expect(build)
    with torch.cuda.device(0):
        launch.run(build)
    torch.cuda.synchronize(1)
    building.assert_same(build, want)


def test_cost_follows_live_tokens() -> None:
    """A capacity of 1M costs no more programs than one of 128K."""
    from xkv import dispatch

    where = xkv.platform("cuda")
    row = dispatch.tuning_row(where, "strided_far", 256)
    for capacity in (1 << 17, 1 << 20):
        source = torch.empty(1, 1, dtype=torch.int32, device="cuda").expand(1, capacity)
        lens = torch.zeros(256, dtype=torch.int64, device="cuda")
        out = torch.empty(1, dtype=torch.int32, device="cuda").expand(256, capacity // 64)
        build = Build(source, lens, lens, TABLE, 64, 1, 64, (View(out),))
        grid = make_schedule(build, row, where).grid
        assert grid[0] * grid[1] <= where.compute_units * row.programs_per_cu + 256
