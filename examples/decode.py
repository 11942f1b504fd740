"""A decode loop over a paged KV cache, which compares tokens with xkv, with plain Python, and without pages.

    python examples/decode.py                 # on the GPU if there is one, else on the CPU, in seconds
    python examples/decode.py --device cpu --steps 8

One MLA layer with random weights generates greedily for a few requests, three times:

* xkv: `MetadataBuilder.build` once, when the requests are admitted; in each step `MetadataBuilder.extend`
  gives the slot of the new token and the metadata that attention reads, in one launch, which writes only what
  is new. On a GPU it is captured, with the whole step, in one graph.
* reference: loops in plain Python build the same metadata, without a graph.
* dense: no pages; every request has a contiguous cache of its own.

Attention over pages is FlashInfer's on an NVIDIA GPU if it is installed, and torch's otherwise. FlashInfer
reads a stream of pages (CSR), in which a row moves when one before it grows: an extension of it is a build.
Exits with 1 if any token differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from mla import CKV, KPE, VOCAB, FlashInferPaged, Model, TorchPaged, decode_dense
from torch import Tensor

import xkv

PROMPTS = [3, 64, 150, 37, 129]  # tokens
Build = Callable[[Tensor], tuple[Tensor, Any]]  # lengths -> slots of the new tokens, attention's metadata


class Work:
    """The requests, and what an engine keeps of them: a table of slots, and pages scattered over a cache."""

    def __init__(self, model: Model, page_size: int, steps: int, device: str) -> None:
        self.prompts = [torch.randint(VOCAB, (n,)).to(device) for n in PROMPTS]
        self.tokens = torch.stack([prompt[-1] for prompt in self.prompts])  # the first step's input
        self.lens = torch.tensor(PROMPTS, device=device)  # including the token that the step writes
        self.most, self.page_size = max(PROMPTS) + steps, page_size
        rows, width = len(PROMPTS) + 2, -(-self.most // page_size)
        pages = torch.randperm(rows * width).view(rows, width, 1) * page_size
        self.req_to_token = (pages + torch.arange(page_size)).flatten(1).int().to(device)
        self.rows = torch.randperm(rows)[: len(PROMPTS)].to(device)
        # unused slots hold random values, so that reading a wrong one changes the result
        self.paged = torch.randn(rows * width, page_size, CKV + KPE).half().to(device)
        for b, prompt in enumerate(self.prompts):  # the prefill, which for one layer needs no attention
            entries = model.cache_entries(prompt[:-1])
            self.paged.flatten(0, 1)[self.req_to_token[self.rows[b], : len(entries)].long()] = entries


def xkv_metadata(work: Work, backend: str) -> Build:
    """Builds the metadata of a step in one launch, without a sync or an allocation."""
    builder = xkv.MetadataBuilder(
        backend, work.req_to_token, max_batch_size=len(PROMPTS), max_context_len=work.most,
        page_size=work.page_size, slot_mapping=xkv.SlotMapping(max_tokens=len(PROMPTS)),
    )  # fmt: skip
    builder.build(work.rows, work.lens)  # the requests are admitted; from here on they only grow

    def extend(lens: Tensor) -> tuple[Tensor, Any]:
        meta = builder.extend(work.rows, lens)
        return meta.slot_mapping, meta

    return extend


def python_metadata(work: Work) -> Build:
    """Builds the same metadata in plain Python."""

    def build(lens: Tensor) -> tuple[Tensor, Any]:
        slots, indptr, indices = [], [0], []
        for row, n in zip(work.rows.tolist(), lens.tolist(), strict=True):
            table = work.req_to_token[row, :n].tolist()
            slots.append(table[-1])
            indices += [slot // work.page_size for slot in table[:: work.page_size]]
            indptr.append(len(indices))
        ints = lambda values: torch.tensor(values, dtype=torch.int32, device=lens.device)  # noqa: E731
        return torch.tensor(slots, device=lens.device), SimpleNamespace(
            kv_indptr=ints(indptr), kv_indices=ints(indices), kv_len_arr=lens.int(), page_table=None
        )

    return build


def decode_paged(
    model: Model, work: Work, steps: int, build: Build, captured: bool, flashinfer: bool
) -> Tensor:
    """Returns the logits of every step, ``[steps, batch, VOCAB]``, on the CPU."""
    paged, tokens, lens = work.paged.clone(), work.tokens.clone(), work.lens.clone()
    logits = torch.empty(steps, len(PROMPTS), VOCAB)
    now = logits[0].to(lens.device, copy=True)
    buffers = build(lens)[1] if captured else None  # tensors with fixed addresses
    attention = FlashInferPaged(paged, buffers) if flashinfer else TorchPaged(paged, work.most)

    def step(host_lens: list[int] | None) -> None:
        slots, meta = build(lens)
        if host_lens:
            attention.plan(host_lens, meta)
        paged.flatten(0, 1)[slots] = model.cache_entries(tokens)
        now.copy_(model.logits(tokens, lambda query: attention(query, meta)))
        tokens.copy_(now.argmax(-1))
        lens.add_(1)

    if captured:
        attention.plan(PROMPTS, buffers)
        step(None)  # compiles and loads before the capture
        tokens.copy_(work.tokens), lens.copy_(work.lens)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(None)
    for n in range(steps):
        host_lens = [length + n for length in PROMPTS]
        if captured:
            attention.plan(host_lens, buffers)
            graph.replay()
        else:
            step(host_lens)
        logits[n] = now  # syncs, as an engine does to send tokens to its users
    return logits


def main(argv: list[str] | None = None) -> int:
    """Runs all three and compares their tokens; returns 1 if they differ."""
    parser = argparse.ArgumentParser(description="A decode loop with metadata by xkv and by others.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=16, help="tokens to generate for each request")
    parser.add_argument("--page-size", type=int, help="tokens per page (default: the backend's)")
    parser.add_argument("--attention", choices=["flashinfer", "torch"], help="default: what is installed")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, prompts and pages")
    args = parser.parse_args(argv)

    there = {spec.name: spec for spec in xkv.backends(args.device)}
    on_gpu = args.device != "cpu"
    can = on_gpu and "flashinfer_mla" in there and importlib.util.find_spec("flashinfer") is not None
    flashinfer = can if args.attention is None else args.attention == "flashinfer"
    # torch reads page tables: of NVIDIA's backends or AMD's; a CPU has both
    tables = there.get("flash_attention") or there["aiter_unified"]
    backend = there["flashinfer_mla"] if flashinfer else tables

    model = Model(args.seed, args.device)
    work = Work(model, args.page_size or backend.page_size, args.steps, args.device)
    ours = decode_paged(model, work, args.steps, xkv_metadata(work, backend.name), on_gpu, flashinfer)
    others = {
        "reference": decode_paged(model, work, args.steps, python_metadata(work), False, flashinfer),
        "dense": decode_dense(model, work.prompts, args.steps),
    }

    best = ours.topk(2).values
    print(
        f"{len(PROMPTS)} requests of {min(PROMPTS)} to {max(PROMPTS)} tokens, {args.steps} steps on"
        f" {args.device}\n"
        f"pages of {work.page_size} tokens, attention by {'FlashInfer' if flashinfer else 'torch'}\n"
        f"xkv: {backend.name}, {'each step one graph' if on_gpu else 'eager'};"
        f" smallest gap between the two best logits {float((best[..., 0] - best[..., 1]).min()):.4f}"
    )
    differ = 0
    for name, logits in others.items():
        wrong = int((logits.argmax(-1) != ours.argmax(-1)).sum())
        print(
            f"{name}: {wrong} of {logits[..., 0].numel()} tokens differ,"
            f" logits differ by at most {float((logits - ours).abs().max()):.6f}"
        )
        differ += wrong
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
