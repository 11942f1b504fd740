"""The demo's loop: serve, build on the device, compare every step with the definition, time it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ... import dispatch, ops
from ...launch import compile
from ...platforms import detect, tuning
from ...status import Status
from .batch import DecodeBatch, EngineStats
from .engine import Engine
from .extensions import Extensions, differences, synchronize
from .traces import Request

_SENTINEL = -7777  # no page id and no count, so that an entry that was not written shows
_GUARD = 8  # columns past the page table's width that belong to nobody
_POOL_TOKENS_PER_REQUEST = 16384  # more than the mean of either trace, less than their longest
_PREFILL_TOKENS = 8192  # a step, beside one token for each request of the batch


class Progress(Protocol):
    """What is used of a tqdm bar."""

    def update(self, n: int = 1) -> object:
        """Counts n more steps."""

    def set_postfix_str(self, s: str, refresh: bool) -> object:
        """Sets what stands after the bar."""


@dataclass
class Result:
    """What a replay saw.

    Attributes:
        device: The device and its tuning row, for the reader.
        batch, page_size, max_context: As given to replay.
        stats: The engine's counts of requests and tokens.
        pool: The page pool's size and what it evicted, for the reader.
        status: What the builds reported on the device, for the reader.
        mismatches: Entries that differed from the oracle's, or that had to stay as they were; an
            violation on the device counts as one more.
        times_ms: Time of the two builds of each step, device included, in milliseconds.
        live: Tokens of each step's decode batch.
        extensions: How many steps were extensions and what they cost, for the reader.
    """

    device: str
    batch: int
    page_size: int
    max_context: int
    stats: EngineStats
    pool: str = ""
    status: str = "clean"
    mismatches: int = 0
    times_ms: list[float] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    extensions: str = ""

    def rows(self, source: str, skips: str) -> list[tuple[str, str]]:
        """Returns the closing table as (name, value); source and skips are the caller's words."""
        stats, steps, capacity = self.stats, len(self.live), self.batch * self.max_context
        peak, mean = max(self.live), sum(self.live) // steps
        median = statistics.median(self.times_ms)
        p99 = sorted(self.times_ms)[-1 - steps // 100]
        return [
            ("device, tuning rows", self.device),
            ("trace", source),
            ("requests", f"{stats.admitted} admitted, {stats.finished} finished, {skips}"),
            ("steps", f"{steps} with at most {self.batch} requests"),
            (
                "tokens",
                f"{stats.decoded_tokens} decoded, {stats.prefilled_tokens} prefilled, "
                f"{stats.shared_tokens} found in a shared prefix",
            ),
            ("page pool", self.pool),
            ("tables built", f"{2 * steps}: page table (page size {self.page_size}), CSR (1)"),
            ("mismatches", str(self.mismatches)),
            ("device status", self.status),
            ("time per step", f"median {median:.3f} ms, p99 {p99:.3f} ms"),
            ("steps that only extend", self.extensions),
            ("live tokens", f"mean {mean}, peak {peak} of {capacity} ({100 * peak / capacity:.1f}%)"),
        ]


class _Buffers:
    """The persistent outputs, as an engine keeps them for its captured graphs, and their check."""

    def __init__(self, batch: int, max_context: int, page_size: int, device: torch.device) -> None:
        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        self.page_size, self.width = page_size, -(-max_context // page_size)
        self.status = Status(device)
        self.page_table = empty(batch, self.width + _GUARD)
        self.kv_indptr = empty(batch + 1)
        self.kv_indices = empty(batch * max_context)
        self.kv_last_page_len = empty(batch)

    def reset(self) -> None:
        """Fills everything with the sentinel."""
        for buffer in (self.page_table, self.kv_indptr, self.kv_indices, self.kv_last_page_len):
            buffer.fill_(_SENTINEL)

    def build(self, engine: Engine, batch: DecodeBatch) -> None:
        """The two calls under test: the page table, and the CSR by tokens."""
        b = len(batch.host_rows)
        inputs = engine.req_to_token, batch.req_pool_indices, batch.seq_lens
        table = self.page_table[:b, : self.width]
        ops.build_page_table(*inputs, page_size=self.page_size, out=table, status=self.status)
        csr = ops.KVIndices(self.kv_indptr[: b + 1], self.kv_indices, self.kv_last_page_len[:b])
        ops.build_kv_indices(*inputs, out=csr, status=self.status)

    def mismatches(self, engine: Engine, batch: DecodeBatch) -> int:
        """Counts the entries that differ from the oracle's, the untouched ones included.

        The oracle is the definition, row by row, on the engine's own copy of its table: entry j
        of a page table is the page of token j * page_size, and kv_indices are the slots in order.
        """
        b, size, total = len(batch.host_rows), self.page_size, batch.sum_seq_lens
        rows = [
            engine.host_req_to_token[row, :length]
            for row, length in zip(batch.host_rows, batch.host_lens, strict=True)
        ]
        table = torch.full((b, self.width), _SENTINEL, dtype=torch.int32)
        for line, row in zip(table, rows, strict=True):
            pages = row[::size] // size
            line[: len(pages)] = pages
        ends = torch.tensor([0, *batch.host_lens]).cumsum(0).int()
        wrong = differences(self.page_table[:b, : self.width], table)
        wrong += differences(self.kv_indptr[: b + 1], ends)
        wrong += differences(self.kv_indices[:total], torch.cat(rows))
        wrong += differences(self.kv_last_page_len[:b], torch.ones(b, dtype=torch.int32))
        beyond = (
            self.page_table[:b, self.width :],
            self.page_table[b:],
            self.kv_indptr[b + 1 :],
            self.kv_indices[total:],
            self.kv_last_page_len[b:],
        )
        return wrong + sum(int(torch.count_nonzero(buffer != _SENTINEL)) for buffer in beyond)


def replay(
    requests: list[Request],
    *,
    steps: int,
    batch: int,
    page_size: int,
    max_context: int,
    seed: int,
    device: str,
    progress: Progress,
) -> Result:
    """Serves requests and builds and checks both tables at every decode step.

    Args:
        requests: What to serve, in order; at least one that decodes, each within max_context.
        steps: Decode steps, >= 1; fewer are run if the requests are served before.
        batch: Most requests at once, >= 1.
        page_size: Tokens a page, a power of two in 1..1024.
        max_context: Most tokens of one request.
        seed: Order of the pages and rows.
        device: Where the tables lie and are built: "cpu", "cuda" (HIP's name too) or "auto", which
            is the GPU where torch sees one.
        progress: Told of every step.

    Returns:
        The counts and times; at least one step.
    """
    where = _resolve(device)
    engine = Engine(
        max_reqs=batch,
        max_context=max_context,
        page_size=page_size,
        num_pages=-(-max(max_context, batch * _POOL_TOKENS_PER_REQUEST) // page_size),
        device=where,
        seed=seed,
        chunk_tokens=batch + _PREFILL_TOKENS,
    )
    engine.submit(requests)
    buffers, extensions = _Buffers(batch, max_context, page_size, where), Extensions(engine)
    result = Result(_chosen_row(where, page_size, batch), batch, page_size, max_context, engine.stats)
    while len(result.live) < steps and not engine.done:
        decode = engine.step()
        if not decode.host_rows:
            continue  # all of this step was prefill
        buffers.reset()
        if not result.live:
            buffers.build(engine, decode)  # compiles: a server does that before it serves
        synchronize(where)
        begin = time.perf_counter()
        buffers.build(engine, decode)
        synchronize(where)
        result.times_ms.append((time.perf_counter() - begin) * 1e3)
        result.live.append(decode.sum_seq_lens)
        result.mismatches += buffers.mismatches(engine, decode)
        extensions.step(decode)
        progress.set_postfix_str(f"{result.mismatches} mismatches", refresh=False)
        progress.update()
    result.extensions = extensions.summary()
    result.mismatches += extensions.mismatches
    # The source itself must have stayed as the engine wrote it, and nothing was there to report.
    result.mismatches += differences(engine.req_to_token, engine.host_req_to_token)
    if (violation := buffers.status.read()) is not None:
        result.mismatches += 1
        result.status = str(violation)
    kv = engine.kv
    result.pool = f"{kv.num_pages} pages of {page_size} tokens, {kv.evicted_pages} evicted"
    return result


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Keeps torch's CPU work on one thread: two on busy cores take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _resolve(device: str) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _chosen_row(device: torch.device, page_size: int, batch: int) -> str:
    """Names the device and the tuning rows that its page table and its CSR run with."""
    platform = detect.platform(device)
    if device.type == "cpu" and not compile.interpreted():
        return f"{platform}: the torch reference"
    kinds = [tuning.access_pattern(page_size, 1), tuning.access_pattern(1, 1, ragged=True)]
    rows = [f"{kind}: {dispatch.tuning_row(platform, kind, batch)}" for kind in kinds]
    return "\n".join([str(platform), *dict.fromkeys(rows)])
