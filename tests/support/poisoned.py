"""Batches over a scattered paged cache in which NaN is what nobody may read, and the dense result beside it.

Only what the rows of a batch own holds numbers: the tokens up to each row's length, and page 0, which padding
names. All else is NaN: pages of nobody, those of other rows, and those that stale entries of ``req_to_token``
name behind a row's length. ``tail`` stands behind the live tokens of a row's last page: NaN, or a number for
the kernels that load whole pages and multiply what is behind by 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from dense import Cache, attend, trace_lengths
from foreign import EMULATED, GPU, INTERPRETER

import xkv
from xkv import rocm
from xkv.platforms.specs import TRITON, BackendSpec

NAN = float("nan")
FINITE = 100.0  # far outside of the values, and such that products with it stay finite in half precision
MODES = ("decode", "verify", "mixed")
DRAFTS = 3
SPECS = {spec.name: spec for spec in (*rocm.SPECS, TRITON)}


class Sizes(NamedTuple):
    """How large things are: as in an engine on a GPU, tiny where a program takes milliseconds or more."""

    requests: int
    tokens: int
    prompt: int  # query tokens of a prefill, at most
    heads: int
    heads_kv: int
    dim: int
    latent: tuple[int, int]  # MLA: the compressed part, the rotary part
    dtype: torch.dtype


SIZES = {
    GPU: Sizes(16, 4096, 300, 8, 2, 128, (512, 64), torch.bfloat16),
    INTERPRETER: Sizes(5, 140, 30, 4, 2, 16, (32, 16), torch.float16),
    EMULATED: Sizes(3, 80, 20, 4, 2, 16, (32, 16), torch.float16),
}


@dataclass
class Step:
    """A batch: its rows of the table, their tokens with the query's, the query tokens of each."""

    mode: str
    cache: Cache
    page_size: int
    rows: torch.Tensor
    lens: list[int]
    queries: list[int]
    query: torch.Tensor
    new: torch.Tensor  # what the query tokens added to the cache: [query tokens, *item]

    @property
    def device(self) -> Any:
        return self.rows.device

    @property
    def max_query(self) -> int:
        return max(self.queries)


def lengths(sizes: Sizes, page_size: int) -> list[int]:
    """On either side of the ends of pages and of the table, and a trace's, cut to what the table holds."""
    edges = [sizes.tokens, page_size + 1, page_size, max(page_size - 1, 1)]
    return [*edges, *trace_lengths(sizes.requests, sizes.tokens)][: sizes.requests]


