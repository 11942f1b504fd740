"""A small serving engine, as far as metadata building sees one: req_to_token, rows and lengths."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .batch import DecodeBatch, EngineStats
from .paging import PagedKVCache, PrefixNode, ReqToToken
from .traces import Request

_ROW_EXTRA = 4  # entries past max_context, as engines have: no width that is a multiple of 16


@dataclass(eq=False)
class _Sequence:
    """One admitted request."""

    request: Request
    row: int
    pages: torch.Tensor  # int64 [pages of the whole request]; the first `held` are taken
    nodes: list[PrefixNode]
    total: int  # tokens that it will have at its end
    held: int = 0
    length: int = 0  # tokens in the cache
    last_page: int = 0


class Engine:
    """Admits, prefills in chunks, decodes one token a step, finishes and frees.

    Requests are served first come, first served, whatever their arrival times. One is admitted only
    when the pool can hold it to its last token: its pages are reserved (counted, not yet chosen),
    so that no request need ever be preempted, the pool cannot overflow, and the head of the queue
    always gets in once those before it have finished. A step serves the decoding requests first and gives
    the rest of its token budget to prefill, one request after the other.

    Attributes:
        req_to_token: int32 [max_reqs + 1, max_context + 4] on the device. Row 0 is the padding row
            and stays 0. Entries past a request's length are stale: rows are reused as they are.
        host_req_to_token: The same on the CPU, in storage of its own.
        kv: The page pool.
        stats: Counts so far.
    """

    def __init__(
        self,
        *,
        max_reqs: int,
        max_context: int,
        page_size: int,
        num_pages: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        chunk_tokens: int = 8192,
    ) -> None:
        """Makes an idle engine.

        Args:
            max_reqs: Batch limit, >= 1.
            max_context: Most tokens of one request, >= 1.
            page_size: Tokens a page, a power of two in 1..1024.
            num_pages: Pages of the pool, >= 1.
            device: Where req_to_token and the batches lie.
            seed: Order of the free pages and of the free rows.
            chunk_tokens: Tokens a step computes, > max_reqs, so that prefill always gets some.

        Raises:
            ValueError: An argument is out of its range.
        """
        if max_reqs < 1 or max_context < 1:
            raise ValueError("max_reqs and max_context must be at least 1")
        if chunk_tokens <= max_reqs:
            raise ValueError(f"chunk_tokens must exceed max_reqs ({max_reqs}), not {chunk_tokens}")
        self.kv = PagedKVCache(num_pages, page_size, seed)
        self.max_reqs, self.max_context, self.page_size = max_reqs, max_context, page_size
        self.chunk_tokens, self.device = chunk_tokens, torch.device(device)
        self._table = ReqToToken(max_reqs + 1, max_context + _ROW_EXTRA, self.device)
        self.req_to_token, self.host_req_to_token = self._table.ids, self._table.host_ids
        self.stats = EngineStats()
        generator = torch.Generator().manual_seed(seed)
        self._free_rows: list[int] = (torch.randperm(max_reqs, generator=generator) + 1).tolist()
        self._waiting: deque[Request] = deque()
        self._running: dict[int, _Sequence] = {}  # by row, in order of admission
        self._prefilling: _Sequence | None = None  # the one that the last budget cut short
        self._last: list[_Sequence] = []  # the batch of the last step
        self._reserved = 0  # pages promised to running requests and not yet taken

    @property
    def done(self) -> bool:
        """Whether no request waits or runs; the last step's finished ones count as running."""
        return not self._waiting and not self._running

    @property
    def waiting(self) -> int:
        """How many requests wait to be admitted."""
        return len(self._waiting)

    def fits(self, request: Request) -> bool:
        """Whether the engine can ever hold the request, prompt and output."""
        total = _total_tokens(request)
        return total <= self.max_context and self._pages(total) <= self.kv.num_pages

    def submit(self, requests: Iterable[Request]) -> None:
        """Queues requests in the order given; ValueError at the first that does not fit."""
        for request in requests:
            if not self.fits(request):
                raise ValueError(f"{_total_tokens(request)} tokens exceed max_context or the pool")
            self._waiting.append(request)

    def step(self) -> DecodeBatch:
        """Runs one step: frees what finished in the last one, decodes, prefills, admits.

        Returns:
            The requests that decode in this step, with req_to_token written to their lengths. It
            holds until the next step.
        """
        for old in [seq for seq in self._running.values() if seq.length == seq.total]:
            self.kv.retire(old.nodes, old.pages)
            self._free_rows.append(old.row)
            del self._running[old.row]
            self.stats.finished += 1
        decoding = [s for s in self._running.values() if s.length >= s.request.input_len]
        self._decode(decoding)
        budget = self.chunk_tokens - len(decoding)
        while budget > 0 and (seq := self._prefilling or self._admit()) is not None:
            count = min(budget, seq.request.input_len - seq.length)
            self._prefill(seq, count)
            budget -= count
        self._table.flush()
        return self._batch(decoding)

    def preempt(self, row: int) -> None:
        """Takes back a running request: it goes to the head of the queue, to start anew.

        Its pages and its row are free at once; what of its prompt was offered to others stays cached.

        Args:
            row: A row in use; KeyError for another one.
        """
        seq = self._running.pop(row)
        self.kv.retire(seq.nodes, seq.pages[: seq.held])
        self._reserved -= self._pages(seq.total) - seq.held
        self._free_rows.append(row)
        self._waiting.appendleft(seq.request)
        if self._prefilling is seq:
            self._prefilling = None
        self.stats.preempted += 1

    def lengths(self) -> dict[int, int]:
        """Returns the live length in tokens of every row in use."""
        return {row: seq.length for row, seq in self._running.items()}

    def request(self, row: int) -> Request:
        """Returns the request that holds a row in use; KeyError for another row."""
        return self._running[row].request

    def owned_pages(self, row: int) -> list[int]:
        """Returns the pages, shared or private, that a row in use holds, in the tokens' order."""
        seq = self._running[row]
        owned: list[int] = seq.pages[: seq.held].tolist()
        return owned

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _admit(self) -> _Sequence | None:
        """Takes the head of the queue in if the batch and the pool have room for all of it."""
        if not self._waiting or not self._free_rows:
            return None
        request = self._waiting[0]
        total, nodes = _total_tokens(request), self.kv.match(request)
        shared = len(nodes) * self.kv.unit
        need = self._pages(total) - self._pages(shared)
        if need > self.kv.num_available(besides=nodes) - self._reserved:
            return None
        self._waiting.popleft()
        self._reserved += need
        pages = torch.zeros(self._pages(total), dtype=torch.int64)
        seq = _Sequence(request, self._free_rows.pop(), pages, nodes, total)
        seq.held = self._pages(shared)
        pages[: seq.held] = self.kv.pin(nodes)
        self._extend(seq, shared)
        self._running[seq.row] = seq
        self.stats.admitted += 1
        self.stats.shared_tokens += shared
        return seq

    def _take(self, n: int) -> torch.Tensor:
        self._reserved -= n
        return self.kv.alloc(n)

    def _prefill(self, seq: _Sequence, count: int) -> None:
        """Computes the next `count` prompt tokens and offers what is complete to others."""
        held = self._pages(seq.length + count)
        seq.pages[seq.held : held] = self._take(held - seq.held)
        seq.held = held
        self._extend(seq, count)
        self.kv.insert(seq.request, seq.nodes, seq.pages, seq.length)
        self._prefilling = seq if seq.length < seq.request.input_len else None
        self.stats.prefilled_tokens += count

    def _extend(self, seq: _Sequence, count: int) -> None:
        """Notes the slots of the next `count` tokens, whose pages the sequence holds."""
        tokens = torch.arange(seq.length, seq.length + count)
        slots = seq.pages[tokens // self.page_size] * self.page_size + tokens % self.page_size
        self._table.write(torch.full_like(tokens, seq.row), tokens, slots)
        seq.length += count
        seq.last_page = int(seq.pages[seq.held - 1]) if seq.held else 0

    def _decode(self, decoding: list[_Sequence]) -> None:
        """Adds one token to every decoding request, all of them in one write."""
        full = [seq for seq in decoding if seq.length % self.page_size == 0]
        for seq, page in zip(full, self._take(len(full)).tolist(), strict=True):
            seq.pages[seq.held] = seq.last_page = page
            seq.held += 1
        size = self.page_size
        entries = [(s.row, s.length, s.last_page * size + s.length % size) for s in decoding]
        self._table.write(*torch.tensor(entries, dtype=torch.int64).view(-1, 3).unbind(1))
        for seq in decoding:
            seq.length += 1
        self.stats.decoded_tokens += len(decoding)

    def _batch(self, decoding: list[_Sequence]) -> DecodeBatch:
        rows, lens = [seq.row for seq in decoding], [seq.length for seq in decoding]
        # Each line begins at a multiple of 16 bytes, as an engine's own tensors do.
        pad = [0] * (len(rows) % 2)
        packed = torch.tensor([rows + pad, lens + pad], dtype=torch.int64).to(self.device)
        device_rows, device_lens = packed[:, : len(rows)].unbind()
        live = sum(seq.length for seq in self._running.values())
        total, longest = sum(lens), max(lens, default=0)
        extends, self._last = decoding == self._last, decoding
        return DecodeBatch(device_rows, device_lens, rows, lens, total, longest, live, extends)


def _total_tokens(request: Request) -> int:
    """Tokens in the cache at the end: the last generated one is never put there."""
    return request.input_len + max(request.output_len - 1, 0)
