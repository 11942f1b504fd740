"""vLLM's kernels of sparse attention: an indexer's positions to slots, and whose each query token is."""

from __future__ import annotations

from typing import Any

import torch

from ...expanded import MAX_TOKENS, ExpandedQueries, Expansion
from ...launch import compile, expanded
from ...params import MAX_BATCH
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


def token_request_mapping(
    grid: Any, query_start_loc: Any, output: Any, num_reqs: int, num_mapped: int, num_tokens: int
) -> bool:
    """As ``_token_request_mapping_kernel``: the request of each query token, the last one's for padding.

    Where fewer tokens are mapped than written, both is left to vLLM's.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    if num_mapped < num_tokens or not 0 < num_tokens <= MAX_TOKENS or not 0 < num_reqs <= MAX_BATCH:
        return False
    lens = query_start_loc[:num_reqs]  # of which nothing is asked
    inputs = (query_start_loc, lens, output, None, None, None, None, None)
    known = expanded.CALLS.lookup(inputs, (num_tokens,))
    if known is not None and known.launch(inputs):
        return True
    if (
        output.dtype is not torch.int32
        or query_start_loc.dtype not in (torch.int32, torch.int64)
        or (query_start_loc.dim(), output.dim()) != (1, 1)
        or query_start_loc.shape[0] != num_reqs + 1
        or output.shape[0] < num_tokens
        or not (query_start_loc.is_contiguous() and output.is_contiguous())
        or query_start_loc.device != output.device
        or not (output.is_cuda or compile.interpreted())
    ):
        return False
    build = Expansion(
        query_start_loc, lens, num_tokens, ExpandedQueries(token_to_req=output), pad_req=num_reqs - 1
    )
    expanded.run(build, known, inputs)
    return True
