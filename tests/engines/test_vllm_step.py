"""Model runner V2's ``prepare_attn`` and V1's ``compute_slot_mapping``, replaced whole, beside vLLM's own."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiling import GPUS, need
from test_vllm_kernels import ARCHES
from vllm_batches import BIG, Batch, block_tables, fill, random_kernel_test
from vllm_engine import folder, with_plugin

from xkv.cli.check.memory import guarded_1d, whole
from xkv.cli.kernels.compiling import plugged
from xkv.integrations.patching import replacing
from xkv.integrations.vllm import kernels, step, table

RUNNER = "vllm.v1.worker.gpu.model_runner"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """vLLM's modules with the plugin, and the runner's method with nothing else of its file."""
    with with_plugin(tmp_path_factory.mktemp("dist")) as found:
        root = folder()
        path = root.joinpath(*RUNNER.split(".")).with_suffix(".py")
        (runner,) = (
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ClassDef) and node.name == "GPUModelRunner"
        )
        runner.body = [node for node in runner.body if getattr(node, "name", "") == "prepare_attn"]
        runner.bases, runner.decorator_list = [], []
        scope: dict[str, Any] = {"__name__": RUNNER}
        future = ast.parse("from __future__ import annotations").body
        exec(compile(ast.Module([*future, runner], []), str(path), "exec"), scope)
        row = next(row for row in table.METHODS if row.name == "GPUModelRunner.prepare_attn")
        assert row.replace(scope["GPUModelRunner"]) is None
        found.runner = scope["GPUModelRunner"]
        step.pad_of.cache_clear()
        yield found
        step.pad_of.cache_clear()


def runner_and_batch(engine: SimpleNamespace, seed: int, device: str) -> tuple[Any, Any]:
    """A runner, and a batch of random requests: some are none, some rows are a graph's padding."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch = Batch(rng, device, longest := rng.choice([50, 900 * BIG]))
    tables = block_tables(engine, rng, batch, device, longest)
    tables._num_dirty_rows = rng.choice([0, batch.num_reqs, batch.num_reqs + 2])
    order = torch.randperm(batch.num_reqs + 3)[: batch.num_reqs].int().to(device)
    computed = torch.randint(longest, (batch.num_reqs + 3,), dtype=torch.int32, device=device)
    runner = engine.runner()
    runner.pcp_manager, runner.block_tables = None, tables
    runner.req_states = SimpleNamespace(num_computed_tokens=SimpleNamespace(gpu=computed))
    given = SimpleNamespace(
        idx_mapping=order, num_reqs_after_padding=batch.num_reqs + rng.randint(0, 2),
        query_start_loc=batch.query_start_loc, positions=batch.positions,
        num_tokens_after_padding=rng.randint(batch.tokens, batch.room),
    )  # fmt: skip
    return runner, given


def outcome(
    runner: Any, batch: Any, call: Any, start: list[torch.Tensor], dirty: int, graph: bool = False
) -> list[Any]:
    """What a step returns and leaves, guard words included."""
    tables = runner.block_tables
    written = [*tables.input_block_tables, tables.slot_mappings]
    if graph:
        call(runner, batch)  # compiles
        tables._num_dirty_rows = dirty
        replay = torch.cuda.CUDAGraph()
        with torch.cuda.graph(replay):
            returned = call(runner, batch)
    for x, old in zip(written, start, strict=True):
        whole(x).copy_(old)
    tables._num_dirty_rows = dirty
    if graph:
        replay.replay()
        tables._num_dirty_rows = batch.idx_mapping.shape[0]
    else:
        returned = call(runner, batch)
    rows, slots = returned
    shapes = [(x.shape, x.stride(), x.data_ptr()) for x in (*rows, slots)]
    return [shapes, type(rows), tables._num_dirty_rows, *[whole(x).clone() for x in written]]


