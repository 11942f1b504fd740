"""Draft trees beside SGLang's kernels for draft decoding, from the wheel's file.

XKV_ENGINES names a folder with ``sglang-0.5.23``; the engine need not be importable.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from test_dcp import I32, I64, ints, kernel

import xkv

pytestmark = pytest.mark.interpret
FILE = "sglang-0.5.23", "sglang/kernels/ops/speculative/cache_locs.py"
seeds = pytest.mark.parametrize("seed", range(6))


class Step:
    """A batch of requests, each with ``topk`` branches of ``num_steps`` draft tokens, in a pool of pages."""

    def __init__(self, seed: int, spec: str) -> None:
        rng = random.Random(seed)
        self.page_size, self.topk, self.num_steps = (
            rng.choice([1, 4, 16]),
            rng.randint(1, 4),
            rng.randint(1, 6),
        )
        self.lens = ints([rng.choice([1, 15, 16, 17, rng.randint(1, 300)]) for _ in range(rng.randint(1, 5))])
        self.rows = ints([rng.randrange(4) for _ in self.lens], I64)
        width = 300 + self.topk * (self.num_steps + 2 * self.page_size)
        self.table = (
            torch.randperm(4 * width, generator=torch.Generator().manual_seed(seed)).int().view(4, -1)
        )
        self.window = rng.randint(1, 100)
        self.spec = spec

    def built(self, **options: Any) -> list[xkv.Metadata]:
        """The metadata of every step, in one launch."""
        trees = [
            xkv.DraftTree(self.topk, self.num_steps, n + 1, self.page_size) for n in range(self.num_steps)
        ]
        sizes = {"max_batch_size": len(self.lens), "max_context_len": self.table.shape[1], "page_size": 1}
        builders = [
            xkv.MetadataBuilder(self.spec, self.table, draft=tree, **sizes, **options) for tree in trees
        ]
        group = xkv.MetadataGroup(builders)
        found = group.build(self.rows, self.lens)
        group.check()
        return list(found)

    def theirs(self, name: str, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums and ids of every step by SGLang's kernel."""
        batch, rows = len(self.lens), len(self.lens) * self.topk
        ids = torch.full((self.num_steps, rows * self.table.shape[1]), -1, dtype=I32)
        sums = torch.zeros(self.num_steps, rows + 1, dtype=I32)
        power = lambda n: 1 << (n - 1).bit_length()  # noqa: E731
        kernel(*FILE, name)[(self.num_steps, batch, self.topk)](
            self.rows, self.table, self.lens, ids, sums, self.lens.repeat_interleave(self.topk),
            self.table.stride(0), ids.shape[1], sums.shape[1], power(batch), power(self.num_steps),
            power(rows), self.page_size, **more,
        )  # fmt: skip
        return sums, ids


def assert_same(found: list[xkv.Metadata], sums: torch.Tensor, ids: torch.Tensor) -> None:
    for n, meta in enumerate(found):
        assert meta.kv_indptr is not None
        assert meta.kv_indices is not None
        assert torch.equal(meta.kv_indptr, sums[n])
        live = int(sums[n, -1])
        assert torch.equal(meta.kv_indices[:live].to(I32), ids[n, :live])


@seeds
def test_sglang_s_indices(seed: int) -> None:
    step = Step(seed, "flashinfer_mla")
    assert_same(step.built(), *step.theirs("generate_draft_decode_kv_indices"))


@seeds
def test_sglang_s_sinks_and_window_of_the_prefix(seed: int) -> None:
    """SGLang's window is of the prefix alone, as that of its Triton backend: the branch is shown whole."""
    step, sink = Step(seed, "triton"), 1 + seed % 5
    found = [meta.window for meta in step.built(sliding_window=step.window, sink_tokens=sink)]
    theirs = step.theirs("generate_draft_decode_kv_indices", window_size=step.window, sink_size=sink)
    assert_same([meta for meta in found if meta is not None], *theirs)


@seeds
def test_sglang_s_window_with_the_branch(seed: int) -> None:
    step = Step(seed, "flashinfer_mla")
    found = [meta.window for meta in step.built(sliding_window=step.window)]
    theirs = step.theirs("generate_draft_decode_window_kv_indices", window=step.window)
    assert_same([meta for meta in found if meta is not None], *theirs)
