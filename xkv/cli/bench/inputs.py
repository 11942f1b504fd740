"""The tensors of a workload: sources shared by capacity, and what one point of the tables reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import sources
from .workloads import Workload

LAUNCHES = 24  # in a graph, each on source rows of its own, so that the source comes from DRAM
# tokens, all ids are below it: what the largest workload needs. A larger pool would only cost the peer
# that looks every page up in a map of the pool.
POOL = 1 << 25
_EXTRA = 4  # entries past the capacity, as engines have: no width that is a multiple of 16
_SHARE = 0.4  # of the free memory, for the source of one capacity


@dataclass(frozen=True, eq=False)
class Inputs:
    """What every contender reads.

    Attributes:
        load: the workload.
        page_size: tokens of a page.
        source: ``[rows, >= capacity]`` int32, req_to_token.
        index: ``[sets, batch]`` int64, source rows, none of them twice.
        lens: ``[batch]`` int64, tokens.
    """

    load: Workload
    page_size: int
    source: Tensor
    index: Tensor
    lens: Tensor

    @property
    def batch(self) -> int:
        """Requests."""
        return self.load.batch

    @property
    def width(self) -> int:
        """Pages that a row of the table has room for: its capacity, as engines size it."""
        return -(-self.load.capacity // self.page_size)

    @property
    def rows(self) -> list[Tensor]:
        """The rows of each set."""
        return list(self.index)

    @property
    def launches(self) -> list[Tensor]:
        """The rows of each launch of a graph: the sets in turn."""
        rows = self.rows
        return [rows[n % len(rows)] for n in range(LAUNCHES)]

    def ints(self, *shape: int) -> Tensor:
        """A buffer of zeros on the device, int32."""
        return torch.zeros(shape, dtype=torch.int32, device=self.source.device)


def make_sources(loads: Iterable[Workload], device: str) -> dict[int, Tensor]:
    """Makes the source of each capacity: rows for LAUNCHES sets of the largest batch, if they fit.

    Args:
        loads: the workloads.
        device: where they lie.

    Returns:
        By capacity in tokens, ``[rows, capacity + 4]`` int32.

    Raises:
        MemoryError: the rows of a single batch do not fit; the message is for the user.
    """
    batches: dict[int, int] = {}
    for load in loads:
        batches[load.capacity] = max(load.batch, batches.get(load.capacity, 0))
    made = {}
    for capacity, batch in batches.items():
        rows, width = LAUNCHES * batch, capacity + _EXTRA
        if device != "cpu":
            rows = min(rows, int(torch.cuda.mem_get_info()[0] * _SHARE) // (4 * width))
        if rows < batch:
            raise MemoryError(f"{batch} rows of {capacity} tokens do not fit; see --only")
        made[capacity] = sources.make_source(rows, width, POOL, device)
    return made


def make_inputs(load: Workload, page_size: int, source: Tensor) -> Inputs:
    """Deals the source's rows out to sets, in no order.

    Args:
        load: the workload.
        page_size: tokens of a page.
        source: what `make_sources` made for its capacity.

    Returns:
        At most LAUNCHES sets.
    """
    batch = load.batch
    sets = min(LAUNCHES, len(source) // batch)
    drawn = torch.randperm(len(source), generator=torch.Generator().manual_seed(batch))
    # each set begins at a multiple of 16 bytes, as an engine's own tensors do
    index = torch.zeros(sets, batch + batch % 2, dtype=torch.int64)
    index[:, :batch] = drawn[: sets * batch].view(sets, batch)
    lens = torch.tensor(load.lens, dtype=torch.int64, device=source.device)
    return Inputs(load, page_size, source, index.to(source.device)[:, :batch], lens)