@random_kernel_test
def test_one_launch_for_a_step(
    engine: SimpleNamespace, device: str, seed: int, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        runner, batch = runner_and_batch(engine, 10 * seed + number, device)
        tables = runner.block_tables
        start = [whole(x).clone() for x in (*tables.input_block_tables, tables.slot_mappings)]
        dirty = tables._num_dirty_rows
        with monkeypatch.context() as patch:
            for name in ("_gather_block_tables_kernel", "_compute_slot_mappings_kernel"):
                patch.setattr(getattr(engine.v2, name), "xkv_launch", None)  # neither kernel is called
            got = outcome(runner, batch, engine.runner.prepare_attn, start, dirty, graph)
        with monkeypatch.context() as patch:
            for name in ("_gather_block_tables_kernel", "_compute_slot_mappings_kernel"):
                patch.setattr(getattr(engine.v2, name), "xkv_launch", lambda *_, **__: False)
            want = outcome(runner, batch, engine.runner.prepare_attn.xkv_original, start, dirty)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.kernel
def test_what_is_not_known_is_vllm_s(
    engine: SimpleNamespace, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, batch = runner_and_batch(engine, 1, device)
    launched: list[Any] = []
    monkeypatch.setattr(step, "both", lambda *args: launched.append(args))
    runner.pcp_manager = SimpleNamespace(prepare_attn=lambda given: ("theirs", given))
    assert engine.runner.prepare_attn(runner, batch) == ("theirs", batch)
    runner.pcp_manager = None
    known = type(runner.block_tables)

    class Other(known):  # type: ignore[misc, valid-type]
        def compute_slot_mappings(self, *args: Any, **kwargs: Any) -> Any:
            return "other"

    runner.block_tables.__class__ = Other
    assert engine.runner.prepare_attn(runner, batch)[1] == "other"
    runner.block_tables.__class__ = known
    assert not launched
    engine.runner.prepare_attn(runner, batch)
    assert len(launched) == 1


def test_a_kernel_that_is_not_replaced_leaves_the_step(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    step.pad_of.cache_clear()
    assert step.pad_of(engine.v2.BlockTables) == -1
    step.pad_of.cache_clear()
    with monkeypatch.context() as patch:
        kernel = engine.v2._gather_block_tables_kernel
        patch.setattr(kernel, "__class__", type(kernel).xkv_base)
        assert step.pad_of(engine.v2.BlockTables) is None
    step.pad_of.cache_clear()


@random_kernel_test
def test_v1_without_its_dispatch(
    engine: SimpleNamespace, device: str, seed: int, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    size, longest = rng.choice([1, 16, 64]), rng.choice([50, 300 * BIG])
    batch = Batch(rng, device, longest)
    kind = engine.v1.BlockTable
    one = kind(
        size, batch.num_reqs + 2, -(-longest // size) + 1, batch.room, False, torch.device(device),
        rng.choice([1, size]),
    )  # fmt: skip
    one.dcp_world_size = rng.choice([1, 2])
    fill(one.block_table.gpu)
    one.slot_mapping.gpu = out = guarded_1d(batch.room, torch.int64, device)
    start = whole(out).clone()
    with monkeypatch.context() as patch:
        patch.setattr(type(engine.v1._COMPUTE_SLOT_MAPPING_KERNEL), "__call__", None)
        one.compute_slot_mapping(batch.num_reqs, batch.query_start_loc, batch.positions)
    got = whole(out).clone()
    whole(out).copy_(start)
    kernel = engine.v1.ComputeSlotMappingKernel.kernel
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "xkv_launch", lambda *_, **__: False)
        one.compute_slot_mapping(batch.num_reqs, batch.query_start_loc, batch.positions)
    assert torch.equal(got, whole(out))
    whole(out).copy_(start)
    one.slot_mapping_mode = engine.v1.SlotMappingMode.NONE
    one.compute_slot_mapping(batch.num_reqs, batch.query_start_loc, batch.positions)
    assert torch.equal(start, whole(out))


I32, I64, U64, BOOL = torch.int32, torch.int64, torch.uint64, torch.bool


@pytest.mark.compile
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("cp", [1, 2])
def test_one_machine_code_serves_every_number(arch: str, window: bool, cp: int) -> None:
    where, made = GPUS[arch], []
    need(where)
    given = (I32, U64, U64, I64, I32, I32, I32, I32, I64, I32, I64, BOOL, BOOL)
    with plugged(kernels.gather_and_slots, where):
        for number in (1, 16, 2**40 + 3):
            small = number % 2**31
            numbers = (number, number, *[small] * 3, number, number, *[small] * 3)
            args = (*given, *numbers, *step.constexprs(window, cp, -1))
            made.append(kernels.gather_and_slots.warmup(*args, grid=(1,), num_warps=8))
    assert all(x is made[0] for x in made)
    if where.vendor == "hip":
        assert ".vgpr_spill_count: 0" in made[0].asm["amdgcn"]


def test_replaced_by_the_loader(engine: SimpleNamespace) -> None:
    assert hasattr(engine.v1.BlockTable.compute_slot_mapping, "xkv_original")
    assert replacing.replaced(engine.v1.ComputeSlotMappingKernel.kernel)
