"""The plugin in vLLM 0.33.0's real modules: its loader, its call sites, and outputs equal bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm_steps
from compiling import GPUS
from vllm_batches import BIG, Batch, block_tables, both, fill, random_kernel_test
from vllm_engine import with_plugin

from xkv.cli.check.memory import guarded, guarded_1d
from xkv.cli.kernels.compiling import plugged
from xkv.integrations.patching import replacing
from xkv.integrations.vllm import kernels, table


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """vLLM's modules, the plugin loaded before them by vLLM's own loader."""
    with with_plugin(tmp_path_factory.mktemp("dist")) as found:
        yield found


def kernels_of(engine: SimpleNamespace) -> dict[str, Any]:
    return {
        "_copy_page_indices_kernel": engine.flashinfer._copy_page_indices_kernel,
        "_expand_page_indices_kernel": engine.aiter._expand_page_indices_kernel,
        "ComputeSlotMappingKernel.kernel": engine.v1._COMPUTE_SLOT_MAPPING_KERNEL.kernel,
        "_gather_block_tables_kernel": engine.v2._gather_block_tables_kernel,
        "_compute_slot_mappings_kernel": engine.v2._compute_slot_mappings_kernel,
    }


def test_the_loader_replaces_everything(engine: SimpleNamespace) -> None:
    found = kernels_of(engine)
    assert all(replacing.replaced(kernel) for kernel in found.values())
    (line,) = engine.lines
    assert line.endswith(
        f"replaces, where their modules are imported: {', '.join(row.name for row in table.REPLACED)}; "
        "leaves alone: nothing; not in this version: nothing"
    )


def test_loaded_again_nothing_changes(engine: SimpleNamespace) -> None:
    from xkv.integrations.vllm import load

    before = {name: type(kernel) for name, kernel in kernels_of(engine).items()}
    load()
    assert {name: type(kernel) for name, kernel in kernels_of(engine).items()} == before
    engine.lines.pop()


@random_kernel_test
def test_v1_slot_mapping(engine: SimpleNamespace, device: str, seed: int, graph: bool) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    block_size, cp = rng.choice([1, 16, 64, 528]), rng.choice([1, 1, 2, 4])
    longest = rng.choice([50, 300 * BIG])
    batch = Batch(rng, device, longest)
    width = -(-longest // (block_size * cp)) + rng.randint(0, 3)
    table = engine.v1.BlockTable(
        block_size, batch.num_reqs + 2, width, batch.room, False, torch.device(device),
        rng.choice([1, block_size]),
    )  # fmt: skip
    table.dcp_world_size, table.dcp_rank = cp, rng.randrange(cp)
    fill(table.block_table.gpu)
    table.slot_mapping.gpu = out = guarded_1d(batch.room, torch.int64, device)
    positions = torch.cat(
        [batch.positions, batch.positions.new_zeros(rng.randint(0, batch.room - batch.tokens))]
    )
    both(
        engine.v1._COMPUTE_SLOT_MAPPING_KERNEL.kernel,
        lambda: table.compute_slot_mapping(batch.num_reqs, batch.query_start_loc, positions), [out], graph,
    )  # fmt: skip


@random_kernel_test
def test_v2_gather(engine: SimpleNamespace, device: str, seed: int, graph: bool) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch = Batch(rng, device, longest := rng.choice([50, 900 * BIG]))
    tables = block_tables(engine, rng, batch, device, longest)
    order = torch.randperm(batch.num_reqs + 3)[: batch.num_reqs].int().to(device)
    computed = torch.randint(longest, (batch.num_reqs + 3,), dtype=torch.int32, device=device)
    dirty, padded = rng.randint(0, 2), batch.num_reqs + rng.randint(0, 2)

    def step() -> None:
        tables._num_dirty_rows = batch.num_reqs + dirty
        tables.gather_block_tables(order, padded, num_computed_tokens=computed if seed % 2 else None)

    both(engine.v2._gather_block_tables_kernel, step, list(tables.input_block_tables), graph)


@random_kernel_test
def test_v2_slot_mappings(engine: SimpleNamespace, device: str, seed: int, graph: bool) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch = Batch(rng, device, longest := rng.choice([50, 300 * BIG]))
    tables = block_tables(engine, rng, batch, device, longest)
    order = torch.randperm(batch.num_reqs + 3)[: batch.num_reqs].int()
    order[torch.rand(batch.num_reqs) < 0.1] = -1
    order = order.to(device)

    def step() -> None:
        tables.compute_slot_mappings(order, batch.query_start_loc, batch.positions, batch.tokens)

    both(engine.v2._compute_slot_mappings_kernel, step, [tables.slot_mappings], graph)


@random_kernel_test
def test_flashinfer_page_indices(engine: SimpleNamespace, device: str, seed: int, graph: bool) -> None:
    if graph:
        pytest.skip("vLLM makes these from the host's numbers, outside of its graphs")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    num_reqs, page_size, width = rng.randint(1, 5 * BIG), rng.choice([16, 64]), rng.choice([3, 500 * BIG])
    lens = torch.tensor([rng.randint(0, width * page_size) for _ in range(num_reqs)]).int().numpy()
    table = guarded(num_reqs, width, width + 4, torch.int32, device)
    fill(table)
    buffer = engine.v1.CpuGpuBuffer
    size = {"dtype": torch.int32, "device": torch.device(device), "pin_memory": False}
    builder = engine.flashinfer.FlashInferMetadataBuilder()
    builder.paged_kv_indptr, builder.paged_kv_last_page_len = (
        buffer(num_reqs + 3, **size),
        buffer(num_reqs + 3, **size),
    )
    blocks = -(-lens // page_size)
    builder.paged_kv_indices = out = guarded_1d(int(blocks.sum()) + 9, torch.int32, device)
    both(
        engine.flashinfer._copy_page_indices_kernel,
        lambda: builder._compute_flashinfer_kv_metadata(blocks, lens, table, num_reqs, page_size), [out],
    )  # fmt: skip


@random_kernel_test
def test_aiter_page_indices(engine: SimpleNamespace, device: str, seed: int, graph: bool) -> None:
    """The kernel's call as in `AiterMLAMetadataBuilder._build_decode`, which is too large to take."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    num_reqs, block_size, width = rng.randint(1, 5 * BIG), rng.choice([1, 16, 64]), rng.choice([3, 40 * BIG])
    lens = torch.tensor(
        [rng.choice([0, 1, rng.randint(0, width * block_size)]) for _ in range(num_reqs)], device=device
    ).int()
    indptr = torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()
    table = guarded(num_reqs, width, width + 4, torch.int32, device)
    fill(table)
    out = guarded_1d(int(lens.sum()) + 9, torch.int32, device)
    chunks = max(1, -(-width * block_size // 1024))
    both(
        engine.aiter._expand_page_indices_kernel,
        lambda: engine.aiter._expand_page_indices_kernel[(num_reqs, chunks)](
            out, table, table.stride(0), table.stride(1), indptr, lens,
            KERNEL_BLOCK_SIZE=block_size, BLOCK_SIZE=1024, CLAMP_TAIL=False,
        ), [out], graph,
    )  # fmt: skip


@pytest.mark.kernel
def test_a_clamped_tail_repeats_the_first_slot(engine: SimpleNamespace, device: str) -> None:
    kernel = engine.aiter._expand_page_indices_kernel
    table = torch.tensor([[7, 9]], dtype=torch.int32, device=device)
    out = torch.zeros(6, dtype=torch.int32, device=device)
    indptr, real = torch.tensor([0, 6]).int().to(device), torch.tensor([3]).int().to(device)
    kernel[(1, 1)](out, table, 2, 1, indptr, real, KERNEL_BLOCK_SIZE=4, BLOCK_SIZE=1024, CLAMP_TAIL=True)
    assert out.tolist() == [28, 29, 30, 28, 28, 28]


@pytest.mark.kernel
def test_past_its_width_a_token_has_no_slot(engine: SimpleNamespace, device: str) -> None:
    """Where vLLM's kernels read the next request's row (vllm #53982)."""
    tables = engine.v2.BlockTables([4], 2, 8, [2], torch.device(device))
    tables.block_tables[0].gpu.copy_(torch.tensor([[10, 11], [20, 21]]))
    starts = torch.tensor([0, 3, 4]).int().to(device)
    positions = torch.tensor([5, 8, 100000, 1], device=device)
    rows = torch.tensor([0, 1]).int().to(device)
    got = tables.compute_slot_mappings(rows, starts, positions, 4)
    assert got.tolist() == [[45, -1, -1, 81]]
    one = engine.v1.BlockTable(4, 2, 2, 8, False, torch.device(device), 1)
    one.block_table.gpu.copy_(torch.tensor([[10, 11], [20, 21]]))
    one.compute_slot_mapping(2, starts, positions)
    assert one.slot_mapping.gpu.tolist() == [45, -1, -1, 81, -1, -1, -1, -1]


@pytest.mark.interpret
def test_the_side_by_side(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls reach both kernels and are compared; what it times is for a GPU."""
    monkeypatch.setattr(vllm_steps, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(vllm_steps, "INPUTS", 2)
    monkeypatch.setattr(vllm_steps.timing, "launches", lambda *_: 1)
    for name in ("back_to_back", "host_rounds"):
        monkeypatch.setattr(vllm_steps.timing, name, lambda *_, **__: {"": [0.0]})
    steps = [
        *vllm_steps.slots(engine, "s", [40, 7], [3, 1], 1), *vllm_steps.slots(engine, "s", [9], [1], 2),
        *vllm_steps.gather(engine, "g", [40, 7], 2), *vllm_steps.pages(engine, "p", [40, 7]),
    ]  # fmt: skip
    assert len(steps) == 6
    for step in steps:
        ours = getattr(step.host, step.kernel)
        assert vllm_steps.measured(step)[-1] == "equal", step.name
        with monkeypatch.context() as patch:
            patch.setattr(ours, "xkv_launch", lambda *args, **kwargs: True)  # launches nothing
            assert vllm_steps.measured(step)[-1] == "DIFFERENT", step.name


@pytest.mark.compile
@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_vllm_s_warmup_compiles_ours(engine: SimpleNamespace, arch: str) -> None:
    """VLLM's start asks each kernel of this kind to compile."""
    owner, kernel = engine.v1._COMPUTE_SLOT_MAPPING_KERNEL, kernels.slot_mappings
    (key,) = owner.get_warmup_keys(
        kv_cache_block_size=16, total_cp_world_size=1, total_cp_rank=0, cp_kv_cache_interleave_size=1,
        block_table_stride=128,
    )  # fmt: skip
    with plugged(kernel, GPUS[arch]):
        owner.compile(key)
        ((cache, *_),) = kernel.device_caches.values()
        assert len(cache) == 1
