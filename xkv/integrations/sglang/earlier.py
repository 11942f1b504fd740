"""Launches for earlier texts of SGLang's kernels, with other arguments: docs/engines-support.md."""

from __future__ import annotations

from typing import Any

from .context_parallel import create_mla_kv_page_table_for_dcp
from .draft import generate_draft_decode_kv_indices
from .page_tables import create_trtllm_mha_kv_indices_triton
from .sparse import transform_index_page_table_decode_kernel


def dcp_page_table_with_multiplier(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, local_seq_lens_ptr: Any,
    block_kv_indices_ptr: Any, v2p_ptr: Any, req_to_token_stride: int, block_table_stride: int, mult: int,
    PHYSICAL_PAGE_SIZE: int, DCP_SIZE: int, DCP_RANK: int, PAGES_PER_BLOCK: int, HAS_V2P: bool, **_: Any,
) -> bool:  # fmt: skip
    """``create_mla_kv_page_table_for_dcp`` of 0.5.20 and 0.5.21, which may multiply what the map gives."""
    if HAS_V2P and mult != 1:
        return False
    return create_mla_kv_page_table_for_dcp(
        grid, req_to_token_ptr, req_pool_indices_ptr, local_seq_lens_ptr, block_kv_indices_ptr, v2p_ptr,
        req_to_token_stride, block_table_stride, PHYSICAL_PAGE_SIZE, DCP_SIZE, DCP_RANK, PAGES_PER_BLOCK,
        HAS_V2P,
    )  # fmt: skip


def dcp_page_table_without_map(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, local_seq_lens_ptr: Any,
    block_kv_indices_ptr: Any, req_to_token_stride: int, block_table_stride: int, PHYSICAL_PAGE_SIZE: int,
    DCP_SIZE: int, DCP_RANK: int, PAGES_PER_BLOCK: int, **_: Any,
) -> bool:  # fmt: skip
    """The same before 0.5.20."""
    return create_mla_kv_page_table_for_dcp(
        grid, req_to_token_ptr, req_pool_indices_ptr, local_seq_lens_ptr, block_kv_indices_ptr, None,
        req_to_token_stride, block_table_stride, PHYSICAL_PAGE_SIZE, DCP_SIZE, DCP_RANK, PAGES_PER_BLOCK,
        False,
    )  # fmt: skip


def draft_indices_of_pools(
    grid: tuple[int, ...], req_pool_indices: Any, req_to_token: Any, paged_kernel_lens: Any, kv_indices: Any,
    kv_indptr: Any, positions: Any, pool_len: int, kv_indices_stride: int, kv_indptr_stride: int,
    bs_upper: int, iter_upper: int, num_tokens_upper: int, page_size: int, window_size: int = 0,
    sink_size: int = 0, NUM_STEPS: int = 0, **_: Any,
) -> bool:  # fmt: skip
    """``generate_draft_decode_kv_indices`` up to 0.5.21, of one entry a token."""
    return generate_draft_decode_kv_indices(
        grid, req_pool_indices, req_to_token, paged_kernel_lens, kv_indices, kv_indptr, positions, pool_len,
        kv_indices_stride, kv_indptr_stride, bs_upper, iter_upper, num_tokens_upper, page_size, window_size,
        sink_size, NUM_STEPS,
    )  # fmt: skip


def draft_indices_without_window(
    grid: tuple[int, ...], req_pool_indices: Any, req_to_token: Any, paged_kernel_lens: Any, kv_indices: Any,
    kv_indptr: Any, positions: Any, pool_len: int, kv_indices_stride: int, kv_indptr_stride: int,
    bs_upper: int, iter_upper: int, num_tokens_upper: int, page_size: int, NUM_STEPS: int = 0, **_: Any,
) -> bool:  # fmt: skip
    """The same up to 0.5.20."""
    return draft_indices_of_pools(
        grid, req_pool_indices, req_to_token, paged_kernel_lens, kv_indices, kv_indptr, positions, pool_len,
        kv_indices_stride, kv_indptr_stride, bs_upper, iter_upper, num_tokens_upper, page_size, 0, 0,
        NUM_STEPS,
    )  # fmt: skip


def trtllm_mha_without_numel(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, seq_lens_ptr: Any,
    full_to_swa_ptr: Any, page_table_ptr: Any, swa_page_table_ptr: Any, req_to_token_stride: int,
    page_table_stride: int, PAGE_SIZE: int, HAS_SWA: bool, **options: Any,
) -> bool:  # fmt: skip
    """``create_trtllm_mha_kv_indices_triton`` before 0.5.16, which is not told how long the map is."""
    return create_trtllm_mha_kv_indices_triton(
        grid, req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, full_to_swa_ptr, page_table_ptr,
        swa_page_table_ptr, full_to_swa_ptr.numel() if HAS_SWA else 0, req_to_token_stride, page_table_stride,
        PAGE_SIZE, HAS_SWA, **options,
    )  # fmt: skip


def transform_index_of_contiguous_rows(
    grid: tuple[int, ...], page_table_ptr: Any, topk_indices_ptr: Any, result_ptr: Any, page_size: int,
    max_seqlen_k: int, **_: Any,
) -> bool:  # fmt: skip
    """``transform_index_page_table_decode_kernel`` up to 0.5.15, of a table without gaps."""
    return transform_index_page_table_decode_kernel(
        grid, page_table_ptr, topk_indices_ptr, result_ptr, page_size, max_seqlen_k
    )
