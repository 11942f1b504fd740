"""Decode context parallelism: every rank has a part of each request's KV cache, and metadata of its own.

    torchrun --standalone --nproc-per-node 2 examples/context_parallel.py          # a GPU a rank, or the CPU
    torchrun --standalone --nproc-per-node 2 examples/context_parallel.py --source local --interleave 1 16

One MLA layer with random weights generates greedily for a few requests. Rank r holds the tokens that
`xkv.Shard` gives it, in pages scattered over its cache. In each step `xkv.build_slot_mapping` says which of
the new tokens it writes, and where; `MetadataBuilder.build` gives the pages and lengths of its shards. Each
rank attends to its own tokens; the outputs are combined by their log-sum-exp over torch.distributed (NCCL on
GPUs, where each step is one graph, and gloo on the CPU). A rank may have no token of a request: its part then
has no weight.

Every rank compares its tokens with those of a dense cache. Exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Literal

import torch
import torch.distributed as dist
from mla import CKV, KPE, VOCAB, Model, TorchPaged, decode_dense
from torch import Tensor

import xkv

PROMPTS = [1, 3, 64, 150, 37, 129]  # tokens


class Rank:
    """What one rank keeps: its table, its pages, and the buffers of its metadata."""

    def __init__(self, model: Model, shard: xkv.Shard, page_size: int, most: int, device: str) -> None:
        self.model, self.shard = model, shard
        rows, width = len(PROMPTS) + 2, -(-most // (page_size * shard.size))
        generator = torch.Generator().manual_seed(0)  # a global table is the same on all ranks
        table = torch.randperm(rows * width, generator=generator).view(rows, width)
        self.source_page_size = page_size  # as vLLM: page ids of this rank, by local position
        if shard.source == "global":  # as SGLang: slots of a cache of all ranks, by position in the row
            span, self.source_page_size = page_size * shard.size, 1
            table = (table[..., None] * span + torch.arange(span)).flatten(1)
        self.req_to_token = table.int().to(device)
        self.rows = torch.randperm(rows, generator=generator)[: len(PROMPTS)].to(device)
        # unused slots hold random values, so that reading a wrong one changes the result
        pool = torch.randn(rows * width, page_size, CKV + KPE, generator=generator)
        self.paged = torch.cat([pool, pool[:1]]).half().to(device)  # the last page takes what others hold
        self.builder = xkv.MetadataBuilder(
            "flashinfer_mla" if torch.version.hip is None else "aiter_mla", self.req_to_token,
            max_batch_size=len(PROMPTS), max_context_len=most, page_size=page_size,
            source_page_size=self.source_page_size, shard=shard,
        )  # fmt: skip
        self.attention = TorchPaged(self.paged[:-1], most)

    def write(self, tokens: Tensor, lens: Tensor, query_lens: Tensor) -> None:
        """Writes the cache entries of each row's last tokens; those of other ranks into the spare page."""
        slots = torch.empty(len(tokens), dtype=torch.int64, device=tokens.device)
        xkv.build_slot_mapping(
            self.req_to_token, self.rows, lens, query_lens, source_page_size=self.source_page_size,
            shard=self.shard, out=slots,
        )  # fmt: skip
        spare = (len(self.paged) - 1) * self.paged.shape[1]
        slots = torch.where(slots < 0, spare, slots)
        self.paged.flatten(0, 1)[slots] = self.model.cache_entries(tokens)

    def attend(self, query: Tensor, lens: Tensor) -> Tensor:
        """Returns attention over all ranks' tokens, ``[batch, HEADS, CKV]``, the same on every rank."""
        meta = self.builder.build(self.rows, lens)
        mine, lse = self.attention.with_lse(query, meta)
        lse = lse.masked_fill(meta.empty_rows[:, None], -torch.inf)
        every = [torch.empty_like(lse) for _ in range(self.shard.size)]
        dist.all_gather(every, lse)
        weight = (lse - torch.stack(every).logsumexp(0)).exp()
        total = torch.where(weight[..., None] > 0, mine * weight[..., None], 0)
        dist.all_reduce(total)
        return total


def decode(model: Model, rank: Rank, prompts: list[Tensor], steps: int, captured: bool) -> Tensor:
    """Returns the tokens of every step, ``[steps, batch]``, on the CPU."""
    device = rank.rows.device
    lens = torch.tensor(PROMPTS, device=device)
    rank.write(torch.cat([x[:-1] for x in prompts]), lens - 1, lens - 1)  # the prefill, but for attention
    last = torch.stack([x[-1] for x in prompts])
    tokens, one = last.clone(), torch.ones_like(lens)

    def step() -> None:
        rank.write(tokens, lens, one)
        tokens.copy_(model.logits(tokens, lambda query: rank.attend(query, lens)).argmax(-1))
        lens.add_(1)

    graph = None
    if captured:
        step()  # compiles, loads and connects before the capture
        tokens.copy_(last), lens.sub_(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    found = []
    for _ in range(steps):
        graph.replay() if graph else step()
        found.append(tokens.to("cpu", copy=True))
    rank.builder.check()
    return torch.stack(found)


def run(source: Literal["local", "global"], interleave: int, page_size: int, steps: int, cpu: bool) -> int:
    """Compares this rank's tokens with the dense ones; returns how many differ on any rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    device = "cpu" if cpu else f"cuda:{torch.cuda.current_device()}"
    model = Model(0, device)
    prompts = [torch.randint(VOCAB, (n,)).to(device) for n in PROMPTS]
    shard = xkv.Shard(size, rank, interleave, source)
    mine = Rank(model, shard, page_size, max(PROMPTS) + steps, device)
    tokens = decode(model, mine, prompts, steps, captured=not cpu)
    wrong: Any = (tokens != decode_dense(model, prompts, steps).argmax(-1)).sum().to(device)
    dist.all_reduce(wrong)
    if rank == 0:
        print(
            f"{size} ranks, {dist.get_backend()}, {source} table, runs of {interleave}, pages of {page_size}:"
            f" {int(wrong)} of {size * tokens.numel()} tokens differ from the dense cache's"
        )
    return int(wrong)


def main(argv: list[str] | None = None) -> int:
    """Runs the example on this rank; returns 1 if a token differs."""
    parser = argparse.ArgumentParser(description="Decode context parallelism with metadata by xkv.")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: a GPU a rank if there are enough")
    parser.add_argument("--source", choices=["local", "global"], default="global", help="of the table")
    parser.add_argument("--interleave", type=int, nargs="+", default=[1], help="tokens in a run")
    parser.add_argument("--page-size", type=int, default=64, help="tokens per page")
    parser.add_argument("--steps", type=int, default=16, help="tokens to generate for each request")
    args = parser.parse_args(argv)
    ranks = int(os.environ["WORLD_SIZE"])
    cpu = args.device == "cpu" or (args.device is None and torch.cuda.device_count() < ranks)
    if not cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if cpu else "nccl")
    try:
        wrong = sum(run(args.source, n, args.page_size, args.steps, cpu) for n in args.interleave)
    finally:
        dist.destroy_process_group()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
