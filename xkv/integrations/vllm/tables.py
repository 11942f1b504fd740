"""vLLM's block tables and slot mappings: its kernels' arguments to launches of ours."""

from __future__ import annotations

from typing import Any

import torch

from .launching import Launcher, few_parts, parts, served

# tokens that a program writes at a time, one a thread: the code that a decode step fetches is short.
# 64 decodes and 1000 + 24 tokens, H200: 1.54 and 1.47 us; with 256 1.60 and 1.50; vLLM's own 1.73 and 2.16
_BLOCK = 128
_COPIED = 2048  # entries of a row in flight
rows = Launcher("gather_block_tables", num_warps=8)
slots = Launcher("slot_mappings")


def rows_constexprs(window: bool) -> tuple[Any, ...]:
    """What the rows' kernel is compiled for."""
    return window, _COPIED


def slots_constexprs(groups: bool, ranks: int, pad: int) -> tuple[Any, ...]:
    """What the slots' kernel is compiled for."""
    return groups, ranks != 1, pad, _BLOCK


def gather_block_tables(
    grid: Any, batch_idx_to_req_idx: Any, src_block_table_ptrs: Any, dst_block_table_ptrs: Any,
    block_table_strides: Any, num_blocks_ptr: Any, num_blocks_stride: int, num_reqs: int,
    num_computed_tokens_ptr: Any, sliding_window_reach_ptr: Any, block_sizes_ptr: Any,
    MASK_SLIDING_WINDOW: bool, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """As model runner V2's ``_gather_block_tables_kernel``: the batch's rows of every group, in one launch.

    A row index out of range has a row of zeros, and no row is written past its width.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    device = served(batch_idx_to_req_idx)
    if device is None:
        return False
    groups, padded = grid
    rows(
        device, (padded, few_parts(padded, groups, 16), groups),
        (batch_idx_to_req_idx, src_block_table_ptrs, dst_block_table_ptrs, block_table_strides,
         num_blocks_ptr, num_computed_tokens_ptr, sliding_window_reach_ptr, block_sizes_ptr),
        (num_blocks_stride, num_reqs), rows_constexprs(MASK_SLIDING_WINDOW),
    )  # fmt: skip
    return True


def slot_mappings(
    grid: Any, max_num_tokens: int, idx_mapping: Any, query_start_loc: Any, pos: Any, block_table_ptrs: Any,
    block_table_strides: Any, block_sizes: Any, slot_mapping_enabled: Any, dcp_sharded: Any,
    slot_mappings_ptr: Any, slot_mappings_stride: int, cp_rank: int,
    CP_SIZE: int, CP_INTERLEAVE: int, PAD_ID: int, TRITON_BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """As model runner V2's ``_compute_slot_mappings_kernel``: every group's slots, in one launch.

    A token past the width of its block table, which vLLM's reads from the next request's row, has PAD_ID.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    device = served(slot_mappings_ptr)
    if device is None or slot_mappings_ptr.dtype is not torch.int64:
        return False
    groups, rows = grid
    slots(
        device, (rows, parts(rows, groups, -(-max_num_tokens // _BLOCK)), groups),
        (slot_mappings_ptr, idx_mapping, query_start_loc, pos, block_table_ptrs, block_table_strides,
         block_sizes, slot_mapping_enabled, dcp_sharded),
        (0, 0, slot_mappings_stride, 0, max_num_tokens, CP_SIZE, cp_rank, CP_INTERLEAVE),
        slots_constexprs(True, CP_SIZE, PAD_ID),
    )  # fmt: skip
    return True


def slot_mapping(
    grid: Any, num_tokens: int, max_num_tokens: int, query_start_loc_ptr: Any, positions_ptr: Any,
    block_table_ptr: Any, block_table_stride: int, slot_mapping_ptr: Any,
    KV_CACHE_BLOCK_SIZE: int, TOTAL_CP_WORLD_SIZE: int, TOTAL_CP_RANK: int,
    CP_KV_CACHE_INTERLEAVE_SIZE: int, PAD_ID: int, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """As model runner V1's ``ComputeSlotMappingKernel.kernel``: the slots of one group.

    A token past the width of its block table, which vLLM's reads from the next request's row, has PAD_ID.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    device = served(slot_mapping_ptr)
    if (
        device is None
        or block_table_ptr.dtype is not torch.int32
        or slot_mapping_ptr.dtype is not torch.int64
    ):
        return False
    width = block_table_ptr.shape[1] if block_table_ptr.dim() == 2 else block_table_stride
    if width != block_table_stride:
        return False
    rows = grid[0]
    slots(
        device, (rows, parts(rows, 1, -(-max_num_tokens // _BLOCK)), 1),
        (slot_mapping_ptr, None, query_start_loc_ptr, positions_ptr, block_table_ptr, None, None, None, None),
        (block_table_stride, KV_CACHE_BLOCK_SIZE, 0, num_tokens, max_num_tokens,
         TOTAL_CP_WORLD_SIZE, TOTAL_CP_RANK, CP_KV_CACHE_INTERLEAVE_SIZE),
        slots_constexprs(False, TOTAL_CP_WORLD_SIZE, PAD_ID),
    )  # fmt: skip
    return True


def warm_slot_mapping(
    query_start_loc_ptr: Any, positions_ptr: Any, block_table_ptr: Any, slot_mapping_ptr: Any,
    TOTAL_CP_WORLD_SIZE: int, PAD_ID: int, **_: Any,
) -> None:  # fmt: skip
    """Compiles what `slot_mapping` will launch, from arguments that have dtypes and no memory."""
    starts, positions, table, out = (
        x.dtype for x in (query_start_loc_ptr, positions_ptr, block_table_ptr, slot_mapping_ptr)
    )
    slots.warmup(
        (out, None, starts, positions, table, None, None, None, None),
        (0, 1, 0, 0, 0, 1, 0, 1), slots_constexprs(False, TOTAL_CP_WORLD_SIZE, PAD_ID),
    )  # fmt: skip
