"""Shards beside the kernels of decode context parallelism of SGLang and vLLM, from the wheels' files.

XKV_ENGINES names a folder with ``sglang-0.5.23`` and ``vllm-0.33.0``; the engines need not be importable.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_texts import load

import xkv

pytestmark = pytest.mark.interpret
I32, I64 = torch.int32, torch.int64
SGLANG = "sglang-0.5.23", "sglang/kernels/ops/attention/dcp_kernels.py"
VLLM_LENGTHS = "vllm-0.33.0", "vllm/v1/worker/gpu/cp_utils.py"
VLLM_SLOTS = "vllm-0.33.0", "vllm/v1/worker/gpu/block_table.py"
seeds = pytest.mark.parametrize("seed", range(6))


def kernel(wheel: str, file: str, name: str) -> Any:
    """A kernel as its file has it."""
    engines = os.environ.get("XKV_ENGINES")
    if not engines or not Path(engines, wheel, file).is_file():
        pytest.skip(f"XKV_ENGINES names no folder with {wheel}")
    return load(SimpleNamespace(path=Path(engines, wheel, file), name=name, module=name))


def ints(values: Any, dtype: torch.dtype = I32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


class Step:
    """A step of an engine whose pool has pages of ``page_size`` tokens on each rank.

    Attributes:
        shard: the rank's.
        lens: tokens of each request.
        rows: where the source has them.
        blocks: the page ids of every row; ``slots``: the slots, on all ranks, of every token.
    """

    def __init__(self, seed: int, source: Any) -> None:
        rng = random.Random(seed)
        size = rng.choice([2, 3, 4, 8])
        self.page_size = rng.choice([1, 16, 64]) if source == "global" else rng.choice([16, 64, 528])
        interleave = 1 if source == "global" else rng.choice([1, 2, 8, 16])
        self.shard = xkv.Shard(size, rng.randrange(size), interleave, source)
        self.lens = [rng.choice([0, 1, size, rng.randint(0, 900)]) for _ in range(rng.randint(1, 6))]
        self.rows = [rng.randrange(5) for _ in self.lens]
        unit = self.page_size * size
        width = 900 // unit + 1
        generator = torch.Generator().manual_seed(seed)
        self.blocks = torch.randperm(5 * width + 3, generator=generator)[: 5 * width].view(5, width).to(I32)
        self.slots = (self.blocks[..., None] * unit + torch.arange(unit, dtype=I32)).view(5, -1)
        self.local_lens = [self.shard.local_length(n) for n in self.lens]
        self.rng = rng


@seeds
def test_vllm_s_lengths(seed: int) -> None:
    """Of plain decode, and of several query tokens: the row's own length."""
    own, step = kernel(*VLLM_LENGTHS, "_dcp_local_seq_lens_kernel"), Step(seed, "local")
    shard, batch = step.shard, len(step.lens)
    want = torch.full((batch,), -1, dtype=I32)
    own[(1,)](
        want, ints(step.lens), shard.size, shard.rank, shard.interleave, batch, batch, BLOCK_SIZE=128
    )  # fmt: skip
    assert want.tolist() == step.local_lens
    builder = xkv.MetadataBuilder(
        "flash_attention", step.blocks, max_batch_size=8, max_context_len=900, page_size=16,
        source_page_size=step.page_size, shard=shard,
    )  # fmt: skip
    meta = builder.build(ints(step.rows), ints(step.lens), query_lens=3)
    assert meta.cache_seqlens.tolist() == want.tolist()
    assert meta.cu_seqlens_k.tolist() == [0, *want.cumsum(0).tolist()]
    assert meta.empty_rows.tolist() == [n == 0 for n in want.tolist()]
    assert meta.cu_seqlens_q.tolist() == [3 * n for n in range(batch + 1)]
    builder.check()


