"""Random batches for calls of SGLang's kernels, every buffer between guard words."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from building import paged_source

from xkv.cli.check.memory import guarded


class Call(NamedTuple):
    """A grid, arguments by name, and which of those are written."""

    grid: tuple[int, ...]
    args: dict[str, Any]
    outs: tuple[str, ...]


class Batch:
    """A source, rows and lengths; every buffer that a kernel reads can be replayed with other contents."""

    def __init__(self, rng: random.Random, device: str, page_size: int, tokens: int, more: int = 0) -> None:
        self.rng, self.device, self.page_size = rng, device, page_size
        self.rows = rng.randint(1, 6)
        self.size = rng.randint(1, 9)
        self.width = tokens
        self.ids = paged_source(rng, self.rows, tokens, page_size, 1, torch.int32, device)
        self.pool = self.ints(0, self.rows - 1)
        self.lens = self.ints(0, tokens - more)
        self.ids_end = self.rows * -(-tokens // page_size) * page_size

    def ints(self, low: int, high: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One for each row, with some more behind them, as a padded graph's buffers have."""
        values = [self.rng.randint(low, high) for _ in range(self.size)]
        dtype = dtype or self.rng.choice([torch.int32, torch.int64])
        return torch.tensor(values + [-7] * self.rng.choice([0, 3]), dtype=dtype, device=self.device)

    def table(self, columns: int) -> torch.Tensor:
        return guarded(self.size, columns, columns + self.rng.choice([0, 3]), torch.int32, self.device)

    def mapping(self, *, lost: bool) -> torch.Tensor:
        """Slot -> slot of another pool, page by page, -1 for some if asked."""
        pages = self.ids_end // self.page_size
        order = list(range(pages))
        self.rng.shuffle(order)
        if lost:
            order = [-1 if self.rng.random() < 0.2 else page for page in order]
        offset = torch.arange(self.page_size)
        rows = [offset * 0 - 1 if page < 0 else offset + page * self.page_size for page in order]
        return torch.cat(rows).to(self.device)

    def pages(self, *, lost: bool) -> torch.Tensor:
        """Page -> page of another pool, in pages of the source; page 0 is that of what has none."""
        count = self.ids_end // self.page_size
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.rng.randrange(99)))
        order[0] = 0
        if lost:
            order[1:][torch.rand(count - 1) < 0.2] = -1
        return order.to(self.device)

    def slots(self, count: int, *, lost: bool) -> torch.Tensor:
        """Slots of new tokens, -1 for some if asked."""
        found = [self.rng.choice([-lost, 1]) * self.rng.randrange(1, self.ids_end) for _ in range(count)]
        found = [max(slot, -1) if lost else abs(slot) for slot in found]
        return torch.tensor(found, dtype=torch.int64, device=self.device)


def any_pages(rng: random.Random, device: str, more: int = 0) -> tuple[Batch, int]:
    page_size = rng.choice([1, 16, 32, 64])
    tokens = rng.randint(more + 1, rng.choice([3, 9]) * page_size + more + 200)
    return Batch(rng, device, page_size, tokens, more), page_size
