"""SGLang's kernels that write page tables, as calls of xkv's.

A function here takes a kernel's grid and that kernel's own arguments by their own names, launches the same
with xkv and returns True; it returns False for what xkv cannot say, and has then done nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...launch.cache import fits_int32
from ...params import CAPACITY_MAX, TABLE, Build, View
from ..cached_calls import SIZES, CachedCalls, LaunchSizes
from .tensors import long_enough, source, source_sizes, table, table_width, vector, vector_or_none

SIZES_OF_TWO = (*SIZES, "out_stride2", "capacity2", "token_map_len2")


def missing_id(page_size: int) -> int:
    """What SGLang's kernels make of the token -1: it is divided as in C, toward 0."""
    return -1 if page_size == 1 else 0


def _sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, page_size: int, more: int = 0, map_len: int = 0,
    pad_value: int | None = None,
) -> LaunchSizes | None:  # fmt: skip
    found, width = source_sizes(ids, stride, 1), table_width(out, batch, out_stride)
    if found is None or width is None or not long_enough(batch, rows, lens, delta, start):
        return None
    if page_size < 1 or (start is not None and page_size > 1):
        return None  # theirs counts pages from the start on, ours from the start's page on
    width = min(width, CAPACITY_MAX)
    values: tuple[int, ...] = (stride, *found, batch, more, out_stride, width)
    if out2 is not None:
        width2 = table_width(out2, batch, out_stride)
        if width2 is None or token_map is None or not long_enough(map_len, token_map):
            return None
        if not fits_int32(out_stride, map_len):
            return None
        width2 = min(width2, CAPACITY_MAX)
        values, width = (*values, out_stride, width2, map_len), max(width, width2)
    row_items = width if pad_value is not None else min(width, found[1] // page_size + 1)
    return LaunchSizes((page_size, pad_value), SIZES if out2 is None else SIZES_OF_TWO, values, row_items)


def _build(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, page_size: int, more: int = 0, map_len: int = 0,
    pad_value: int | None = None,
) -> Build:  # fmt: skip
    views = [View(table(out, batch, out_stride), vector_or_none(start, batch))]
    if out2 is not None:
        views.append(View(table(out2, batch, out_stride), token_map=vector_or_none(token_map, map_len)))
    return Build(
        source(ids, stride), vector(rows, batch), vector(lens, batch), TABLE, page_size, 1, page_size,
        tuple(views), seq_lens_delta=more, seq_lens_delta_rows=vector_or_none(delta, batch),
        missing_id=missing_id(page_size), report_missing=False, pad_value=pad_value,
    )  # fmt: skip


tables = CachedCalls(
    "src_ptr rows_ptr lens_ptr delta_ptr start_ptr token_map2_ptr out_ptr out2_ptr", _sizes, _build
)


def create_flashmla_kv_indices_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, page_kernel_lens_ptr: Any,
    kv_start_idx: Any, kv_indices_ptr: Any, req_to_token_ptr_stride: int, kv_indices_ptr_stride: int,
    PAGED_SIZE: int = 64, v2p_ptr: Any = None, PAGE_MULT: int = 1, **_: Any,
) -> bool:  # fmt: skip
    """A page table, pages counted from ``kv_start_idx`` on. What translates pages is theirs."""
    if v2p_ptr is not None or PAGE_MULT != 1:
        return False
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_start_idx, kv_start_idx, None,
        kv_indices_ptr, None,
    )  # fmt: skip
    return tables(inputs, grid[0], req_to_token_ptr_stride, kv_indices_ptr_stride, PAGED_SIZE)


def create_trtllm_mha_kv_indices_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, seq_lens_ptr: Any,
    full_to_swa_ptr: Any, page_table_ptr: Any, swa_page_table_ptr: Any, full_to_swa_numel: int,
    req_to_token_stride: int, page_table_stride: int, PAGE_SIZE: int, HAS_SWA: bool, **_: Any,
) -> bool:  # fmt: skip
    """A page table, and one of the window's pool beside it."""
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, None, None,
        full_to_swa_ptr if HAS_SWA else None, page_table_ptr, swa_page_table_ptr if HAS_SWA else None,
    )  # fmt: skip
    return tables(inputs, grid[0], req_to_token_stride, page_table_stride, PAGE_SIZE, 0, full_to_swa_numel)


def scatter_req_to_token_to_page_table_kernel(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, seq_lens_ptr: Any,
    page_table_ptr: Any, req_to_token_stride: int, page_table_stride: int, sw_page_table_ptr: Any,
    swa_slot_mapping_ptr: Any, DRAFT_NUM: int, PAGE_SIZE: int, BLOCK_SIZE: int, HAS_SWA: bool, **_: Any,
) -> bool:  # fmt: skip
    """The same, of rows that are ``DRAFT_NUM`` tokens longer."""
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, None, None,
        swa_slot_mapping_ptr if HAS_SWA else None, page_table_ptr, sw_page_table_ptr if HAS_SWA else None,
    )  # fmt: skip
    numel = swa_slot_mapping_ptr.numel() if HAS_SWA else 0
    return tables(inputs, grid[0], req_to_token_stride, page_table_stride, PAGE_SIZE, DRAFT_NUM, numel)
