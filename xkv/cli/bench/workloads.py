"""What `python -m xkv bench` builds metadata for: batches of lengths in rows of a capacity."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from ..demo.traces import read_trace

_K = 1024
_TRACE_CAPACITY = 128 * _K
_TRACE_BATCHES = (32, 256)


class Workload(NamedTuple):
    """One batch.

    Attributes:
        name: what it is called in the tables.
        lens: tokens of each request.
        capacity: tokens that a row of the source, and of what is built, has room for.
    """

    name: str
    lens: tuple[int, ...]
    capacity: int

    @property
    def batch(self) -> int:
        """Requests."""
        return len(self.lens)

    def entries(self, page_size: int) -> int:
        """Live entries at a page size in tokens."""
        return sum(-(-length // page_size) for length in self.lens)


def _around(tokens: int, batch: int) -> tuple[int, ...]:
    """Lengths a tenth more or less, odd ones too: an engine's begin and end anywhere."""
    rng = random.Random(batch)
    return tuple(rng.randint(tokens - tokens // 10, tokens + tokens // 10) for _ in range(batch))


WORKLOADS = (
    Workload("1 x 128K", (128 * _K,), 128 * _K),
    Workload("1 x 1M", (1024 * _K,), 1024 * _K),
    Workload("8 x 8K in 1M", (8 * _K,) * 8, 1024 * _K),
    Workload("32 x 32K in 128K", (32 * _K,) * 32, 128 * _K),
    Workload("64 x 128K", (128 * _K,) * 64, 128 * _K),
    Workload("256 x 4K in 128K", (4 * _K,) * 256, 128 * _K),
    Workload("256 x ~4K in 128K", _around(4 * _K, 256), 128 * _K),
    Workload("256 x 8K in 1M", (8 * _K,) * 256, 1024 * _K),
    Workload("256 x 128K", (128 * _K,) * 256, 128 * _K),
    Workload("512 x 2K in 128K", (2 * _K,) * 512, 128 * _K),
    Workload("1 x 1M + 255 x 4K in 1M", (1024 * _K, *(4 * _K,) * 255), 1024 * _K),
    Workload("4 x 128K + 252 x 2K in 128K", (*(128 * _K,) * 4, *(2 * _K,) * 252), 128 * _K),
    Workload("128K/k", tuple(128 * _K // k for k in range(1, 129)), 128 * _K),
)
QUICK = ("1 x 128K", "256 x 4K in 128K", "4 x 128K + 252 x 2K in 128K")


def from_trace(path: Path) -> list[Workload]:
    """Makes decode batches of a serving trace, as a server would have them at some step.

    A request decodes in as many steps as it generates tokens, so each is drawn as often as that, and
    caught at any of its steps alike.

    Args:
        path: Mooncake's jsonl or Azure's csv; requests beyond 128K tokens are left out.

    Returns:
        Batches of 32 and of 256, named after the file; the same ones every time.

    Raises:
        TraceError: the file is in neither format.
        OSError: it cannot be read.
        ValueError: none of its requests decodes within 128K tokens.
    """
    requests = [each for each in read_trace(path) if each.input_len + each.output_len <= _TRACE_CAPACITY]
    steps = [each.output_len for each in requests]
    if not any(steps):
        raise ValueError(f"{path}: no request decodes within {_TRACE_CAPACITY} tokens")
    loads = []
    for batch in _TRACE_BATCHES:
        rng = random.Random(batch)
        drawn = rng.choices(requests, weights=steps, k=batch)
        lens = tuple(each.input_len + rng.randint(1, each.output_len) for each in drawn)
        loads.append(Workload(f"{path.stem}, {batch}", lens, _TRACE_CAPACITY))
    return loads
