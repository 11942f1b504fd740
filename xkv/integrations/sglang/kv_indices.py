"""SGLang's kernels that write token CSR, as calls of xkv's: see `page_tables` for what the functions take.

`indices` reads the prefix sums, as those kernels do. `indices_and_sums` writes them in the same launch, and
those of the query lengths: a cumsum and a copy each less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...launch.cache import fits_int32
from ...params import CAPACITY_MAX, CSR, Build, View
from ..cached_calls import SIZES, CachedCalls, LaunchSizes
from .tensors import long_enough, source, source_sizes, vector, vector_or_none


def _sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, indptr: Tensor, out: Tensor, batch: int, stride: int, entry_page_size: int,
) -> LaunchSizes | None:  # fmt: skip
    found = source_sizes(ids, stride, entry_page_size)
    if found is None or out.dim() != 1 or not out.is_contiguous():
        return None
    if not long_enough(batch, rows, lens, delta, start, indptr):
        return None
    capacity = min(out.numel(), CAPACITY_MAX)
    values: tuple[int, ...] = (stride, *found, batch, 0, 0, capacity)
    names = SIZES
    if token_map is not None:
        if not token_map.is_contiguous() or not fits_int32(token_map.numel()):
            return None
        values, names = (*values, token_map.numel()), (*SIZES, "token_map_len")
    # CSR at page size 1: no row is longer than the source's, nor than the output
    return LaunchSizes((entry_page_size,), names, values, min(capacity, found[1] + 1))


def _build(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, indptr: Tensor, out: Tensor, batch: int, stride: int, entry_page_size: int,
) -> Build:  # fmt: skip
    view = View(
        out, vector_or_none(start, batch), None, None if token_map is None else token_map.view(-1),
        kv_indptr=vector(indptr, batch),
    )  # fmt: skip
    return Build(
        source(ids, stride), vector(rows, batch), vector(lens, batch), CSR, 1, entry_page_size, 1, (view,),
        seq_lens_delta_rows=vector_or_none(delta, batch), report_missing=False, indptr_is_input=True,
    )  # fmt: skip


indices = CachedCalls(
    "src_ptr rows_ptr lens_ptr delta_ptr start_ptr token_map_ptr indptr_ptr out_ptr", _sizes, _build
)


def create_flashinfer_kv_indices_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, page_kernel_lens_ptr: Any,
    kv_indptr: Any, kv_start_idx: Any, kv_indices_ptr: Any, req_to_token_ptr_stride: int,
    ENTRY_PAGE_SIZE: int = 1, TOKEN_BLOCK_PARALLEL: bool = False, token_mapping: Any = None, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR: row b's ids from ``kv_indptr[b]`` on, which is read."""
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_start_idx, kv_start_idx,
        token_mapping, kv_indptr, kv_indices_ptr,
    )  # fmt: skip
    return indices(inputs, grid[0], req_to_token_ptr_stride, ENTRY_PAGE_SIZE)


def create_chunked_prefix_cache_kv_indices(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, chunk_start_idx_ptr: Any,
    chunk_seq_lens_ptr: Any, chunk_cu_seq_lens_ptr: Any, chunk_kv_indices_ptr: Any,
    req_to_token_ptr_stride: int, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR of a chunk of each row."""
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, chunk_seq_lens_ptr, chunk_start_idx_ptr, chunk_start_idx_ptr,
        None, chunk_cu_seq_lens_ptr, chunk_kv_indices_ptr,
    )  # fmt: skip
    return indices(inputs, grid[0], req_to_token_ptr_stride, 1)


def _sizes_with_sums(
    ids: Tensor, rows: Tensor, lens: Tensor, queries: Tensor | None, indptr: Tensor,
    qo_indptr: Tensor | None, out: Tensor, batch: int, stride: int,
) -> LaunchSizes | None:  # fmt: skip
    found = source_sizes(ids, stride, 1)
    if found is None or out.dim() != 1 or not out.is_contiguous():
        return None
    if not long_enough(batch, rows, lens, queries) or not long_enough(batch + 1, indptr, qo_indptr):
        return None
    capacity = min(out.numel(), CAPACITY_MAX)
    values = (stride, *found, batch, 0, 0, capacity)
    return LaunchSizes((queries is None,), SIZES, values, min(capacity, found[1] + 1))


def _build_with_sums(
    ids: Tensor, rows: Tensor, lens: Tensor, queries: Tensor | None, indptr: Tensor,
    qo_indptr: Tensor | None, out: Tensor, batch: int, stride: int,
) -> Build | None:  # fmt: skip
    if indptr.dtype is not torch.int32:
        return None
    view = View(
        out, kv_indptr=vector(indptr, batch + 1), cu_seqlens_q=vector_or_none(qo_indptr, batch + 1)
    )  # fmt: skip
    return Build(
        source(ids, stride), vector(rows, batch), vector(lens, batch), CSR, 1, 1, 1, (view,),
        query_lens=vector_or_none(queries, batch), report_missing=False,
    )  # fmt: skip


indices_and_sums = CachedCalls(
    "src_ptr rows_ptr lens_ptr query_ptr indptr_ptr cu_q_ptr out_ptr", _sizes_with_sums, _build_with_sums
)
