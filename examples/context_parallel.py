"""Decode context parallelism: every rank has a part of each request's KV cache, and metadata of its own.

    torchrun --standalone --nproc-per-node 2 examples/context_parallel.py          # a GPU a rank, or the CPU
    torchrun --standalone --nproc-per-node 2 examples/context_parallel.py --source local --interleave 1 16

One MLA layer with random weights generates greedily for a few requests. Rank r holds the tokens that
`xkv.Shard` gives it, in pages scattered over its cache. In each step one launch of `MetadataBuilder.build`
gives the pages and lengths of its shards, and the slots of the new tokens that it holds. Each rank attends to
its own tokens, with FlashInfer on an NVIDIA GPU if it is installed and with torch otherwise; the outputs are
combined by their log-sum-exp over torch.distributed: NCCL on GPUs, where each step is one graph; gloo on the
CPU, and where ranks share a GPU. A rank may have no token of a request: its part then has no weight.

Every rank compares its tokens with those of a dense cache. Exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from mla import CKV, KPE, VOCAB, FlashInferPaged, Model, TorchPaged, decode_dense
from torch import Tensor

import xkv

PROMPTS = [1, 3, 64, 150, 37, 129]  # tokens


class Rank:
    """What one rank keeps: its table, its pages, and the buffers of its metadata."""

    def __init__(
        self, model: Model, shard: xkv.Shard, page_size: int, most: int, device: str, flashinfer: bool,
        captured: bool,
    ) -> None:  # fmt: skip
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
            source_page_size=self.source_page_size, shard=shard, slot_mapping=xkv.SlotMapping(len(PROMPTS)),
        )  # fmt: skip
        pages = self.paged[:-1]
        self.attention: Any = TorchPaged(pages, most)
        self.buffers = self.builder.build(self.rows, torch.ones_like(self.rows))
        if flashinfer:  # in a graph, it keeps the addresses of the builder's buffers
            self.attention = FlashInferPaged(pages, self.buffers if captured else None)

    def prefill(self, prompts: list[Tensor], lens: Tensor) -> None:
        """Writes the cache entries of all tokens of each prompt but the last."""
        tokens = torch.cat([x[:-1] for x in prompts])
        slots = torch.empty(len(tokens), dtype=torch.int64, device=tokens.device)
        xkv.build_slot_mapping(
            self.req_to_token, self.rows, lens - 1, lens - 1, source_page_size=self.source_page_size,
            shard=self.shard, out=slots,
        )  # fmt: skip
        self.write(tokens, slots)

    def write(self, tokens: Tensor, slots: Tensor) -> None:
        """Writes the cache entries of tokens; those that other ranks hold, into the spare page."""
        spare = (len(self.paged) - 1) * self.paged.shape[1]
        self.paged.flatten(0, 1)[torch.where(slots < 0, spare, slots)] = self.model.cache_entries(tokens)

    def plan(self, lens: list[int]) -> None:
        """Tells the attention kernel, before a step, how long this rank's shards will be."""
        self.attention.plan([self.shard.local_length(n) for n in lens], self.buffers)

    def attend(self, query: Tensor, meta: Any) -> Tensor:
        """Returns attention over all ranks' tokens, ``[batch, HEADS, CKV]``, the same on every rank."""
        mine, lse = self.attention.with_lse(query, meta)
        if meta.empty_rows is not None:  # of more ranks than one
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
    rank.prefill(prompts, lens)
    last = torch.stack([x[-1] for x in prompts])
    tokens = last.clone()
    rank.plan(PROMPTS)

    def step() -> None:
        meta = rank.builder.build(rank.rows, lens)
        rank.write(tokens, meta.slot_mapping)
        tokens.copy_(model.logits(tokens, lambda query: rank.attend(query, meta)).argmax(-1))
        lens.add_(1)

    graph = None
    if captured:
        step()  # compiles, loads and connects before the capture
        tokens.copy_(last), lens.sub_(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    found = []
    for n in range(steps):
        rank.plan([length + n for length in PROMPTS])
        graph.replay() if graph else step()
        found.append(tokens.to("cpu", copy=True))
    rank.builder.check()
    return torch.stack(found)


def run(args: argparse.Namespace, interleave: int, device: str, flashinfer: bool) -> int:
    """Compares this rank's tokens with the dense ones; returns how many differ on any rank."""
    rank, size, captured = dist.get_rank(), dist.get_world_size(), dist.get_backend() == "nccl"
    model = Model(0, device)
    prompts = [torch.randint(VOCAB, (n,)).to(device) for n in PROMPTS]
    shard = xkv.Shard(size, rank, interleave, args.source)
    mine = Rank(model, shard, args.page_size, max(PROMPTS) + args.steps, device, flashinfer, captured)
    tokens = decode(model, mine, prompts, args.steps, captured)
    wrong: Any = (tokens != decode_dense(model, prompts, args.steps).argmax(-1)).sum().to(device)
    dist.all_reduce(wrong)
    if rank == 0:
        print(
            f"{size} ranks, {dist.get_backend()}{', graphs' if captured else ''}, attention by"
            f" {'FlashInfer' if flashinfer else 'torch'}, {args.source} table, runs of {interleave}, pages of"
            f" {args.page_size}: {int(wrong)} of {size * tokens.numel()} tokens differ from the dense cache's"
        )
    return int(wrong)


def main(argv: list[str] | None = None) -> int:
    """Runs the example on this rank; returns 1 if a token differs."""
    parser = argparse.ArgumentParser(description="Decode context parallelism with metadata by xkv.")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: GPUs if each rank can have one")
    parser.add_argument("--source", choices=["local", "global"], default="global", help="of the table")
    parser.add_argument("--interleave", type=int, nargs="+", default=[1], help="tokens in a run")
    parser.add_argument("--page-size", type=int, default=64, help="tokens per page")
    parser.add_argument("--steps", type=int, default=16, help="tokens to generate for each request")
    parser.add_argument("--attention", choices=["flashinfer", "torch"], help="default: what is installed")
    args = parser.parse_args(argv)
    ranks, gpus = int(os.environ["WORLD_SIZE"]), torch.cuda.device_count()
    backend, device = "gloo", "cpu"
    if args.device == "cuda" or (args.device is None and gpus >= ranks):
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % gpus}"
        torch.cuda.set_device(device)
        backend = "nccl" if gpus >= ranks else "gloo"  # NCCL has no two ranks on one GPU
    can = torch.version.hip is None and importlib.util.find_spec("flashinfer") is not None
    flashinfer = (device != "cpu" and can) if args.attention is None else args.attention == "flashinfer"
    dist.init_process_group(backend)
    try:
        wrong = sum(run(args, n, device, flashinfer) for n in args.interleave)
    finally:
        dist.destroy_process_group()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
