"""A paged cache beside a dense one, batches over it, and attention in plain torch over the dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import xkv
from xkv.cli.demo.traces import read_trace, synthetic_trace

DEVICE = "cuda"
ROOT = Path(__file__).resolve().parents[2]
# beside the checkout, or carried along to a machine without it
TRACES = [ROOT.parent / "shared" / "traces", ROOT / ".traces", ROOT / "shared" / "traces"]
BATCH, ROWS, TOKENS = 16, 19, 4096
HEADS, CKV, KPE = 16, 512, 64  # DeepSeek's latent attention
SCALE = (128 + 64) ** -0.5


@dataclass
class Cache:
    """What every row holds, ``[rows, TOKENS, ...]``; the same in scattered pages; and where it is."""

    dense: torch.Tensor
    paged: torch.Tensor
    req_to_token: torch.Tensor


def make_cache(page_size: int, *item: int) -> Cache:
    torch.manual_seed(page_size)
    pages, unused = ROWS * TOKENS // page_size, 7  # nobody's pages hold something too
    dense = torch.randn(ROWS, TOKENS, *item, dtype=torch.bfloat16, device=DEVICE)
    paged = torch.randn(pages + unused, page_size, *item, dtype=torch.bfloat16, device=DEVICE)
    scattered = torch.randperm(pages + unused, device=DEVICE)[:pages].view(ROWS, -1)
    paged[scattered] = dense.view(ROWS, -1, page_size, *item)
    slots = scattered[..., None] * page_size + torch.arange(page_size, device=DEVICE)
    return Cache(dense, paged, slots.view(ROWS, TOKENS).int())


def prompts() -> list[int]:
    """Lengths of a trace's prompts."""
    file = next(filter(Path.is_file, (at / "mooncake_conversation.jsonl" for at in TRACES)), None)
    trace = read_trace(file, limit=1000) if file else synthetic_trace(1000, seed=0)
    return [request.input_len for request in trace]


def trace_lengths(n: int, tokens: int) -> list[int]:
    """So many of them, what is longer cut to the rest that whole tables of these tokens leave of it."""
    return [1 + (length - 1) % tokens for length in prompts()[:n]]


def lengths(part: int = 0) -> list[int]:
    """Prompts of a trace, those that fit, and lengths on either side of a page's end."""
    drawn = [length for length in prompts() if length <= TOKENS]
    edges = [5, 63 + part % 2, 65, TOKENS - part]
    return edges + drawn[part * BATCH :][: BATCH - len(edges)]


def some_rows() -> torch.Tensor:
    return torch.randperm(ROWS, device=DEVICE)[:BATCH]


def build(
    backend: str, cache: Cache, page_size: int, queries: int, **options: Any
) -> tuple[torch.Tensor, list[int], xkv.Metadata]:
    """The rows, the lengths with the query tokens in them, and what we make of them."""
    rows, lens = some_rows(), lengths()
    builder = xkv.MetadataBuilder(
        backend, cache.req_to_token, max_batch_size=BATCH, max_context_len=TOKENS,
        page_size=page_size,
    )  # fmt: skip
    before = torch.tensor(lens, device=DEVICE)
    if queries > 1:  # verify: the lengths are those before the draft tokens
        before, options = before - queries, {"seq_lens_delta": queries, "query_lens": queries}
    meta = builder.build(rows, before, **options)
    builder.check()
    return rows, lens, meta


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *,
    scale: float = SCALE, window: int | None = None, slopes: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The last ``len(query)`` tokens of a dense sequence, each over itself and what precedes it.

    With a window, each over that many tokens, itself included; with slopes, one a head, ALiBi's bias.
    """
    query, keys, values = query.float(), keys.float(), values.float()
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    position = torch.arange(len(keys), device=keys.device)
    own = position[-len(query) :, None]
    hidden = position > own
    if window is not None:
        hidden |= position <= own - window
    if slopes is not None:
        scores += slopes[:, None, None] * (position - own)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


def assert_mla(
    out: torch.Tensor, query: torch.Tensor, cache: Cache, rows: torch.Tensor, lens: list[int]
) -> None:
    """Keys are all of an item, values its first CKV entries, one head of them for all queries."""
    out, query = (x.view(BATCH, -1, *x.shape[-2:]) for x in (out, query))
    for b, (row, n) in enumerate(zip(rows.tolist(), lens, strict=True)):
        keys = cache.dense[row, :n, None]
        assert_close(out[b], attend(query[b], keys, keys[..., :CKV]), b, n)


def assert_gqa(
    out: torch.Tensor, query: torch.Tensor, cache: Cache, rows: torch.Tensor, lens: list[int]
) -> None:
    out, query = (x.view(BATCH, -1, *x.shape[-2:]) for x in (out, query))
    for b, (row, n) in enumerate(zip(rows.tolist(), lens, strict=True)):
        assert_close(out[b], attend(query[b], *cache.dense[row, :n].unbind(1)), b, n)


def assert_close(got: torch.Tensor, want: torch.Tensor, b: int, n: int) -> None:
    # bf16 keeps 8 bits of the probabilities and of the result
    torch.testing.assert_close(
        got.float(), want, rtol=1e-2, atol=6e-3, msg=lambda text: f"row {b}, {n} tokens: {text}"
    )


def random_query(queries: int, *item: int) -> torch.Tensor:
    return torch.randn(BATCH * queries, *item, dtype=torch.bfloat16, device=DEVICE)