@seeds
def test_vllm_s_slots(seed: int) -> None:
    """-1 for tokens of other ranks."""
    own, step = kernel(*VLLM_SLOTS, "_compute_slot_mappings_kernel"), Step(seed, "local")
    shard, batch = step.shard, len(step.lens)
    query = [step.rng.randint(0, n) for n in step.lens]
    positions = [t for n, q in zip(step.lens, query, strict=True) for t in range(n - q, n)]
    starts = [0, *torch.tensor(query).cumsum(0).tolist()]
    want = torch.full((1, len(positions) + 5), 7, dtype=I64)
    pointer = torch.tensor([step.blocks.data_ptr()], dtype=torch.uint64)
    own[(1, batch + 1)](
        want.shape[1], ints(step.rows), ints(starts), ints(positions or [0], I64), pointer,
        ints([step.blocks.stride(0)], I64), ints([step.page_size]), torch.tensor([True]),
        torch.tensor([True]), want, want.stride(0), shard.rank, CP_SIZE=shard.size,
        CP_INTERLEAVE=shard.interleave, PAD_ID=-1, TRITON_BLOCK_SIZE=1024,
    )  # fmt: skip
    got = torch.full((want.shape[1],), 7, dtype=I64)
    status = xkv.Status("cpu")
    xkv.build_slot_mapping(
        step.blocks, ints(step.rows), ints(step.lens), ints(query), source_page_size=step.page_size,
        shard=shard, pad_value=-1, out=got, status=status,
    )  # fmt: skip
    assert got.tolist() == want[0].tolist()
    assert status.read() is None
    got.fill_(7)
    xkv.build_slot_mapping(
        step.blocks, ints(step.rows), ints(step.lens), positions=ints(positions, I64),
        query_start_loc=ints(starts), source_page_size=step.page_size, shard=shard, pad_value=-1, out=got,
        status=status,
    )  # fmt: skip
    assert got.tolist() == want[0].tolist()
    assert status.read() is None


@pytest.mark.parametrize("has_starts", [False, True], ids=["", "kv_start"])
@seeds
def test_sglang_s_indices(seed: int, has_starts: bool) -> None:
    own, step = kernel(*SGLANG, "create_triton_kv_indices_for_dcp_triton"), Step(seed, "global")
    shard, batch = step.shard, len(step.lens)
    starts = [step.rng.randint(0, n) if has_starts else 0 for n in step.lens]
    lens = [n - shard.local_length(start) for n, start in zip(step.local_lens, starts, strict=True)]
    indptr = [0, *torch.tensor(lens).cumsum(0).tolist()]
    want = torch.full((indptr[-1] + 3,), -7, dtype=I64)
    kv_start = ints(starts) if has_starts else None
    own[(batch,)](
        step.slots, ints(step.rows), ints(lens), ints(indptr), kv_start, want, step.slots.stride(0),
        shard.size, shard.rank,
    )  # fmt: skip
    got = xkv.KVIndices(
        torch.zeros(batch + 1, dtype=I32), torch.full_like(want, -7), torch.zeros(batch, dtype=I32)
    )
    xkv.build_kv_indices(
        step.slots, ints(step.rows), ints(step.lens), kv_start=kv_start, shard=shard, out=got
    )  # fmt: skip
    assert got.kv_indptr.tolist() == indptr
    assert got.kv_indices.tolist() == want.tolist()


@pytest.mark.parametrize("has_map", [False, True], ids=["", "v2p"])
@seeds
def test_sglang_s_page_table(seed: int, has_map: bool) -> None:
    """From virtual to physical pages too; what has no page there is page 0."""
    own, step = kernel(*SGLANG, "create_mla_kv_page_table_for_dcp"), Step(seed, "global")
    shard, batch, P = step.shard, len(step.lens), step.page_size
    pages = int(step.blocks.max()) + 1
    v2p = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)) if has_map else None
    if v2p is not None:
        v2p[::5] = -1
    width = max(-(-n // P) for n in step.local_lens) + 2
    want = torch.full((batch, width), -7, dtype=I32)
    own[(batch, -(-width // 16))](
        step.slots, ints(step.rows), ints(step.local_lens), want, v2p, step.slots.stride(0), want.stride(0),
        PHYSICAL_PAGE_SIZE=P, DCP_SIZE=shard.size, DCP_RANK=shard.rank, PAGES_PER_BLOCK=16, HAS_V2P=has_map,
    )  # fmt: skip
    got = torch.full_like(want, -7)
    xkv.build_page_table(
        step.slots, ints(step.rows), ints(step.lens), page_size=P, shard=shard, page_map=v2p,
        missing_id=0, out=got,
    )  # fmt: skip
    assert got.tolist() == want.tolist()
