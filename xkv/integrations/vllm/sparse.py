"""vLLM's kernel that turns an indexer's positions into slots."""

from __future__ import annotations

from typing import Any

from ..chosen_calls import translate


def sparse_mla_index_remap_kernel(
    grid: Any, req_id_ptr: Any, block_table_ptr: Any, token_indices_ptr: Any, out_ptr: Any,
    valid_count_ptr: Any, idx_mapping_ptr: Any, prefill_request_id_ptr: Any, workspace_starts_ptr: Any,
    workspace_rank_stride: Any, max_num_blocks_per_req: int, BLOCK_SIZE: int, BLOCK_STRIDE_ROWS: int,
    BLOCK_N: int, NUM_TOPK_TOKENS: int, HAS_PREFILL: bool, HAS_IDX_MAPPING: bool, COUNT_VALID: bool,
    SINGLE_TILE: bool, COMPACT_TO_FRONT: bool, DCP_SIZE: int, DCP_RANK: int, DCP_INTERLEAVE: int,
    bt_stride0: int, bt_stride1: int, ti_stride0: int, ti_stride1: int, out_stride0: int, out_stride1: int,
) -> bool:  # fmt: skip
    """As vLLM's, packed in the positions' order. A workspace of prefills, or a mapping, is left to vLLM's.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    if HAS_PREFILL or HAS_IDX_MAPPING or bt_stride1 != 1 or ti_stride1 != 1 or out_stride1 != 1:
        return False
    if (
        token_indices_ptr.shape != (grid[0], NUM_TOPK_TOKENS)
        or block_table_ptr.shape[1] != max_num_blocks_per_req
        or block_table_ptr.stride(0) != bt_stride0
        or req_id_ptr.shape[0] != grid[0]
    ):
        return False
    return translate(
        block_table_ptr, token_indices_ptr, out_ptr, req_id_ptr,
        counts=valid_count_ptr if COUNT_VALID else None, block_size=BLOCK_SIZE,
        block_stride=BLOCK_STRIDE_ROWS, compact=bool(COMPACT_TO_FRONT),
        ranks=(DCP_SIZE, DCP_RANK, DCP_INTERLEAVE),
    )  # fmt: skip
