"""SGLang's kernels that write a whole step, as launches of `steps`; see `page_tables` for the functions."""

from __future__ import annotations

from typing import Any

from .page_tables import missing_id
from .steps import StepNumbers, StepTensors, launch

Q_CUMSUM, Q_STRIDED = 1, 2  # SGLang's Q_MODEs; 0: cu_seqlens_q is not written


def update_trtllm_mha_graph_metadata_kernel(
    grid: tuple[int, ...], req_pool_indices_ptr: Any, seq_lens_ptr: Any, req_to_token_ptr: Any,
    swa_mapping_ptr: Any, out_cache_loc_ptr: Any, qlens_ptr: Any, cache_seqlens_ptr: Any,
    cu_seqlens_k_ptr: Any, cu_seqlens_q_ptr: Any, page_table_ptr: Any, swa_page_table_ptr: Any,
    swa_out_cache_loc_ptr: Any, bs: int, seqlen_offset: int, max_seq_pages: int, q_stride: int,
    num_out_tokens: int, swa_out_len: int, req_to_token_stride: int, page_table_stride: int,
    swa_page_table_stride: int, PAGE_SIZE: int, HAS_SWA: bool, HAS_SWA_OUT: bool, Q_MODE: int,
    PAGE_BLOCK: int, BS_BLOCK: int, SKIP_PAGE_TABLE: int = 0, **_: Any,
) -> bool:  # fmt: skip
    """Page tables, lengths, prefix sums, and the slots of new tokens in the window's pool."""
    if max_seq_pages < 0:
        return False
    has_tables = not SKIP_PAGE_TABLE
    two, cumsum = has_tables and HAS_SWA, Q_MODE == Q_CUMSUM
    if has_tables and HAS_SWA_OUT and not HAS_SWA:
        return False  # the map would be the table's too
    tensors = StepTensors(
        req_to_token_ptr, req_pool_indices_ptr if has_tables else None, seq_lens_ptr, cache_seqlens_ptr,
        page_table_ptr if has_tables else None, swa_page_table_ptr if two else None, cu_seqlens_k_ptr,
        cu_seqlens_q_ptr if Q_MODE else None, qlens_ptr if cumsum else None,
        swa_mapping_ptr if two or HAS_SWA_OUT else None, None, None,
        out_cache_loc_ptr if HAS_SWA_OUT else None, swa_out_cache_loc_ptr if HAS_SWA_OUT else None,
    )  # fmt: skip
    numbers = StepNumbers(
        req_to_token_stride, PAGE_SIZE, max_seq_pages, page_table_stride, swa_page_table_stride if two else 0,
        seqlen_offset, q_stride if Q_MODE == Q_STRIDED else 0, num_out_tokens if HAS_SWA_OUT else 0,
        swa_out_len if HAS_SWA_OUT else 0, -1 if two else missing_id(PAGE_SIZE),
    )  # fmt: skip
    return launch(bs, tensors, numbers)


def _fused_decode_metadata_kernel(
    grid: tuple[int, ...], seq_lens: Any, seq_lens_stride_0: int, req_to_token: Any,
    req_to_token_stride_0: int, req_to_token_stride_1: int, req_pool_indices: Any,
    req_pool_indices_stride_0: int, cache_seqlens_int32: Any, cache_seqlens_int32_stride_0: int,
    cu_seqlens_k: Any, cu_seqlens_k_stride_0: int, page_table: Any, page_table_stride_0: int,
    page_table_stride_1: int, swa_page_table: Any, swa_page_table_stride_0: int, swa_page_table_stride_1: int,
    full_to_swa_index_mapping: Any, full_to_swa_mapping_stride_0: int, full_v2p: Any, full_v2p_stride_0: int,
    swa_v2p: Any, swa_v2p_stride_0: int, B: int, max_seq_pages: int, PAGE_SIZE: int, SEQ_LEN_DELTA: int,
    BLOCK_COLS: int, SKIP_PAGE_TABLE: bool, ZERO_TAIL: bool, **_: Any,
) -> bool:  # fmt: skip
    """Page tables, lengths and their prefix sums of decoding, in pools of virtual pages, too."""
    has_tables = not SKIP_PAGE_TABLE and max_seq_pages > 0
    two = has_tables and swa_page_table is not None
    if has_tables and (req_to_token_stride_1 != 1 or page_table_stride_1 != 1):
        return False
    if two and swa_page_table_stride_1 != 1:
        return False
    full_v2p = full_v2p if has_tables else None
    swa_map, swa_v2p = (full_to_swa_index_mapping, swa_v2p) if two else (None, None)
    # with a map of pages, what has none is of page 0
    missing = missing_id(PAGE_SIZE) if full_v2p is None and swa_v2p is None else 0
    tensors = StepTensors(
        req_to_token, req_pool_indices if has_tables else None, seq_lens, cache_seqlens_int32,
        page_table if has_tables else None, swa_page_table if two else None, cu_seqlens_k, None, None,
        swa_map, full_v2p, swa_v2p,
    )  # fmt: skip
    numbers = StepNumbers(
        req_to_token_stride_0, PAGE_SIZE, max_seq_pages, page_table_stride_0,
        swa_page_table_stride_0 if two else 0, SEQ_LEN_DELTA, missing=missing, zero_tail=bool(ZERO_TAIL),
        zero_first=True,
    )  # fmt: skip
    return launch(B, tensors, numbers)


def _draft_extend_metadata_kernel(
    grid: tuple[int, ...], seq_lens: Any, seq_lens_stride_0: int, extend_seq_lens: Any,
    extend_seq_lens_stride_0: int, req_to_token: Any, req_to_token_stride_0: int, req_to_token_stride_1: int,
    req_pool_indices: Any, req_pool_indices_stride_0: int, cache_seqlens_int32: Any,
    cache_seqlens_int32_stride_0: int, cu_seqlens_k: Any, cu_seqlens_k_stride_0: int, cu_seqlens_q: Any,
    cu_seqlens_q_stride_0: int, page_table: Any, page_table_stride_0: int, page_table_stride_1: int,
    full_to_swa_index_mapping: Any, swa_page_table: Any, out_cache_loc: Any, swa_out_cache_loc: Any, B: int,
    max_seq_pages: int, tokens_per_req: int, PAGE_SIZE_ONE: bool, SHIFT: int, BLOCK_COLS: int, HAS_SWA: bool,
    OUT_BLOCK: int, **_: Any,
) -> bool:  # fmt: skip
    """Page tables, lengths, both prefix sums, and the slots of new tokens in the window's pool."""
    if max_seq_pages <= 0 or req_to_token_stride_1 != 1 or page_table_stride_1 != 1:
        return False
    tokens = B * tokens_per_req if HAS_SWA else 0
    tensors = StepTensors(
        req_to_token, req_pool_indices, seq_lens, cache_seqlens_int32, page_table,
        swa_page_table if HAS_SWA else None, cu_seqlens_k, cu_seqlens_q, extend_seq_lens,
        full_to_swa_index_mapping if HAS_SWA else None, None, None, out_cache_loc if HAS_SWA else None,
        swa_out_cache_loc if HAS_SWA else None,
    )  # fmt: skip
    numbers = StepNumbers(
        req_to_token_stride_0, 1 if PAGE_SIZE_ONE else 1 << SHIFT, max_seq_pages, page_table_stride_0,
        page_table_stride_0 if HAS_SWA else 0, num_locs=tokens, num_swa_locs=tokens, zero_first=True,
    )  # fmt: skip
    return launch(B, tensors, numbers)
