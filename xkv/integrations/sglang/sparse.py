"""SGLang's kernels that turn an indexer's positions into slots; see `page_tables` for the functions."""

from __future__ import annotations

from typing import Any

from ..chosen_calls import translate
from .tensors import table_width

_TOPK = 2048  # what the first one is written for


def transform_index_page_table_decode_kernel(
    grid: tuple[int, ...], page_table_ptr: Any, topk_indices_ptr: Any, result_ptr: Any, page_size: int,
    page_table_row_stride: int, **_: Any,
) -> bool:  # fmt: skip
    """One query token a row of the table."""
    tokens = grid[0]
    if topk_indices_ptr.shape != (tokens, _TOPK) or not topk_indices_ptr.is_contiguous():
        return False
    return _one_each(page_table_ptr, topk_indices_ptr, result_ptr, tokens, page_table_row_stride)


def transform_index_page_table_decode_tiled_kernel(
    grid: tuple[int, ...], page_table_ptr: Any, topk_indices_ptr: Any, result_ptr: Any,
    page_table_row_stride: int, topk_indices_stride_0: int, topk_indices_stride_1: int, result_stride_0: int,
    result_stride_1: int, TOPK: int, BLOCK_TOPK: int, **_: Any,
) -> bool:  # fmt: skip
    """The same of any number of positions."""
    tokens = grid[0]
    if topk_indices_ptr.shape != (tokens, TOPK) or result_ptr.shape[1:] != (TOPK,):
        return False
    return _one_each(page_table_ptr, topk_indices_ptr, result_ptr, tokens, page_table_row_stride)


def _one_each(table: Any, positions: Any, out: Any, tokens: int, stride: int) -> bool:
    if table.stride(0) != stride or table_width(table, tokens, stride) is None:
        return False
    return translate(table, positions, out)


def transform_index_page_table_prefill_kernel(
    grid: tuple[int, ...], page_table_ptr: Any, topk_indices_ptr: Any, cu_seqlens_q_ptr: Any, result_ptr: Any,
    page_table_stride_0: int, page_table_stride_1: int, topk_indices_stride_0: int,
    topk_indices_stride_1: int, result_stride_0: int, result_stride_1: int, PAGE_TABLE_IS_EXPANDED: bool,
    TOPK: int, BLOCK_Q: int, BLOCK_TOPK: int, **_: Any,
) -> bool:  # fmt: skip
    """Several query tokens of a request; those behind the last request get -1, as they have already."""
    if PAGE_TABLE_IS_EXPANDED or topk_indices_ptr.shape[1] != TOPK or page_table_stride_1 != 1:
        return False
    if page_table_ptr.stride(0) != page_table_stride_0 or cu_seqlens_q_ptr.shape[0] <= grid[0]:
        return False
    return translate(page_table_ptr, topk_indices_ptr, result_ptr, starts=cu_seqlens_q_ptr[: grid[0] + 1])
