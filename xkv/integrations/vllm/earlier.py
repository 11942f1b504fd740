"""Launches for earlier texts of vLLM's kernels, which differ in their arguments: docs/engines-support.md."""

from __future__ import annotations

from typing import Any

from . import indices, sparse, tables


def expand_page_indices_without_tail(
    grid: Any, page_indices: Any, block_table: Any, block_table_stride_0: int, block_table_stride_1: int,
    cu_num_tokens: Any, KERNEL_BLOCK_SIZE: int, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """``_expand_page_indices_kernel`` of 0.32.0, in which no tail is clamped."""
    return indices.expand_page_indices(
        grid, page_indices, block_table, block_table_stride_0, block_table_stride_1, cu_num_tokens, None,
        KERNEL_BLOCK_SIZE, BLOCK_SIZE,
    )  # fmt: skip


def expand_page_indices_of_whole_rows(
    grid: Any, page_indices: Any, block_table: Any, block_table_stride: int, cu_num_tokens: Any,
    KERNEL_BLOCK_SIZE: int, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """The same of 0.29.0 to 0.31.0, where a row's blocks lie one behind the other."""
    return indices.expand_page_indices(
        grid, page_indices, block_table, block_table_stride, 1, cu_num_tokens, None, KERNEL_BLOCK_SIZE,
        BLOCK_SIZE,
    )  # fmt: skip


def gather_block_tables_without_window(
    grid: Any, batch_idx_to_req_idx: Any, src_block_table_ptrs: Any, dst_block_table_ptrs: Any,
    block_table_strides: Any, num_blocks_ptr: Any, num_blocks_stride: int, num_reqs: int, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """``_gather_block_tables_kernel`` of 0.28.0 to 0.32.0, which masks no sliding window."""
    return tables.gather_block_tables(
        grid, batch_idx_to_req_idx, src_block_table_ptrs, dst_block_table_ptrs, block_table_strides,
        num_blocks_ptr, num_blocks_stride, num_reqs, None, None, None, False, BLOCK_SIZE,
    )  # fmt: skip


def slot_mappings_of_kernel_blocks(
    grid: Any, max_num_tokens: int, idx_mapping: Any, query_start_loc: Any, pos: Any, block_table_ptrs: Any,
    block_table_strides: Any, block_sizes: Any, kernel_block_sizes: Any, slot_mapping_enabled: Any,
    dcp_sharded: Any, slot_mappings_ptr: Any, slot_mappings_stride: int, cp_rank: int,
    CP_SIZE: int, CP_INTERLEAVE: int, PAD_ID: int, TRITON_BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """``_compute_slot_mappings_kernel`` of 0.31.0, whose tables hold parts of the cache's blocks.

    On one rank those parts are blocks like any others; where ranks share blocks the two sizes both count.
    """
    if CP_SIZE != 1:
        return False
    return tables.slot_mappings(
        grid, max_num_tokens, idx_mapping, query_start_loc, pos, block_table_ptrs, block_table_strides,
        kernel_block_sizes, slot_mapping_enabled, dcp_sharded, slot_mappings_ptr, slot_mappings_stride,
        cp_rank, CP_SIZE, CP_INTERLEAVE, PAD_ID, TRITON_BLOCK_SIZE,
    )  # fmt: skip


def slot_mappings_of_sharded_groups(
    grid: Any, max_num_tokens: int, idx_mapping: Any, query_start_loc: Any, pos: Any, block_table_ptrs: Any,
    block_table_strides: Any, block_sizes: Any, kernel_block_sizes: Any, slot_mapping_enabled: Any,
    slot_mappings_ptr: Any, slot_mappings_stride: int, cp_rank: int,
    CP_SIZE: int, CP_INTERLEAVE: int, PAD_ID: int, TRITON_BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """The same of 0.29.0 and 0.30.0, where every group is shared out over the ranks."""
    return slot_mappings_of_kernel_blocks(
        grid, max_num_tokens, idx_mapping, query_start_loc, pos, block_table_ptrs, block_table_strides,
        block_sizes, kernel_block_sizes, slot_mapping_enabled, None, slot_mappings_ptr, slot_mappings_stride,
        cp_rank, CP_SIZE, CP_INTERLEAVE, PAD_ID, TRITON_BLOCK_SIZE,
    )  # fmt: skip


def slot_mapping_of_kernel_blocks(
    grid: Any, num_tokens: int, max_num_tokens: int, query_start_loc_ptr: Any, positions_ptr: Any,
    block_table_ptr: Any, block_table_stride: int, block_size: int, slot_mapping_ptr: Any,
    KV_CACHE_BLOCK_SIZE: int, BLOCKS_PER_KV_BLOCK: int, TOTAL_CP_WORLD_SIZE: int, TOTAL_CP_RANK: int,
    CP_KV_CACHE_INTERLEAVE_SIZE: int, PAD_ID: int, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """``ComputeSlotMappingKernel.kernel`` of 0.29.0 to 0.31.0, of tables of parts of blocks, too."""
    if TOTAL_CP_WORLD_SIZE != 1 and BLOCKS_PER_KV_BLOCK != 1:
        return False
    return tables.slot_mapping(
        grid, num_tokens, max_num_tokens, query_start_loc_ptr, positions_ptr, block_table_ptr,
        block_table_stride, slot_mapping_ptr, block_size, TOTAL_CP_WORLD_SIZE, TOTAL_CP_RANK,
        CP_KV_CACHE_INTERLEAVE_SIZE, PAD_ID, BLOCK_SIZE,
    )  # fmt: skip


def warm_slot_mapping_of_kernel_blocks(
    num_tokens: int, max_num_tokens: int, query_start_loc_ptr: Any, positions_ptr: Any, block_table_ptr: Any,
    block_table_stride: int, block_size: int, slot_mapping_ptr: Any, TOTAL_CP_WORLD_SIZE: int, PAD_ID: int,
    **_: Any,
) -> None:  # fmt: skip
    """Compiles what that will launch; 0.29.0 gives the arguments by position."""
    tables.warm_slot_mapping(
        query_start_loc_ptr, positions_ptr, block_table_ptr, slot_mapping_ptr, TOTAL_CP_WORLD_SIZE, PAD_ID
    )


def sparse_mla_index_remap_without_mapping(
    grid: Any, req_id_ptr: Any, block_table_ptr: Any, token_indices_ptr: Any, out_ptr: Any,
    valid_count_ptr: Any, prefill_request_id_ptr: Any, workspace_starts_ptr: Any, workspace_rank_stride: Any,
    max_num_blocks_per_req: int, BLOCK_SIZE: int, BLOCK_STRIDE_ROWS: int, BLOCK_N: int, NUM_TOPK_TOKENS: int,
    HAS_PREFILL: bool, COUNT_VALID: bool, SINGLE_TILE: bool, COMPACT_TO_FRONT: bool, DCP_SIZE: int,
    DCP_RANK: int, DCP_INTERLEAVE: int, bt_stride0: int, bt_stride1: int, ti_stride0: int, ti_stride1: int,
    out_stride0: int, out_stride1: int,
) -> bool:  # fmt: skip
    """``sparse_mla_index_remap_kernel`` of 0.31.0 and 0.32.0, of rows in the requests' order."""
    return sparse.sparse_mla_index_remap_kernel(
        grid, req_id_ptr, block_table_ptr, token_indices_ptr, out_ptr, valid_count_ptr, None,
        prefill_request_id_ptr, workspace_starts_ptr, workspace_rank_stride, max_num_blocks_per_req,
        BLOCK_SIZE, BLOCK_STRIDE_ROWS, BLOCK_N, NUM_TOPK_TOKENS, HAS_PREFILL, False, COUNT_VALID, SINGLE_TILE,
        COMPACT_TO_FRONT, DCP_SIZE, DCP_RANK, DCP_INTERLEAVE, bt_stride0, bt_stride1, ti_stride0, ti_stride1,
        out_stride0, out_stride1,
    )  # fmt: skip
