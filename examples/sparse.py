"""Sparse attention: an indexer chooses positions of each row, and xkv gives the slots of their keys.

    python examples/sparse.py                 # on the GPU if there is one, else on the CPU, in seconds
    python examples/sparse.py --device cpu --k 16 --steps 8

One MLA layer with random weights serves a few requests, whose pages are scattered over a cache. An indexer,
as DeepSeek's, scores the tokens of the row up to each query token and chooses the best k; where there are
fewer, the rest is -1. `xkv.translate_positions` gives the slots, and attention is over these tokens alone.

A batch with several query tokens for each request (`query_start_loc`) comes first, then greedy decode; on a
GPU each of its steps is one graph. All of it runs twice: with each slot at the place of its position, and
with the slots packed and counted (`compact`, `counts`).

Both are compared with a contiguous cache for each request, where the chosen positions are a mask. Exits
with 1 if any token differs, or its logits by more than rounding.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple, Protocol

import torch
from mla import CKV, HIDDEN, KPE, SCALE, VOCAB, Model, torch_attention
from torch import Tensor

import xkv

PROMPTS = [3, 64, 150, 37, 129]  # tokens
QUERIES = [2, 1, 7, 5, 4]  # the last tokens of each prompt, which are the first batch
INDEX_HEADS, INDEX = 4, 32  # the indexer's heads, and values of a head
TOLERANCE = 1e-3  # of logits


class SparseModel(Model):
    """The same layer, with an indexer."""

    def __init__(self, seed: int, device: str, k: int) -> None:
        super().__init__(seed, device)
        self.k = k
        normal = lambda columns: (torch.randn(HIDDEN, columns) / HIDDEN**0.5).to(device)  # noqa: E731
        self.index_query, self.index_key = normal(INDEX_HEADS * INDEX), normal(INDEX)
        self.index_weight = normal(INDEX_HEADS)

    def index_keys(self, tokens: Tensor) -> Tensor:
        """Returns the indexer's keys of tokens."""
        return self.embedding[tokens] @ self.index_key

    def choose(self, tokens: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Returns the positions that each query token attends to, ``[tokens, k]``, in their order.

        Args:
            tokens: the query tokens.
            keys: the indexer's keys of each one's row, ``[tokens, most, INDEX]``.
            seen: tokens of its row up to each one, itself included. If they are fewer than k, -1 comes first.
        """
        hidden = self.embedding[tokens]
        query = (hidden @ self.index_query).view(-1, INDEX_HEADS, INDEX)
        scores = torch.einsum("thd,tkd->thk", query, keys).relu()
        scores = torch.einsum("thk,th->tk", scores, hidden @ self.index_weight)
        later = torch.arange(keys.shape[1], device=keys.device) >= seen[:, None]
        best = scores.masked_fill(later, -torch.inf).topk(self.k)
        return torch.where(best.values > -torch.inf, best.indices, -1).sort().values.int()


class Batch(NamedTuple):
    """The query tokens of a step, those of each request in turn."""

    tokens: Tensor
    req: Tensor  # the request of each
    seen: Tensor  # tokens of its row up to each, itself included
    lens: Tensor  # tokens of each request, with its query tokens
    query_lens: Tensor
    query_start_loc: Tensor | None  # None: each request has one query token


def batch_of(parts: list[Tensor], lens: list[int]) -> Batch:
    """Makes the batch whose query tokens of each request are its last ones of ``lens``."""
    query_lens, ends = torch.tensor([len(part) for part in parts]), torch.tensor(lens)
    starts = torch.nn.functional.pad(query_lens.cumsum(0), (1, 0))
    req = torch.arange(len(parts)).repeat_interleave(query_lens)
    seen = torch.arange(int(starts[-1])) + 1 - starts[req] + (ends - query_lens)[req]
    device = parts[0].device
    return Batch(torch.cat(parts), *(x.to(device) for x in (req, seen, ends, query_lens, starts)))


class Cache(Protocol):
    """Where the keys are, and attention to those that the indexer chose."""

    def write(self, batch: Batch) -> None:
        """Writes the entries of the query tokens."""

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits after each query token."""


class Dense:
    """A contiguous cache for each request; the chosen positions are a mask."""

    def __init__(self, model: SparseModel, most: int, device: str) -> None:
        self.model = model
        self.entries = torch.zeros(len(PROMPTS), most, CKV + KPE, dtype=torch.half, device=device)
        self.keys = torch.zeros(len(PROMPTS), most, INDEX, device=device)

    def write(self, batch: Batch) -> None:
        """Writes the entries of the query tokens."""
        at = batch.req, batch.seen - 1
        self.entries[at], self.keys[at] = (
            self.model.cache_entries(batch.tokens), self.model.index_keys(batch.tokens),
        )  # fmt: skip

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits after each query token."""
        chosen = self.model.choose(batch.tokens, self.keys[batch.req], batch.seen)
        position = torch.arange(self.keys.shape[1], device=chosen.device)
        mask = (chosen[..., None] == position).any(1)
        entries = self.entries[batch.req]
        return self.model.logits(batch.tokens, lambda query: masked_attention(query, entries, mask))


class Paged:
    """Pages scattered over a cache, as an engine has them; the chosen positions are translated into slots."""

    def __init__(self, model: SparseModel, most: int, page_size: int, compact: bool, device: str) -> None:
        self.model, self.most, self.compact = model, most, compact
        rows, width = len(PROMPTS) + 2, -(-most // page_size)
        generator = torch.Generator().manual_seed(0)
        pages = torch.randperm(rows * width, generator=generator).view(rows, width, 1) * page_size
        self.req_to_token = (pages + torch.arange(page_size)).flatten(1).int().to(device)
        self.rows = torch.randperm(rows, generator=generator)[: len(PROMPTS)].to(device)
        # unused slots hold NaN, so that reading one changes the result
        total, nan, tokens = self.req_to_token.numel(), float("nan"), sum(PROMPTS)
        self.entries = torch.full((total, CKV + KPE), nan, dtype=torch.half, device=device)
        self.keys = torch.full((total, INDEX), nan, device=device)
        self.new = torch.empty(tokens, dtype=torch.int64, device=device)
        self.slots = torch.empty(tokens, model.k, dtype=torch.int32, device=device)
        self.counts = torch.empty(tokens, dtype=torch.int32, device=device)
        self.status = xkv.Status(device)

    def write(self, batch: Batch) -> None:
        """Writes the entries of the query tokens."""
        new = self.new[: len(batch.tokens)]
        xkv.build_slot_mapping(
            self.req_to_token, self.rows, batch.lens, batch.query_lens, out=new, status=self.status
        )
        self.entries[new], self.keys[new] = (
            self.model.cache_entries(batch.tokens), self.model.index_keys(batch.tokens),
        )  # fmt: skip

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits after each query token."""
        tokens = len(batch.tokens)
        # the indexer reads the keys of whole rows
        row = self.req_to_token[self.rows[batch.req], : self.most].long()
        chosen = self.model.choose(batch.tokens, self.keys[row], batch.seen)
        slots, counts = self.slots[:tokens], self.counts[:tokens]
        xkv.translate_positions(
            self.req_to_token, chosen, query_start_loc=batch.query_start_loc, req_pool_indices=self.rows,
            seq_lens=batch.lens, compact=self.compact, counts=counts if self.compact else None, out=slots,
            status=self.status,
        )  # fmt: skip
        there = slots >= 0
        entries = self.entries[slots.clamp(min=0).long()].masked_fill(~there[..., None], 0)
        if self.compact:
            return self.model.logits(batch.tokens, lambda query: torch_attention(query, entries, counts))
        return self.model.logits(batch.tokens, lambda query: masked_attention(query, entries, there))


def masked_attention(query: Tensor, entries: Tensor, mask: Tensor) -> Tensor:
    """Attention of each query over the entries of its row that the mask shows."""
    scores = torch.einsum("bhd,bkd->bhk", query.float(), entries.float()) * SCALE
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhk,bkd->bhd", weights, entries[..., :CKV].float())


def generate(cache: Cache, prompts: list[Tensor], steps: int, captured: bool) -> Tensor:
    """Returns the logits after every query token, ``[tokens, VOCAB]``, on the CPU."""
    device = prompts[0].device
    before = [n - q for n, q in zip(PROMPTS, QUERIES, strict=True)]
    # the first part of the prefill, which for one layer needs no attention
    cache.write(batch_of([x[:n] for x, n in zip(prompts, before, strict=True)], before))
    rest = batch_of([x[n:] for x, n in zip(prompts, before, strict=True)], PROMPTS)
    cache.write(rest)
    logits = [cache.logits(rest).cpu()]
    last = torch.tensor(QUERIES).cumsum(0) - 1
    first = logits[0][last].argmax(-1).to(device)

    tokens, lens = first.clone(), torch.tensor(PROMPTS, device=device) + 1
    batch = Batch(tokens, torch.arange(len(PROMPTS), device=device), lens, lens, torch.ones_like(lens), None)
    now = torch.empty(len(PROMPTS), VOCAB, device=device)

    def step() -> None:
        cache.write(batch)
        now.copy_(cache.logits(batch))
        tokens.copy_(now.argmax(-1))
        lens.add_(1)

    graph = None
    if captured:
        step()  # compiles and loads before the capture
        tokens.copy_(first), lens.sub_(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    for _ in range(steps):
        graph.replay() if graph else step()
        logits.append(now.to("cpu", copy=True))
    return torch.cat(logits)


def main(argv: list[str] | None = None) -> int:
    """Runs both and compares them with the dense cache; returns 1 if they differ."""
    parser = argparse.ArgumentParser(description="Sparse attention with the slots of chosen positions.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--k", type=int, default=32, help="positions of each query token, at most")
    parser.add_argument("--page-size", type=int, default=64, help="tokens per page")
    parser.add_argument("--steps", type=int, default=16, help="tokens to decode for each request")
    args = parser.parse_args(argv)

    captured = args.device != "cpu" and torch.cuda.is_available()
    model = SparseModel(0, args.device, args.k)
    prompts = [torch.randint(VOCAB, (n,)).to(args.device) for n in PROMPTS]
    most = max(max(PROMPTS) + args.steps, args.k)
    dense = generate(Dense(model, most, args.device), prompts, args.steps, captured=False)
    wrong, furthest = {}, 0.0
    for name, compact in (("in place", False), ("packed", True)):
        cache = Paged(model, most, args.page_size, compact, args.device)
        logits = generate(cache, prompts, args.steps, captured)
        cache.status.check()
        far = (logits - dense).abs().amax(-1).nan_to_num(torch.inf)
        wrong[name] = int(((logits.argmax(-1) != dense.argmax(-1)) | (far > TOLERANCE)).sum())
        furthest = max(furthest, float(far.max()))
    print(
        f"{len(PROMPTS)} requests of {min(PROMPTS)} to {max(PROMPTS)} tokens, {args.steps} steps on"
        f" {args.device}{', each one graph' if captured else ''}, {args.k} positions, pages of"
        f" {args.page_size}: {wrong['in place']} (in place) and {wrong['packed']} (packed) of {len(dense)}"
        f" tokens differ from the dense cache's, logits by at most {furthest:.6f}"
    )
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
