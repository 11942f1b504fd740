"""Random batches for vLLM's call sites, and a step with its kernel and with ours, compared."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import GPUS

from xkv.cli.check.memory import guarded, whole

BIG = 24 if GPUS else 3  # how much larger batches are on a GPU than in the interpreter


def both(kernel: Any, step: Callable[[], None], written: list[torch.Tensor], graph: bool = False) -> None:
    """A step with our launch and with vLLM's kernel leaves the same, guard words included."""
    start = [whole(x).clone() for x in written]
    launches: list[bool] = []
    ours = kernel.xkv_launch

    def spied(*args: Any, **kwargs: Any) -> bool:
        launches.append(ours(*args, **kwargs))
        return launches[-1]

    def run(launch: Callable[..., bool], captured: bool) -> list[torch.Tensor]:
        kernel.xkv_launch = launch
        try:
            step()  # compiles
            if captured:
                replay = torch.cuda.CUDAGraph()
                with torch.cuda.graph(replay):
                    step()
            for x, old in zip(written, start, strict=True):
                whole(x).copy_(old)
            replay.replay() if captured else step()
        finally:
            kernel.xkv_launch = ours
        return [whole(x).clone() for x in written]

    got = run(spied, graph)
    assert launches
    assert all(launches), "left to vLLM's kernel"
    want = run(lambda *args, **kwargs: False, False)
    for a, b in zip(got, want, strict=True):
        if not torch.equal(a, b):
            at = (a != b).nonzero().flatten()[:8]
            raise AssertionError(f"at {at.tolist()}: {a[at].tolist()}, vLLM's {b[at].tolist()}")


pytestmark_kernel = [
    pytest.mark.kernel,
    pytest.mark.parametrize("seed", range(12 if GPUS else 3)),
    pytest.mark.parametrize(
        "graph", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["eager", "graph"]
    ),
]


def random_kernel_test(function: Callable[..., None]) -> Callable[..., None]:
    for mark in pytestmark_kernel:
        function = mark(function)
    return function


class Batch:
    """Requests: where each one's tokens begin, and their positions."""

    def __init__(self, rng: random.Random, device: str, longest: int) -> None:
        self.num_reqs = rng.randint(1, 4 * BIG)
        queries = [rng.choice([0, 1, 1, 1, 2, rng.randint(1, 40 * BIG)]) for _ in range(self.num_reqs)]
        queries = [min(n, longest) for n in queries]
        starts = [rng.randint(0, longest - n) for n in queries]
        self.tokens = sum(queries)
        self.room = self.tokens + rng.choice([0, 1, 7, 1500])
        at = torch.tensor([0, *queries]).cumsum(0).int()
        self.query_start_loc = at.to(device)
        flat = [p for s, n in zip(starts, queries, strict=True) for p in range(s, s + n)]
        self.positions = torch.tensor(flat, dtype=torch.int64, device=device)
        self.starts = torch.tensor(starts, dtype=torch.int32, device=device)


def fill(table: torch.Tensor) -> None:
    table.copy_(torch.randint(1 << 20, table.shape, dtype=table.dtype))


def block_tables(engine: SimpleNamespace, rng: random.Random, batch: Batch, device: str, longest: int) -> Any:
    """Model runner V2's, with guard words around what is written."""
    groups = rng.randint(1, 3)
    sizes = [rng.choice([1, 16, 64, 528]) for _ in range(groups)]
    cp = rng.choice([1, 1, 2])
    tables = engine.v2.BlockTables(
        sizes, batch.num_reqs + 3, batch.room,
        [(-(-longest // size) + rng.randint(0, 3) + 3) // 4 * 4 for size in sizes], torch.device(device),
        cp, rng.randrange(cp), rng.choice([1, 16]) if min(sizes) > 1 else 1,
        [rng.random() < 0.8 for _ in sizes], [rng.random() < 0.7 for _ in sizes],
        [rng.choice([0, 30]) for _ in sizes],
    )  # fmt: skip
    for table in tables.block_tables:
        fill(table.gpu)
    tables.input_block_tables = [
        guarded(*t.gpu.shape, t.gpu.shape[1], torch.int32, device) for t in tables.block_tables
    ]
    tables.slot_mappings = guarded(groups, batch.room, batch.room, torch.int64, device)
    widths = [table.gpu.shape[1] for table in tables.block_tables]
    counts = [[rng.choice([0, 1, w, rng.randint(0, w)]) for _ in range(batch.num_reqs + 3)] for w in widths]
    tables.num_blocks.gpu = torch.tensor(counts, dtype=torch.int32, device=device)
    tables.init_block_table_layout_tensors()
    return tables
