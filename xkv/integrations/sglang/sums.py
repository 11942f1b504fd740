"""Token CSR whose prefix sums the same launch writes: a cumsum, a copy and a kernel in one.

With query lengths their prefix sums are written too: two more of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...params import CAPACITY_MAX, CSR, Build, View
from .planned import (
    Planned,
    Sizes,
    long_enough,
    source,
    source_sizes,
    vector,
    vector_or_none,
)

_NAMES = ("src_stride", "src_rows", "src_tokens", "batch", "delta", "out_stride", "capacity")


def _fits(
    rows: Tensor, lens: Tensor, queries: Tensor | None, indptr: Tensor, qo_indptr: Tensor | None, out: Tensor,
    batch: int,
) -> bool:  # fmt: skip
    if out.dim() != 1 or not out.is_contiguous() or indptr.dtype is not torch.int32:
        return False
    if qo_indptr is not None and qo_indptr.dtype not in (torch.int32, torch.int64):
        return False
    return long_enough(batch, rows, lens, queries) and long_enough(batch + 1, indptr, qo_indptr)


def _written(
    ids: Tensor, rows: Tensor, lens: Tensor, queries: Tensor | None, indptr: Tensor,
    qo_indptr: Tensor | None, out: Tensor, batch: int, stride: int,
) -> Build | None:  # fmt: skip
    src = source(ids, stride)
    if src is None or not _fits(rows, lens, queries, indptr, qo_indptr, out, batch):
        return None
    view = View(
        out, kv_indptr=vector(indptr, batch + 1), cu_seqlens_q=vector_or_none(qo_indptr, batch + 1)
    )  # fmt: skip
    return Build(
        src, vector(rows, batch), vector(lens, batch), CSR, 1, 1, 1, (view,),
        query_lens=vector_or_none(queries, batch), report_missing=False,
    )  # fmt: skip


def _written_sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, queries: Tensor | None, indptr: Tensor,
    qo_indptr: Tensor | None, out: Tensor, batch: int, stride: int,
) -> Sizes | None:  # fmt: skip
    found = source_sizes(ids, stride, 1)
    if found is None or not _fits(rows, lens, queries, indptr, qo_indptr, out, batch):
        return None
    capacity = min(out.numel(), CAPACITY_MAX)
    # no row is longer than the source's, nor than the stream
    values = (stride, *found, batch, 0, 0, capacity)
    return Sizes((queries is None,), _NAMES, values, min(capacity, found[1] + 1))


sums = Planned("src_ptr rows_ptr lens_ptr query_ptr indptr_ptr cu_q_ptr out_ptr", _written, _written_sizes)
