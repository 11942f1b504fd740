"""SGLang's kernels of decode context parallelism, as calls of xkv's: see `page_tables` for the functions.

They are given each rank's own lengths, and sums of those. A rank's slot is the slot divided by the ranks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...launch.cache import fits_int32
from ...params import CAPACITY_MAX, CSR, TABLE, Build, View
from ...shard import MAX_SIZE, Shard
from ..cached_calls import SIZES, CachedCalls, LaunchSizes
from .tensors import long_enough, source, source_sizes, table, table_width, vector, vector_or_none


def _shard(size: int, rank: int) -> Shard | None:
    return None if size == 1 else Shard(size, rank, source="global")


def _fits(size: int, rank: int) -> bool:
    return 0 < size <= MAX_SIZE and 0 <= rank < size


def _local(tokens: int, size: int, rank: int) -> int:
    """As `Shard.local_length`."""
    return tokens // size + (rank < tokens % size)


def _table_sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, v2p: Tensor | None, out: Tensor, batch: int, stride: int,
    out_stride: int, page_size: int, size: int, rank: int,
) -> LaunchSizes | None:  # fmt: skip
    found, width = source_sizes(ids, stride, 1), table_width(out, batch, out_stride)
    if found is None or width is None or not long_enough(batch, rows, lens):
        return None
    if not _fits(size, rank) or page_size < 1 or (v2p is not None and page_size & (page_size - 1)):
        return None
    width = min(width, CAPACITY_MAX)
    more = {"out_stride": out_stride, "capacity": width}
    if v2p is not None:
        if not v2p.is_contiguous() or not fits_int32(v2p.numel()):
            return None
        more["page_map_len"] = v2p.numel()
    if size > 1:
        more["shard_rank"] = rank
    values = (stride, *found, batch, 0, *more.values())
    row_items = min(width, _local(found[1], size, rank) // page_size + 1)
    return LaunchSizes((page_size, size), (*SIZES[:5], *more), values, row_items)


def _table_build(
    ids: Tensor, rows: Tensor, lens: Tensor, v2p: Tensor | None, out: Tensor, batch: int, stride: int,
    out_stride: int, page_size: int, size: int, rank: int,
) -> Build:  # fmt: skip
    view = View(table(out, batch, out_stride), page_map=None if v2p is None else v2p.view(-1))
    return Build(
        source(ids, stride), vector(rows, batch), vector(lens, batch), TABLE, page_size, 1, page_size,
        (view,), missing_id=0, report_missing=False, shard=_shard(size, rank), lens_are_local=True,
    )  # fmt: skip


tables = CachedCalls("src_ptr rows_ptr lens_ptr page_map_ptr out_ptr", _table_sizes, _table_build)


def create_mla_kv_page_table_for_dcp(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, local_seq_lens_ptr: Any,
    block_kv_indices_ptr: Any, v2p_ptr: Any, req_to_token_stride: int, block_table_stride: int,
    PHYSICAL_PAGE_SIZE: int, DCP_SIZE: int, DCP_RANK: int, PAGES_PER_BLOCK: int, HAS_V2P: bool, **_: Any,
) -> bool:  # fmt: skip
    """A page table of the rank's tokens."""
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, local_seq_lens_ptr, v2p_ptr if HAS_V2P else None,
        block_kv_indices_ptr,
    )  # fmt: skip
    return tables(
        inputs, grid[0], req_to_token_stride, block_table_stride, PHYSICAL_PAGE_SIZE, DCP_SIZE, DCP_RANK
    )


def _sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, start: Tensor | None, indptr: Tensor, out: Tensor,
    batch: int, stride: int, size: int, rank: int,
) -> LaunchSizes | None:  # fmt: skip
    found = source_sizes(ids, stride, 1)
    if found is None or out.dim() != 1 or not out.is_contiguous() or not _fits(size, rank):
        return None
    if not long_enough(batch, rows, lens, start, indptr):
        return None
    capacity = min(out.numel(), CAPACITY_MAX)
    names: tuple[str, ...] = SIZES
    values: tuple[int, ...] = (stride, *found, batch, 0, 0, capacity)
    if size > 1:
        names, values = (*names, "shard_rank"), (*values, rank)
    return LaunchSizes((size,), names, values, min(capacity, _local(found[1], size, rank) + 1))


def _build(
    ids: Tensor, rows: Tensor, lens: Tensor, start: Tensor | None, indptr: Tensor, out: Tensor,
    batch: int, stride: int, size: int, rank: int,
) -> Build:  # fmt: skip
    starts = vector_or_none(start, batch)
    return Build(
        source(ids, stride), vector(rows, batch), vector(lens, batch), CSR, 1, 1, 1,
        (View(out, starts, kv_indptr=vector(indptr, batch)),), missing_id=0, report_missing=False,
        indptr_is_input=True, shard=_shard(size, rank), lens_are_local=True,
    )  # fmt: skip


indices = CachedCalls("src_ptr rows_ptr lens_ptr start_ptr indptr_ptr out_ptr", _sizes, _build)


def create_triton_kv_indices_for_dcp_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, dcp_kernel_lens_ptr: Any,
    kv_indptr: Any, kv_start_idx: Any, kv_indices_ptr: Any, req_to_token_ptr_stride: int, dcp_size: int,
    dcp_rank: int, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR of the rank's tokens from ``kv_start_idx`` on."""
    if dcp_size == 1:
        return False
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, dcp_kernel_lens_ptr, kv_start_idx, kv_indptr, kv_indices_ptr
    )  # fmt: skip
    return indices(inputs, grid[0], req_to_token_ptr_stride, dcp_size, dcp_rank)


def _ragged_sizes(
    ids: Tensor, lens: Tensor, indptr: Tensor, out: Tensor, batch: int, stride: int, queries: int
) -> LaunchSizes | None:
    width = table_width(ids, batch * queries, stride)
    if queries < 1 or width is None or out.dim() != 1 or not out.is_contiguous():
        return None
    if not long_enough(batch, lens, indptr):
        return None
    capacity = min(out.numel(), CAPACITY_MAX)
    values = (stride * queries, batch, width, batch, 0, 0, capacity)
    return LaunchSizes((), SIZES, values, min(capacity, width + 2))


def _ragged_build(
    ids: Tensor, lens: Tensor, indptr: Tensor, out: Tensor, batch: int, stride: int, queries: int
) -> Build | None:
    return Build(
        table(ids, batch * queries, stride)[::queries], None, vector(lens, batch), CSR, 1, 1, 1,
        (View(out, kv_indptr=vector(indptr, batch)),), min_seq_len=1, missing_id=0, report_missing=False,
        indptr_is_input=True,
    )  # fmt: skip


ragged = CachedCalls("src_ptr lens_ptr indptr_ptr out_ptr", _ragged_sizes, _ragged_build)


def compact_dcp_verify_token_table_to_ragged(
    grid: tuple[int, ...], token_table_ptr: Any, local_kv_lens_ptr: Any, kv_indptr_ptr: Any,
    kv_indices_ptr: Any, table_stride: int, Q_LEN: int, BLOCK_SIZE: int, **_: Any,
) -> bool:  # fmt: skip
    """A table's rows as CSR: that of each request's first query token; an empty one has the id 0."""
    inputs = token_table_ptr, local_kv_lens_ptr, kv_indptr_ptr, kv_indices_ptr
    return ragged(inputs, grid[0], table_stride, Q_LEN)
