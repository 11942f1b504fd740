"""SGLang's kernel that writes a whole step, as calls of xkv's: page tables, int32 lengths, prefix sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...launch.cache import fits_int32
from ...params import CAPACITY_MAX, TABLE, Build, View
from .cached_calls import SIZES, CachedCalls, LaunchSizes
from .page_tables import SIZES_OF_TWO, missing_id
from .tensors import long_enough, source, source_sizes, table, table_width, vector, vector_or_none

Q_CUMSUM, Q_STRIDED = 1, 2  # SGLang's Q_MODEs; 0: cu_seqlens_q is not written


def _sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, qlens: Tensor | None, token_map: Tensor | None,
    seqlens: Tensor, cu_k: Tensor | None, cu_q: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, out2_stride: int, page_size: int, more: int, pages: int,
    query_len: int,
) -> LaunchSizes | None:  # fmt: skip
    found, width = source_sizes(ids, stride, 1), table_width(out, batch, out_stride)
    if found is None or width is None or not long_enough(batch, rows, lens, qlens, seqlens):
        return None
    if page_size < 1 or not long_enough(batch + 1, cu_k, cu_q):
        return None
    width = min(width, pages, CAPACITY_MAX)
    values: tuple[int, ...] = (stride, *found, batch, more, out_stride, width)
    names = SIZES
    if cu_q is not None and qlens is None:
        values, names = (*values, query_len), (*names, "query_len")
    if out2 is not None:
        width2 = table_width(out2, batch, out2_stride)
        if width2 is None or token_map is None or not token_map.is_contiguous():
            return None
        if not fits_int32(out2_stride, token_map.numel()):
            return None
        width2 = min(width2, pages, CAPACITY_MAX)
        values = (*values, out2_stride, width2, token_map.numel())
        names, width = (*names, *SIZES_OF_TWO[len(SIZES) :]), max(width, width2)
    return LaunchSizes((page_size,), names, values, min(width, found[1] // page_size + 1))


def _build(
    ids: Tensor, rows: Tensor, lens: Tensor, qlens: Tensor | None, token_map: Tensor | None,
    seqlens: Tensor, cu_k: Tensor | None, cu_q: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, out2_stride: int, page_size: int, more: int, pages: int,
    query_len: int,
) -> Build | None:  # fmt: skip
    if any(x is not None and x.dtype is not torch.int32 for x in (seqlens, cu_k, cu_q)):
        return None
    views = [
        View(
            table(out, batch, out_stride)[:, :pages], cache_seqlens=vector(seqlens, batch),
            cu_seqlens_k=vector_or_none(cu_k, batch + 1), cu_seqlens_q=vector_or_none(cu_q, batch + 1),
        )
    ]  # fmt: skip
    if out2 is not None and token_map is not None:
        views.append(View(table(out2, batch, out2_stride)[:, :pages], token_map=token_map.view(-1)))
    return Build(
        source(ids, stride), vector(rows, batch), vector(lens, batch), TABLE, page_size, 1, page_size,
        tuple(views), seq_lens_delta=more, query_lens=vector_or_none(qlens, batch), query_len=query_len,
        missing_id=missing_id(page_size) if out2 is None else -1, report_missing=False, indptr_is_input=True,
    )  # fmt: skip


metadata = CachedCalls(
    "src_ptr rows_ptr lens_ptr query_ptr token_map2_ptr seqlens_ptr cu_k_ptr cu_q_ptr out_ptr out2_ptr",
    _sizes, _build,
)  # fmt: skip


def update_trtllm_mha_graph_metadata_kernel(
    grid: tuple[int, ...], req_pool_indices_ptr: Any, seq_lens_ptr: Any, req_to_token_ptr: Any,
    swa_mapping_ptr: Any, out_cache_loc_ptr: Any, qlens_ptr: Any, cache_seqlens_ptr: Any,
    cu_seqlens_k_ptr: Any, cu_seqlens_q_ptr: Any, page_table_ptr: Any, swa_page_table_ptr: Any,
    swa_out_cache_loc_ptr: Any, bs: int, seqlen_offset: int, max_seq_pages: int, q_stride: int,
    num_out_tokens: int, swa_out_len: int, req_to_token_stride: int, page_table_stride: int,
    swa_page_table_stride: int, PAGE_SIZE: int, HAS_SWA: bool, HAS_SWA_OUT: bool, Q_MODE: int,
    PAGE_BLOCK: int, BS_BLOCK: int, SKIP_PAGE_TABLE: int = 0, **_: Any,
) -> bool:  # fmt: skip
    """Page tables, lengths and prefix sums. Writing locations (HAS_SWA_OUT) or no table is left to theirs."""
    if HAS_SWA_OUT or SKIP_PAGE_TABLE or max_seq_pages < 0:
        return False
    inputs = (
        req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, qlens_ptr if Q_MODE == Q_CUMSUM else None,
        swa_mapping_ptr if HAS_SWA else None, cache_seqlens_ptr, cu_seqlens_k_ptr,
        cu_seqlens_q_ptr if Q_MODE else None, page_table_ptr, swa_page_table_ptr if HAS_SWA else None,
    )  # fmt: skip
    return metadata(
        inputs, bs, req_to_token_stride, page_table_stride, swa_page_table_stride, PAGE_SIZE, seqlen_offset,
        max_seq_pages, q_stride if Q_MODE == Q_STRIDED else 0,
    )  # fmt: skip
