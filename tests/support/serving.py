"""An engine at work, and what a backend would read after each step: whose pages are they?"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import xkv
from xkv import dispatch
from xkv.cli.demo.batch import DecodeBatch
from xkv.cli.demo.engine import Engine
from xkv.cli.demo.traces import Request, read_trace, synthetic_trace
from xkv.metadata.buffers import Metadata

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
PAGE_SIZE = 64
WINDOW = 100  # tokens
MAX_REQS, MAX_CONTEXT = 16, 4096
PAGES = 400  # 16 requests of 4,096 tokens would take 1,024
GRAPHS = (4, 8, 16)  # padded batch sizes
_MOST_OUTPUT = 40  # tokens: requests come and go


class IsolationError(AssertionError):
    """A request was shown a page that is not its own."""


def requests(trace: str, seed: int) -> Iterator[Request]:
    """The trace's requests that fit, over and over, with short outputs."""
    found = synthetic_trace(4000, seed) if trace == "synthetic" else read_trace(TRACES / trace)
    short = [dataclasses.replace(r, output_len=min(r.output_len, _MOST_OUTPUT)) for r in found]
    return itertools.cycle([r for r in short if r.input_len + r.output_len <= MAX_CONTEXT])


@dataclass
class Reader:
    """One backend: its builder, and what it reads of a request.

    Attributes:
        builder: the builder.
        past: page ids that it reads past a request's live ones; only a faulty one does.
        always_extends: whether it breaks its promise.
        extended: steps that were extended.
    """

    builder: xkv.MetadataBuilder
    past: int = 0
    always_extends: bool = False
    extended: int = 0

    def __post_init__(self) -> None:
        self.captured = {}
        if self.builder.req_to_token.is_cuda:
            both = itertools.product(GRAPHS, (False, True))
            self.captured = {key: self.builder.capture(key[0], extends=key[1]) for key in both}

    def build(self, rows: torch.Tensor, lens: torch.Tensor, graph: bool, extends: bool) -> Metadata:
        extends = extends or self.always_extends
        self.extended += extends
        if not (graph and self.captured):
            return (self.builder.extend if extends else self.builder.build)(rows, lens)
        size = next(size for size in GRAPHS if size >= len(lens))
        return self.captured[size, extends].replay(rows, lens)

    def named(self, meta: Metadata, batch: int) -> tuple[list[torch.Tensor], list[int]]:
        """For each request of the batch the ids that are read of it, and its length. Syncs."""
        if meta.page_table is not None:
            table, lens = meta.page_table.cpu(), meta.cache_seqlens.cpu().tolist()
            assert not any(lens[batch:]), "a padded row has tokens"
            tile = self.builder.spec.pad_to_multiple_of(PAGE_SIZE)
            for row, n in zip(table, lens, strict=True):
                live = -(-n // PAGE_SIZE)
                if tile is not None and row[live : -(-max(live, 1) // tile) * tile].any():
                    raise IsolationError("a tail names a page")
            return [
                row[: -(-n // PAGE_SIZE) + self.past] for row, n in zip(table[:batch], lens, strict=False)
            ], lens[:batch]
        ends = meta.kv_indptr.cpu().tolist()
        assert ends[batch:] == ends[-1:] * (len(ends) - batch), "a padded row has tokens"
        ids = meta.kv_indices[: ends[-1]].cpu()
        size = self.builder.page_size
        lens = [b - a for a, b in itertools.pairwise(ends[: batch + 1])]
        if size > 1:
            lens = meta.cache_seqlens[:batch].cpu().tolist()
        return [ids[a:b] for a, b in itertools.pairwise(ends[: batch + 1])], lens


def readers(engine: Engine) -> list[Reader]:
    """A backend of page tables, one of CSR, and one of tokens with a sliding window."""
    specs = dispatch.specs_of(xkv.platform(engine.device).vendor)
    table = next(name for name, spec in specs.items() if spec.form == "table" and spec.pad_to_tokens)
    csr = next(name for name, spec in specs.items() if spec.form == "csr")
    found = []
    for name, options in ((table, {}), (csr, {}), ("triton", {"sliding_window": WINDOW})):
        page_size = PAGE_SIZE if PAGE_SIZE in specs[name].page_sizes else 1
        found.append(
            Reader(
                xkv.MetadataBuilder(
                    name, engine.req_to_token, max_batch_size=MAX_REQS, max_context_len=MAX_CONTEXT,
                    page_size=page_size, **options,
                )
            )
        )  # fmt: skip
    return found


def check(engine: Engine, batch: DecodeBatch, reader: Reader, meta: Metadata) -> None:
    """Raises IsolationError where a request's table names a page that the request does not own."""
    unit = reader.builder.page_size
    for view, window in ((meta, None), (meta.window, WINDOW)):
        if view is None:
            continue
        named, lens = reader.named(view, len(batch.host_rows))
        for row, length, ids, n in zip(batch.host_rows, batch.host_lens, named, lens, strict=True):
            begin = 0 if window is None else max(length - window, 0)
            pages = ids // (PAGE_SIZE // unit) if unit == PAGE_SIZE else ids // PAGE_SIZE
            owned = torch.tensor(engine.owned_pages(row))
            places = torch.arange(len(ids)) * unit + begin
            right = owned[(places // PAGE_SIZE).clamp(max=len(owned) - 1)]
            if not torch.equal(pages.to(torch.int64), right):
                _blame(engine, row, set(pages.tolist()) - set(owned.tolist()), reader)
            assert n == length - begin, f"a length of {n} where row {row} has {length - begin}"


def _blame(engine: Engine, row: int, foreign: set[int], reader: Reader) -> None:
    owners = {p: [r for r in engine.lengths() if p in engine.owned_pages(r)] for p in sorted(foreign)}
    said = "; ".join(
        f"page {p}, which belongs to {f'rows {o}' if o else 'nobody'}" for p, o in owners.items()
    )
    raise IsolationError(
        f"{reader.builder.spec.name}: row {row} names {said or 'its own pages in the wrong order'}"
    )


Feed = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def play(engine: Engine, trace: str, steps: int, seed: int, feed: Feed, made: list[Reader]) -> int:
    """Serves for so many steps, preempting at random; every step is built and checked.

    Args:
        engine: a new one.
        trace: a file's name, or "synthetic".
        steps: how many.
        seed: decides what is preempted.
        feed: what is handed to the builders, from the step's rows and lengths.
        made: the engine's readers.

    Returns:
        How many builds were checked.
    """
    rng, source, checked = random.Random(seed), requests(trace, seed), 0
    for step in range(steps):
        engine.submit(itertools.islice(source, max(4 - engine.waiting, 0)))
        if rng.random() < 0.05 and engine.lengths():
            engine.preempt(rng.choice(list(engine.lengths())))
        batch = engine.step()
        rows, lens = feed(batch.req_pool_indices, batch.seq_lens)
        for number, reader in enumerate(made):
            meta = reader.build(rows, lens, (step + number) % 2 == 1, batch.extends)
            check(engine, batch, reader, meta)
            checked += 1
    return checked
