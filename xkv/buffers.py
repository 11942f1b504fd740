"""The persistent buffers of a `MetadataBuilder`, and the views of them that a step returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xkv.build import OUTPUTS, View
from xkv.specs import BackendSpec


@dataclass(slots=True)
class Metadata:
    """What a backend reads of one step: views of the builder's buffers. What it does not read is None.

    Attributes:
        page_size: tokens of a page.
        max_seq_len: tokens, host bound of every length; what is longer was cut and reported.
        page_table: ``[batch, width]`` int32, pages.
        kv_indices: ``[entries]`` int32 or int64: the live entries where ``max_tokens`` was given and
            the page size is 1, else the whole capacity.
        kv_indptr: ``[batch + 1]`` int32, entries.
        kv_last_page_len: ``[batch]`` int32, tokens.
        cache_seqlens: ``[batch]`` int32, tokens from the first page's first token.
        cu_seqlens_k: ``[batch + 1]`` int32, prefix sums of ``cache_seqlens``.
        cu_seqlens_q: ``[batch + 1]`` int32, prefix sums of the query lengths.
        kv_start_offset: ``[batch]`` int32, tokens of each row's first page before the row's first token, 0
            to ``page_size - 1``: the ids and ``cache_seqlens`` count from that page on, and a reader skips
            so many. None where rows begin at token 0.
        window: the same for the sliding window, or None.
    """

    page_size: int
    max_seq_len: int
    page_table: Tensor | None = None
    kv_indices: Tensor | None = None
    kv_indptr: Tensor | None = None
    kv_last_page_len: Tensor | None = None
    cache_seqlens: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    kv_start_offset: Tensor | None = None
    window: Metadata | None = None

    @property
    def qo_indptr(self) -> Tensor | None:
        """``cu_seqlens_q`` by the name that FlashInfer and Aiter have for it."""
        return self.cu_seqlens_q

    @property
    def kv_len_arr(self) -> Tensor | None:
        """``cache_seqlens`` by the name that FlashInfer has for it."""
        return self.cache_seqlens


def allocate(view: View, spec: BackendSpec, shape: tuple[int, ...], batch: int, device: torch.device) -> View:
    """Gives a view its buffers: valid ids, and lengths of zero until the first build."""
    view.out = torch.full(shape, spec.fill_id, dtype=getattr(torch, spec.id_dtype), device=device)
    for name in (*spec.outputs, "kv_start_offset"):
        setattr(view, name, torch.zeros(batch + OUTPUTS[name], dtype=torch.int32, device=device))
    return view


def describe(view: View, spec: BackendSpec, page_size: int, max_seq_len: int) -> Metadata:
    """Returns a view's buffers by the names that backends have for them."""
    ids = "page_table" if spec.form == "table" else "kv_indices"
    outputs: dict[str, Any] = {ids: view.out} | {name: getattr(view, name) for name in OUTPUTS}
    return Metadata(page_size, max_seq_len, **outputs)


def cut(view: View, batch: int, form: str, starts: bool) -> View:
    """Returns the view for the first ``batch`` rows; nothing is copied.

    Args:
        view: all of the buffers.
        batch: rows.
        form: "table" or "csr".
        starts: whether rows may begin elsewhere than at token 0.
    """
    parts = {
        name: None if buffer is None else buffer[: batch + more]
        for name, more in OUTPUTS.items()
        for buffer in (getattr(view, name),)
    }
    if not starts:
        parts["kv_start_offset"] = None
    return replace(view, out=view.out[:batch] if form == "table" else view.out, **parts)