def make_step(
    place: str, page_size: int, mode: str, *, item: Sequence[int] | None = None, tail: float = NAN,
    prefix_only: bool = False, window: int | None = None,
) -> Step:  # fmt: skip
    """A step with two rows that pad it: one token of row 0, as SGLang's, and none, as vLLM's.

    Args:
        place: where kernels run: SIZES.
        page_size: tokens of a page.
        mode: decode: a query token each; verify: DRAFTS each; mixed: one or many.
        item: what a token holds; None: keys and values of each head.
        tail: what is behind the last token of a row's last page.
        prefix_only: the query tokens' items are not in the cache: NaN there.
        window: pages that are wholly before what the first query token sees are NaN.
    """
    sizes = SIZES[place]
    device = "cuda" if place == GPU else "cpu"
    generator = torch.Generator(device).manual_seed(page_size)
    drawn = {"generator": generator, "device": device}
    item = item or (2, sizes.heads_kv, sizes.dim)
    draw = lambda *shape: torch.randn(*shape, **drawn).to(sizes.dtype)  # noqa: E731

    before, queries = lengths(sizes, page_size), [1] * sizes.requests
    if mode == "verify":
        queries = [DRAFTS] * sizes.requests
    if mode == "mixed":
        queries = [1 if n % 3 == 1 else 1 + (7 * n + page_size) % sizes.prompt for n in range(sizes.requests)]
    lens = [max(n, q) for n, q in zip(before, queries, strict=True)]
    if mode == "mixed":
        lens[2] = queries[2]  # a prompt without a prefix
        padding = [(0, 0)]
    else:
        drafts = DRAFTS if mode == "verify" else 0
        padding = [(1 + drafts, queries[0]), (drafts, queries[0])]
    live = len(lens)
    lens, queries = lens + [n for n, _ in padding], queries + [q for _, q in padding]

    pool, width = live + 4, -(-sizes.tokens // page_size)
    pages = pool * width + 8
    scattered = (torch.randperm(pages - 1, **drawn)[: pool * width] + 1).view(pool, width)
    slots = (scattered[..., None] * page_size + torch.arange(page_size, device=device)).view(pool, -1)
    slots[0] = 0  # the padding row
    dense = draw(pool, width * page_size, *item)
    paged = torch.full((pages * page_size, *item), NAN, dtype=sizes.dtype, device=device)
    paged[:page_size] = dense[0, :page_size]
    dense[0] = dense[0, :page_size].repeat(width, *[1] * len(item))
    if page_size == 1:
        dense[0] = dense[0, :1]
    rows = 1 + torch.randperm(pool - 1, **drawn)[:live]
    for row, n, q in zip(rows.tolist(), lens, queries, strict=False):
        end = n - q if prefix_only else n
        begin = 0 if window is None else max(n - q + 1 - window, 0) // page_size * page_size
        paged[slots[row, begin:end]] = dense[row, begin:end]
        paged[slots[row, end : -(-end // page_size) * page_size]] = tail
    rows = torch.cat([rows, torch.zeros(len(padding), dtype=torch.int64, device=device)])
    new = [dense[row, n - q : n] for row, n, q in zip(rows.tolist(), lens, queries, strict=True) if n >= q]
    query = draw(sum(queries), sizes.heads, item[-1])
    cache = Cache(dense, paged.view(pages, page_size, *item), slots.int())
    return Step(mode, cache, page_size, rows, lens, queries, query, torch.cat(new))


def build(step: Step, spec: BackendSpec | str, prefix_only: bool = False, **options: Any) -> xkv.Metadata:
    """What a builder of the spec makes of the step, of each row's prefix alone if asked so."""
    spec = SPECS[spec] if isinstance(spec, str) else spec
    source = step.cache.req_to_token
    builder = xkv.MetadataBuilder(
        spec, source, max_batch_size=len(step.lens) + 3, max_context_len=source.shape[1],
        page_size=step.page_size, **options,
    )  # fmt: skip
    lens, queries = (torch.tensor(x, device=step.device) for x in (step.lens, step.queries))
    if step.mode == "decode" and not prefix_only:
        meta = builder.build(step.rows, lens)
    elif step.mode == "verify" and not prefix_only:
        meta = builder.build(step.rows, lens - DRAFTS, seq_lens_delta=DRAFTS, query_lens=DRAFTS)
    else:
        sign = 0 if prefix_only else 1
        meta = builder.build(step.rows, lens - queries, query_lens=queries, query_lens_sign=sign)
    builder.check()
    return meta


def slopes(step: Step) -> torch.Tensor:
    """ALiBi's: without, attention does not see in which order a table names pages."""
    heads = step.query.shape[1]
    return torch.tensor([2.0 ** -(1 + 6 * n / heads) for n in range(heads)], device=step.device)


def assert_attends(
    out: torch.Tensor,
    step: Step,
    values: int | None = None,
    window: int | None = None,
    has_slopes: bool = False,
    atol: float = 8e-3,
) -> None:
    """Holds what a kernel wrote to attention over the dense rows, those that pad the batch included.

    Args:
        out: ``[query tokens, heads, dim]``.
        step: what was read.
        values: MLA: the first entries of an item that are its value; None: items are keys and values.
        window: tokens that a query token sees.
        has_slopes: whether the kernel was given `slopes`.
        atol: how far an entry may be off beside 1.6 % of it: bf16 keeps 8 bits of probabilities and results.
    """
    bias = slopes(step) if has_slopes else None
    scale = step.query.shape[-1] ** -0.5
    begins = torch.tensor([0, *step.queries]).cumsum(0).tolist()
    for b, (row, n, q) in enumerate(zip(step.rows.tolist(), step.lens, step.queries, strict=True)):
        if n == 0:
            continue
        item = step.cache.dense[row, :n]
        keys, content = item.unbind(1) if values is None else (item[:, None], item[:, None, :values])
        asked = slice(begins[b], begins[b] + q)
        want = attend(step.query[asked], keys, content, scale=scale, window=window, slopes=bias)
        torch.testing.assert_close(
            out[asked].float(), want, rtol=1.6e-2, atol=atol, msg=lambda text, b=b, n=n, q=q: (
                f"row {b}, {n} tokens, {q} of them the query's: {text}"
            ),
        )  # fmt: skip
