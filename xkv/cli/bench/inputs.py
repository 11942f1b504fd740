"""The tensors of a workload: sources shared by capacity, and the steps that one point is timed on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case
from .workloads import Workload

LAUNCHES = 24  # in a graph, each on source rows of its own, so that the source comes from DRAM
# tokens, all ids are below it: what the largest workload needs. A larger pool would only cost the kernel
# that looks every page up in a map of the pool.
POOL = 1 << 25
_PIECE = 128  # tokens that lie together: whole pages of every backend's page size
_EXTRA = 4  # entries past the capacity, as engines have: no width that is a multiple of 16
_SHARE = 0.4  # of the free memory, for the source of one capacity


@dataclass(frozen=True, eq=False)
class Step:
    """One step's batch.

    Attributes:
        rows: ``[batch]`` int64 on the device, source rows.
        lens: ``[batch]`` int64 on the device, tokens.
        host_lens: ``[batch]`` int64 on the CPU, the same.
        total: tokens, their sum.
    """

    rows: Tensor
    lens: Tensor
    host_lens: Tensor
    total: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """What every provider reads, and what its buffers are made for.

    Attributes:
        case: what is built.
        source: ``[rows, >= capacity]`` int32, req_to_token.
        capacity: tokens that a row has room for.
        index: ``[steps, batch]`` int64, source rows, none of them twice.
        lens: ``[steps, batch]`` int64, tokens.
        steps: a batch for each row of them.
    """

    case: Case
    source: Tensor
    capacity: int
    index: Tensor
    lens: Tensor
    steps: list[Step]

    @property
    def batch(self) -> int:
        """Requests."""
        return self.index.shape[1]

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.case.page_size

    @property
    def drafts(self) -> int:
        """Draft tokens of a verify; 0: decode."""
        return self.case.drafts

    @property
    def width(self) -> int:
        """Pages that a row of the table has room for: its capacity, as engines size it."""
        return -(-self.capacity // self.page_size)

    @property
    def launches(self) -> list[Step]:
        """The step of each launch of a graph: in turn."""
        return [self.steps[n % len(self.steps)] for n in range(LAUNCHES)]

    @property
    def entries(self) -> int:
        """Live entries that a launch builds, the mean over the steps."""
        pages = (self.lens + self.case.delta + self.page_size - 1) // self.page_size
        return round(int(pages.sum()) / len(self.steps))

    def ints(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """A buffer of zeros on the device."""
        return torch.zeros(shape, dtype=dtype, device=self.source.device)

    def query_starts(self) -> Tensor:
        """``[batch + 1]`` int32, query tokens: what is set once and never again."""
        queries = self.drafts or 1
        return torch.arange(0, self.batch * queries + 1, queries, device=self.source.device).int()


def make_sources(loads: Iterable[Workload], device: str) -> dict[int, Tensor]:
    """Makes the source of each capacity: rows for LAUNCHES steps of the largest batch, if they fit.

    Args:
        loads: the workloads.
        device: where they lie.

    Returns:
        By capacity in tokens, ``[rows, capacity + 4]`` int32: random pages, each in one piece.

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
        made[capacity] = _random_pages(rows, width, device)
    return made


def _random_pages(rows: int, width: int, device: str) -> Tensor:
    source = torch.empty(rows, width, dtype=torch.int32, device=device)
    within = torch.arange(_PIECE, dtype=torch.int32, device=device)
    for row in range(0, rows, 64):  # in parts, as the whole may be GiBs
        part = source[row : row + 64]
        shape = len(part), -(-width // _PIECE), 1
        pages = torch.randint(POOL // _PIECE, shape, dtype=torch.int32, device=device)
        part.copy_((pages * _PIECE + within).view(len(part), -1)[:, :width])
    return source


def make_inputs(case: Case, load: Workload, source: Tensor) -> Inputs:
    """Deals the source's rows out to steps, in no order.

    Args:
        case: what is built.
        load: the workload.
        source: what `make_sources` made for its capacity.

    Returns:
        At most LAUNCHES steps.
    """
    batch = load.batch
    count = min(LAUNCHES, len(source) // batch)
    drawn = torch.randperm(len(source), generator=torch.Generator().manual_seed(batch))
    drawn = drawn[: count * batch].view(count, batch)
    host_lens = torch.tensor([load.draw(n) for n in range(count)])
    index, lens = (_aligned(x).to(source.device)[:, :batch] for x in (drawn, host_lens))
    steps = [Step(*each, total=int(each[2].sum())) for each in zip(index, lens, host_lens, strict=True)]
    return Inputs(case, source, load.capacity, index, lens, steps)


def _aligned(x: Tensor) -> Tensor:
    """Each row begins at a multiple of 16 bytes, as an engine's own tensors do."""
    return torch.nn.functional.pad(x, (0, x.shape[1] % 2))
