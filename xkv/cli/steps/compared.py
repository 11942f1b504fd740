"""Which rows `python -m xkv steps` has, on what inputs, and whether both sides come to the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...metadata.buffers import Metadata
from ...metadata.builder import MetadataBuilder
from .. import sources
from . import sequences
from .peers import Peers, Setup, StandIn, Step
from .sequences import Results

DRAFTS = 4  # tokens of a verify
STEPS = 16  # in a graph, each on source rows of its own, so that the source comes from DRAM


class Workload(NamedTuple):
    """Requests of about one length (a tenth more or less) in rows of a capacity, in tokens."""

    batch: int
    tokens: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch} x ~{self.tokens >> 10}K tokens, capacity {self.context >> 10}K"


WORKLOADS = (Workload(256, 4096, 1 << 17), Workload(1, 1 << 16, 1 << 17))


@dataclass(frozen=True)
class Row:
    """One row of the table: a backend in a mode.

    Attributes:
        backend: what MetadataBuilder is asked for, and the function of xkv.cli.steps.sequences.
        page_size: tokens of a page.
        drafts: draft tokens of a verify; 0: decode.
        file: where their kernel is, "" for none.
        prefix: their ids and lengths end before the draft tokens.
        note: what else a reader should know.
    """

    backend: str
    page_size: int
    drafts: int
    file: str = "kv_indices.py"
    prefix: bool = False
    note: str = ""

    @property
    def mode(self) -> str:
        """For the reader."""
        return f"verify {self.drafts}" if self.drafts else "decode"

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.backend}, page {self.page_size}, {self.mode}"

    @property
    def delta(self) -> int:
        """Tokens that the mode adds to every length."""
        return 0 if self.prefix else self.drafts


_TOKENS = "SGLang gives this backend single tokens whatever its page size"
_IN_GRAPH = "SGLang records its kernel in the forward step's graph, as a build may be"
ROWS = (
    Row("flashmla", 64, 0, note="theirs casts the lengths again in every layer"),
    Row("flashmla", 64, DRAFTS, note="theirs casts and adds again in every layer"),
    Row("cutlass_mla", 128, 0, note="SGLang 0.5.13's; it casts the lengths in every layer"),
    Row("trtllm_mla", 64, 0),
    Row("trtllm_mla", 64, DRAFTS),
    Row("trtllm_mha", 64, 0, "trtllm_mha_graph_metadata.py", note=_IN_GRAPH),
    Row("trtllm_mha", 64, DRAFTS, "trtllm_mha_graph_metadata.py", note=_IN_GRAPH),
    Row("flash_attention", 64, 0, "metadata.py"),
    Row("flash_attention", 64, DRAFTS, "metadata.py"),
    Row("flashinfer_mla", 64, 0, note=_TOKENS),
    Row("flashinfer_mla", 64, DRAFTS, note=_TOKENS),
    Row("flashinfer_mla", 1, 0),
    Row("flashinfer_mla", 1, DRAFTS),
    Row("triton", 1, 0),
    Row("triton", 1, DRAFTS, prefix=True),
    Row("aiter_mla", 1, 0),
    Row("aiter_mla", 1, DRAFTS),
    Row("aiter_unified", 16, 0, ""),
    Row("aiter_unified", 16, DRAFTS, "aiter_unified_page_table.py",
        note="theirs adds to the lengths in every layer"),
)  # fmt: skip


def make_source(rows: int, context: int, device: str) -> Tensor:
    """A req_to_token of ``rows`` rows of ``context`` tokens: random pages, each in one piece."""
    return sources.make_source(rows, context + DRAFTS, 1 << 31, device)


def make_steps(load: Workload, device: str) -> list[Step]:
    """Batches whose source rows are all different, in no order."""
    generator = torch.Generator().manual_seed(load.batch)
    spread = load.tokens // 10
    steps = []
    for rows in torch.randperm(STEPS * load.batch, generator=generator).view(STEPS, load.batch):
        lens = load.tokens + torch.randint(-spread, spread + 1, (load.batch,), generator=generator)
        steps.append(Step(rows.to(device), lens.to(device), lens, int(lens.sum())))
    return steps


def both(
    row: Row, peers: Peers, source: Tensor, batch: int, context: int, drop_in: Peers | None = None
) -> tuple[Callable[[Step], Results], Callable[[Step], Metadata | Results]]:
    """What issues their ops, and what issues ours: each with buffers of its own, made here.

    Ours is one build, or with ``drop_in`` their ops once more, on those kernels.
    """
    make: Callable[[Setup], Callable[[Step], Results]] = getattr(sequences, row.backend)
    theirs = make(Setup(peers, source, batch, context, row.page_size, row.drafts))
    if drop_in is not None:
        return theirs, make(Setup(drop_in, source, batch, context, row.page_size, row.drafts))
    builder = MetadataBuilder(
        row.backend, source, max_batch_size=batch, max_context_len=context, page_size=row.page_size
    )
    options: dict[str, Any] = {}
    if row.drafts:
        options = {"seq_lens_delta": row.delta, "query_lens": row.drafts}
    return theirs, lambda step: builder.build(step.rows, step.lens, **options)


def differences(
    row: Row, peers: Peers, source: Tensor, context: int, steps: Sequence[Step],
    drop_in: Peers | None = None,
) -> Iterator[str]:  # fmt: skip
    """Names what theirs and ours do not agree on. Syncs.

    Args:
        row: the backend and mode.
        peers: their index kernels.
        source: ``[rows, >= context]`` int32, req_to_token.
        context: tokens, capacity of a row.
        steps: batches of one size, whose lengths leave room for the draft tokens.
        drop_in: as in `both`.

    Yields:
        A sentence for each result of theirs whose live part is not ours, in dtype and value.
    """
    able = peers if peers.has(row.file) else StandIn()
    theirs, ours = both(row, able, source, len(steps[0].lens), context, drop_in)
    for number, step in enumerate(steps):
        wanted, got = theirs(step), ours(step)
        lens = step.lens + row.delta
        if "kv_indices" in wanted and row.page_size > 1:
            wanted = _pages(wanted, row.page_size)
            got = _pages(got, row.page_size) if isinstance(got, dict) else got
        for name, want in wanted.items():
            have = got.get(name) if isinstance(got, dict) else getattr(got, name)
            if have is None:
                yield f"step {number}: {name}: ours has none"
                continue
            a, b = (_live(name, x, lens, row.page_size) for x in (want, have))
            if a.dtype != b.dtype or a.shape != b.shape:
                yield f"step {number}: {name}: {_kind(a)} of theirs, {_kind(b)} of ours"
            elif not torch.equal(a, b):
                at = int((a != b).nonzero()[0])
                both_are = f"{a[at]} of theirs, {b[at]} of ours"
                yield f"step {number}: {name}: live entry {at} is {both_are}"


def _live(name: str, value: Tensor, lens: Tensor, page_size: int) -> Tensor:
    """The entries that a reader may look at, in one dimension."""
    pages = (lens + page_size - 1) // page_size
    if name == "page_table":
        return value[torch.arange(value.shape[1], device=lens.device) < pages[:, None]]
    return value[: int(pages.sum())] if name == "kv_indices" else value


def _pages(tokens: Results, page_size: int) -> Results:
    """A stream of tokens as one of pages: every page's first token tells it."""
    starts = tokens["kv_indptr"].long()
    pages = (starts.diff() + page_size - 1) // page_size
    indptr = torch.nn.functional.pad(pages.cumsum(0), (1, 0))
    within = torch.arange(int(indptr[-1]), device=starts.device)
    first = (starts[:-1] - indptr[:-1] * page_size).repeat_interleave(pages) + within * page_size
    ids = tokens["kv_indices"][first] // page_size
    return tokens | {"kv_indices": ids, "kv_indptr": indptr.to(tokens["kv_indptr"].dtype)}


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}"
