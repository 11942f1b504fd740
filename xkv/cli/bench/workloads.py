"""What `python -m xkv bench` builds metadata for: batches of lengths in rows of a capacity."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from ..demo.traces import read_trace
from .cases import DRAFTS, SUITES

_K = 1024
_TRACE_CAPACITY = 128 * _K
_TRACE_BATCHES = (32, 256)


class Workload(NamedTuple):
    """One batch.

    Attributes:
        name: what it is called in the tables.
        lens: tokens of each request.
        capacity: tokens that a row of the source, and of what is built, has room for.
        spread: whether lengths are drawn anew for each launch, a tenth more or less, odd ones too: an
            engine's begin and end anywhere.
        suites: those that it is in.
        quick: whether it is in a quick run of them.
    """

    name: str
    lens: tuple[int, ...]
    capacity: int
    spread: bool = False
    suites: tuple[str, ...] = ("ops",)
    quick: bool = False

    @property
    def batch(self) -> int:
        """Requests."""
        return len(self.lens)

    def draw(self, number: int) -> list[int]:
        """The lengths of a launch; the same ones every time."""
        rng = random.Random(self.batch + number)
        return [rng.randint(n - n // 10, n + n // 10) if self.spread else n for n in self.lens]


WORKLOADS = (
    Workload("1 x 128K", (128 * _K,), 128 * _K, quick=True),
    Workload("1 x 1M", (1024 * _K,), 1024 * _K),
    Workload("8 x 8K in 1M", (8 * _K,) * 8, 1024 * _K),
    Workload("32 x 32K in 128K", (32 * _K,) * 32, 128 * _K),
    Workload("64 x 128K", (128 * _K,) * 64, 128 * _K),
    Workload("256 x 4K in 128K", (4 * _K,) * 256, 128 * _K, quick=True),
    Workload("256 x ~4K in 128K", (4 * _K,) * 256, 128 * _K, spread=True, suites=SUITES),
    Workload("256 x 8K in 1M", (8 * _K,) * 256, 1024 * _K),
    Workload("256 x 128K", (128 * _K,) * 256, 128 * _K),
    Workload("512 x 2K in 128K", (2 * _K,) * 512, 128 * _K),
    Workload("1 x 1M + 255 x 4K in 1M", (1024 * _K, *(4 * _K,) * 255), 1024 * _K),
    Workload("4 x 128K + 252 x 2K in 128K", (*(128 * _K,) * 4, *(2 * _K,) * 252), 128 * _K, quick=True),
    Workload("128K/k", tuple(128 * _K // k for k in range(1, 129)), 128 * _K),
    Workload("1 x ~64K in 128K", (64 * _K,), 128 * _K, spread=True, suites=("steps",), quick=True),
)


def from_trace(path: Path) -> list[Workload]:
    """Makes decode batches of a serving trace, as a server would have them at some step.

    A request decodes in as many steps as it generates tokens, so each is drawn as often as that, and
    caught at any of its steps alike.

    Args:
        path: Mooncake's jsonl or Azure's csv; requests that leave no room for a verify in 128K
            tokens are left out.

    Returns:
        Batches of 32 and of 256, named after the file; the same ones every time.

    Raises:
        TraceError: the file is in neither format.
        OSError: it cannot be read.
        ValueError: none of its requests decodes within so many tokens.
    """
    longest = _TRACE_CAPACITY - DRAFTS
    requests = [each for each in read_trace(path) if each.input_len + each.output_len <= longest]
    steps = [each.output_len for each in requests]
    if not any(steps):
        raise ValueError(f"{path}: no request decodes within {longest} tokens")
    loads = []
    for batch in _TRACE_BATCHES:
        rng = random.Random(batch)
        drawn = rng.choices(requests, weights=steps, k=batch)
        lens = tuple(each.input_len + rng.randint(1, each.output_len) for each in drawn)
        loads.append(Workload(f"{path.stem}, {batch}", lens, _TRACE_CAPACITY, suites=SUITES, quick=True))
    return loads
