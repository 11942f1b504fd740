"""One MLA layer with random weights and attention over a paged cache, for the examples beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HEADS, CKV, KPE = 16, 512, 64  # DeepSeek's latent attention; a token has CKV + KPE values in the cache
SCALE = (128 + KPE) ** -0.5
HIDDEN, VOCAB = 256, 128


class Model:
    """One MLA layer between an embedding and its transpose, without positions and norms."""

    def __init__(self, seed: int, device: str) -> None:
        torch.manual_seed(seed)  # on the CPU, so that every device has the same weights
        normal = lambda rows, columns: (torch.randn(rows, columns) / rows**0.5).to(device)  # noqa: E731
        self.query, self.latent = normal(HIDDEN, HEADS * (CKV + KPE)), normal(HIDDEN, CKV + KPE)
        self.output, self.embedding = normal(HEADS * CKV, HIDDEN), torch.randn(VOCAB, HIDDEN).to(device)

    def cache_entries(self, tokens: Tensor) -> Tensor:
        """Returns the cache entries of tokens."""
        return (self.embedding[tokens] @ self.latent).half()

    def logits(self, tokens: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the logits after these tokens, one for each request."""
        hidden = self.embedding[tokens]
        query = (hidden @ self.query).view(-1, HEADS, CKV + KPE).half()
        # no residual, so that the next token depends on attention over the cache only
        return attend(query).float().flatten(1) @ self.output @ self.embedding.T / HIDDEN**0.5


def torch_attention(query: Tensor, entries: Tensor, lens: Tensor) -> Tensor:
    """Attention of each query over the first ``lens`` entries of its row, ``[batch, most, CKV + KPE]``."""
    return attention_with_lse(query, entries, lens)[0]


def attention_with_lse(query: Tensor, entries: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the log-sum-exp of the scores, ``[batch, HEADS]``: -inf for a row of no entries."""
    scores = torch.einsum("bhd,bkd->bhk", query.float(), entries.float()) * SCALE
    past = torch.arange(entries.shape[1], device=lens.device) >= lens[:, None]
    scores = scores.masked_fill(past[:, None], -torch.inf)
    output = torch.einsum("bhk,bkd->bhd", scores.softmax(-1), entries[..., :CKV].float())
    return output, scores.logsumexp(-1)


def decode_dense(model: Model, prompts: list[Tensor], steps: int) -> Tensor:
    """Generates greedily without pages: one contiguous cache for each request.

    Returns the logits of every step, ``[steps, batch, VOCAB]``, on the CPU.
    """
    device, lens = prompts[0].device, torch.tensor([len(prompt) for prompt in prompts])
    cache = torch.zeros(len(prompts), int(lens.max()) + steps, CKV + KPE, dtype=torch.half, device=device)
    for b, prompt in enumerate(prompts):  # the prefill, which for one layer needs no attention
        cache[b, : len(prompt) - 1] = model.cache_entries(prompt[:-1])
    tokens, lens, logits = torch.stack([prompt[-1] for prompt in prompts]), lens.to(device), []
    for _ in range(steps):
        cache[torch.arange(len(prompts)), lens - 1] = model.cache_entries(tokens)
        logits.append(model.logits(tokens, lambda query: torch_attention(query, cache, lens)))  # noqa: B023
        tokens, lens = logits[-1].argmax(-1), lens + 1
    return torch.stack(logits).cpu()


class TorchPaged:
    """Attention over pages in torch, with fixed shapes, as a graph needs them."""

    def __init__(self, paged: Tensor, most: int) -> None:
        self.paged, self.position = paged, torch.arange(most, device=paged.device)

    def plan(self, lens: list[int], meta: Any) -> None:
        """Does nothing."""

    def __call__(self, query: Tensor, meta: Any) -> Tensor:
        """Returns the attention output, ``[batch, HEADS, CKV]``."""
        return self.with_lse(query, meta)[0]

    def with_lse(self, query: Tensor, meta: Any) -> tuple[Tensor, Tensor]:
        """Returns the same, and the log-sum-exp of the scores, ``[batch, HEADS]``."""
        page_size = self.paged.shape[1]
        column = self.position // page_size
        if meta.page_table is not None:
            page = meta.page_table[:, column]
        else:
            most = meta.kv_indices.shape[0] - 1
            page = meta.kv_indices[(meta.kv_indptr[:-1, None] + column).clamp(max=most)]
        token = page.long() * page_size + self.position % page_size
        return attention_with_lse(query, self.paged.flatten(0, 1)[token], meta.kv_len_arr)


class FlashInferPaged:
    """FlashInfer's MLA kernel; its plan splits the work before each step, from lengths on the host."""

    def __init__(self, paged: Tensor, buffers: Any | None) -> None:
        from flashinfer.mla import BatchMLAPagedAttentionWrapper

        self.paged, self.captured = paged, buffers is not None
        names = ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr") if self.captured else ()
        self.wrapper = BatchMLAPagedAttentionWrapper(
            torch.empty(128 << 20, dtype=torch.int8, device=paged.device), backend="fa2",
            use_cuda_graph=self.captured, **{name: getattr(buffers, name) for name in names},
        )  # fmt: skip

    def plan(self, lens: list[int], meta: Any) -> None:
        """Plans a step; in a captured step xkv's kernel in the graph writes the indices."""
        page_size = self.paged.shape[1]
        pages = torch.tensor([0, *(-(-n // page_size) for n in lens)])
        self.wrapper.plan(
            torch.arange(len(lens) + 1, dtype=torch.int32), pages.cumsum(0).int(),
            meta.kv_indices[: int(pages.sum())], torch.tensor(lens, dtype=torch.int32),
            HEADS, CKV, KPE, page_size, False, SCALE, torch.half, torch.half,
        )  # fmt: skip

    def __call__(self, query: Tensor, meta: Any) -> Tensor:
        """Returns the attention output, ``[batch, HEADS, CKV]``."""
        return self.wrapper.run(*self._inputs(query))

    def with_lse(self, query: Tensor, meta: Any) -> tuple[Tensor, Tensor]:
        """Returns the same, and the log-sum-exp of the scores, ``[batch, HEADS]``."""
        out, lse = self.wrapper.run(*self._inputs(query), return_lse=True)
        return out, lse * math.log(2)  # FlashInfer's is of base 2

    def _inputs(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = query[..., :CKV].contiguous(), query[..., CKV:].contiguous()
        return *parts, self.paged[..., :CKV], self.paged[..., CKV:]
