"""Token CSR whose prefix sums the same launch writes: a cumsum, a copy and a kernel in one."""

from __future__ import annotations

import torch
from torch import Tensor

from xkv.integrations.sglang.planned import Planned, Sizes, long_enough, source, source_sizes, vector
from xkv.params import CAPACITY_MAX, CSR, Build, View

_NAMES = ("src_stride", "src_rows", "src_tokens", "batch", "delta", "out_stride", "capacity")


def _fits(rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor, batch: int) -> bool:
    if out.dim() != 1 or not out.is_contiguous() or indptr.dtype is not torch.int32:
        return False
    return long_enough(batch, rows, lens) and long_enough(batch + 1, indptr)


def _written(
    ids: Tensor, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor, batch: int, stride: int
) -> Build | None:
    src = source(ids, stride)
    if src is None or not _fits(rows, lens, indptr, out, batch):
        return None
    view = View(out, kv_indptr=vector(indptr, batch + 1))
    return Build(src, vector(rows, batch), vector(lens, batch), CSR, 1, 1, 1, (view,), expect_all=False)


def _written_sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor, batch: int, stride: int
) -> Sizes | None:
    found = source_sizes(ids, stride, 1)
    if found is None or not _fits(rows, lens, indptr, out, batch):
        return None
    capacity = min(out.numel(), CAPACITY_MAX)
    # no row is longer than the source's, nor than the stream
    return Sizes((), _NAMES, (stride, *found, batch, 0, 0, capacity), min(capacity, found[1] + 1))


sums = Planned("src_ptr rows_ptr lens_ptr indptr_ptr out_ptr", _written, _written_sizes)
