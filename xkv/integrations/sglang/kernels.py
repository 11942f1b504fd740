"""From the arguments of SGLang's kernels to xkv's: each says what a call of one kernel means.

A function here takes a kernel's grid and that kernel's own arguments by their own names, launches the same
with xkv and returns True; it returns False for what xkv cannot say, and has then done nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...launch.cache import fits_int32
from ...params import CAPACITY_MAX, CSR, TABLE, Build, View
from .planned import (
    Planned,
    Sizes,
    long_enough,
    source,
    source_sizes,
    table,
    table_width,
    vector,
    vector_or_none,
)

Q_CUMSUM, Q_STRIDED = 1, 2  # SGLang's Q_MODEs; 0: cu_seqlens_q is not written


def _missing(page_size: int) -> int:
    """What theirs make of the token -1: it is divided as in C, toward 0."""
    return -1 if page_size == 1 else 0


def _table(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, page_size: int, more: int = 0, map_len: int = 0,
    pad_value: int | None = None,
) -> Build | None:  # fmt: skip
    src, first = source(ids, stride), table(out, batch, out_stride)
    second = None if out2 is None else table(out2, batch, out_stride)
    if src is None or first is None or (out2 is not None and second is None):
        return None
    if start is not None and page_size > 1:
        return None  # theirs counts pages from the start on, ours from the start's page on
    views = [View(first, vector_or_none(start, batch))]
    if second is not None:
        views.append(View(second, token_map=vector_or_none(token_map, map_len)))
    return Build(
        src, vector(rows, batch), vector(lens, batch), TABLE, page_size, 1, page_size, tuple(views),
        seq_lens_delta=more, seq_lens_delta_rows=vector_or_none(delta, batch),
        missing_id=_missing(page_size), report_missing=False, pad_value=pad_value,
    )  # fmt: skip


_SIZES: tuple[str, ...] = ("src_stride", "src_rows", "src_tokens", "batch", "delta", "out_stride", "capacity")
_SIZES_OF_TWO = (*_SIZES, "out_stride2", "capacity2", "token_map_len2")


def _table_sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, page_size: int, more: int = 0, map_len: int = 0,
    pad_value: int | None = None,
) -> Sizes | None:  # fmt: skip
    found, width = source_sizes(ids, stride, 1), table_width(out, batch, out_stride)
    if found is None or width is None or not long_enough(batch, rows, lens, delta, start):
        return None
    if start is not None and page_size > 1:
        return None
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
    most = width if pad_value is not None else min(width, found[1] // page_size + 1)
    return Sizes((page_size, pad_value), _SIZES if out2 is None else _SIZES_OF_TWO, values, most)


tables = Planned(
    "src_ptr rows_ptr lens_ptr delta_ptr start_ptr token_map2_ptr out_ptr out2_ptr", _table, _table_sizes
)


def create_flashmla_kv_indices_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, page_kernel_lens_ptr: Any,
    kv_start_idx: Any, kv_indices_ptr: Any, req_to_token_ptr_stride: int, kv_indices_ptr_stride: int,
    PAGED_SIZE: int = 64, v2p_ptr: Any = None, PAGE_MULT: int = 1, **_: Any,
) -> bool:  # fmt: skip
    """A page table, pages counted from ``kv_start_idx`` on. What translates pages is theirs."""
    if v2p_ptr is not None or PAGE_MULT != 1:
        return False
    given = (
        req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_start_idx, kv_start_idx, None,
        kv_indices_ptr, None,
    )  # fmt: skip
    return tables(given, grid[0], req_to_token_ptr_stride, kv_indices_ptr_stride, PAGED_SIZE)


def create_trtllm_mha_kv_indices_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, seq_lens_ptr: Any,
    full_to_swa_ptr: Any, page_table_ptr: Any, swa_page_table_ptr: Any, full_to_swa_numel: int,
    req_to_token_stride: int, page_table_stride: int, PAGE_SIZE: int, HAS_SWA: bool, **_: Any,
) -> bool:  # fmt: skip
    """A page table, and one of the window's pool beside it."""
    given = (
        req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, None, None,
        full_to_swa_ptr if HAS_SWA else None, page_table_ptr, swa_page_table_ptr if HAS_SWA else None,
    )  # fmt: skip
    return tables(given, grid[0], req_to_token_stride, page_table_stride, PAGE_SIZE, 0, full_to_swa_numel)


def trtllm_mha_without_numel(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, seq_lens_ptr: Any,
    full_to_swa_ptr: Any, page_table_ptr: Any, swa_page_table_ptr: Any, req_to_token_stride: int,
    page_table_stride: int, PAGE_SIZE: int, HAS_SWA: bool, **options: Any,
) -> bool:  # fmt: skip
    """The same before 0.5.16, which is not told how long the map is."""
    return create_trtllm_mha_kv_indices_triton(
        grid, req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, full_to_swa_ptr, page_table_ptr,
        swa_page_table_ptr, full_to_swa_ptr.numel() if HAS_SWA else 0, req_to_token_stride, page_table_stride,
        PAGE_SIZE, HAS_SWA, **options,
    )  # fmt: skip


def scatter_req_to_token_to_page_table_kernel(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, seq_lens_ptr: Any,
    page_table_ptr: Any, req_to_token_stride: int, page_table_stride: int, sw_page_table_ptr: Any,
    swa_slot_mapping_ptr: Any, DRAFT_NUM: int, PAGE_SIZE: int, BLOCK_SIZE: int, HAS_SWA: bool, **_: Any,
) -> bool:  # fmt: skip
    """The same, of rows that are ``DRAFT_NUM`` tokens longer."""
    given = (
        req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, None, None,
        swa_slot_mapping_ptr if HAS_SWA else None, page_table_ptr, sw_page_table_ptr if HAS_SWA else None,
    )  # fmt: skip
    numel = swa_slot_mapping_ptr.numel() if HAS_SWA else 0
    return tables(given, grid[0], req_to_token_stride, page_table_stride, PAGE_SIZE, DRAFT_NUM, numel)


def _stream(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, indptr: Tensor, out: Tensor, batch: int, stride: int, entry_page_size: int,
) -> Build | None:  # fmt: skip
    src = source(ids, stride)
    if src is None or out.dim() != 1 or not out.is_contiguous():
        return None
    if token_map is not None and not token_map.is_contiguous():
        return None
    view = View(
        out, vector_or_none(start, batch), None, None if token_map is None else token_map.view(-1),
        kv_indptr=vector(indptr, batch),
    )  # fmt: skip
    return Build(
        src, vector(rows, batch), vector(lens, batch), CSR, 1, entry_page_size, 1, (view,),
        seq_lens_delta_rows=vector_or_none(delta, batch), report_missing=False, sums_given=True,
    )  # fmt: skip


def _stream_sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, delta: Tensor | None, start: Tensor | None,
    token_map: Tensor | None, indptr: Tensor, out: Tensor, batch: int, stride: int, entry_page_size: int,
) -> Sizes | None:  # fmt: skip
    found = source_sizes(ids, stride, entry_page_size)
    if found is None or out.dim() != 1 or not out.is_contiguous():
        return None
    if not long_enough(batch, rows, lens, delta, start, indptr):
        return None
    values: tuple[int, ...] = (stride, *found, batch, 0, 0, min(out.numel(), CAPACITY_MAX))
    names = _SIZES
    if token_map is not None:
        if not token_map.is_contiguous() or not fits_int32(token_map.numel()):
            return None
        values, names = (*values, token_map.numel()), (*_SIZES, "token_map_len")
    # CSR at page size 1: no row is longer than the source's, nor than the stream
    return Sizes((entry_page_size,), names, values, min(values[6], found[1] + 1))


streams = Planned(
    "src_ptr rows_ptr lens_ptr delta_ptr start_ptr token_map_ptr indptr_ptr out_ptr", _stream, _stream_sizes
)


def create_flashinfer_kv_indices_triton(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, page_kernel_lens_ptr: Any,
    kv_indptr: Any, kv_start_idx: Any, kv_indices_ptr: Any, req_to_token_ptr_stride: int,
    ENTRY_PAGE_SIZE: int = 1, TOKEN_BLOCK_PARALLEL: bool = False, token_mapping: Any = None, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR: row b's ids from ``kv_indptr[b]`` on, which is read."""
    given = (
        req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_start_idx, kv_start_idx,
        token_mapping, kv_indptr, kv_indices_ptr,
    )  # fmt: skip
    return streams(given, grid[0], req_to_token_ptr_stride, ENTRY_PAGE_SIZE)


def create_chunked_prefix_cache_kv_indices(
    grid: tuple[int, ...], req_to_token_ptr: Any, req_pool_indices_ptr: Any, chunk_start_idx_ptr: Any,
    chunk_seq_lens_ptr: Any, chunk_cu_seq_lens_ptr: Any, chunk_kv_indices_ptr: Any,
    req_to_token_ptr_stride: int, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR of a chunk of each row."""
    given = (
        req_to_token_ptr, req_pool_indices_ptr, chunk_seq_lens_ptr, chunk_start_idx_ptr, chunk_start_idx_ptr,
        None, chunk_cu_seq_lens_ptr, chunk_kv_indices_ptr,
    )  # fmt: skip
    return streams(given, grid[0], req_to_token_ptr_stride, 1)


def _metadata(
    ids: Tensor, rows: Tensor, lens: Tensor, qlens: Tensor | None, token_map: Tensor | None,
    seqlens: Tensor, cu_k: Tensor | None, cu_q: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, out2_stride: int, page_size: int, more: int, pages: int,
    query_len: int,
) -> Build | None:  # fmt: skip
    src, first = source(ids, stride), table(out, batch, out_stride)
    second = None if out2 is None else table(out2, batch, out2_stride)
    if src is None or first is None or (out2 is not None and second is None):
        return None
    sums = [x for x in (seqlens, cu_k, cu_q) if x is not None]
    if any(str(x.dtype) != "torch.int32" for x in sums):
        return None
    views = [
        View(
            first[:, :pages], cache_seqlens=vector(seqlens, batch),
            cu_seqlens_k=vector_or_none(cu_k, batch + 1), cu_seqlens_q=vector_or_none(cu_q, batch + 1),
        )
    ]  # fmt: skip
    if second is not None:
        if token_map is None or not token_map.is_contiguous():
            return None
        views.append(View(second[:, :pages], token_map=token_map.view(-1)))
    return Build(
        src, vector(rows, batch), vector(lens, batch), TABLE, page_size, 1, page_size, tuple(views),
        seq_lens_delta=more, query_lens=vector_or_none(qlens, batch), query_len=query_len,
        missing_id=_missing(page_size) if second is None else -1, report_missing=False, sums_given=True,
    )  # fmt: skip


def _metadata_sizes(
    ids: Tensor, rows: Tensor, lens: Tensor, qlens: Tensor | None, token_map: Tensor | None,
    seqlens: Tensor, cu_k: Tensor | None, cu_q: Tensor | None, out: Tensor, out2: Tensor | None,
    batch: int, stride: int, out_stride: int, out2_stride: int, page_size: int, more: int, pages: int,
    query_len: int,
) -> Sizes | None:  # fmt: skip
    found, width = source_sizes(ids, stride, 1), table_width(out, batch, out_stride)
    if found is None or width is None or not long_enough(batch, rows, lens, qlens, seqlens):
        return None
    if not long_enough(batch + 1, cu_k, cu_q):
        return None
    width = min(width, pages, CAPACITY_MAX)
    values: tuple[int, ...] = (stride, *found, batch, more, out_stride, width)
    names = _SIZES
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
        names, width = (*names, *_SIZES_OF_TWO[len(_SIZES) :]), max(width, width2)
    return Sizes((page_size,), names, values, min(width, found[1] // page_size + 1))


metadata = Planned(
    "src_ptr rows_ptr lens_ptr query_ptr token_map2_ptr seqlens_ptr cu_k_ptr cu_q_ptr out_ptr out2_ptr",
    _metadata, _metadata_sizes,
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
    given = (
        req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, qlens_ptr if Q_MODE == Q_CUMSUM else None,
        swa_mapping_ptr if HAS_SWA else None, cache_seqlens_ptr, cu_seqlens_k_ptr,
        cu_seqlens_q_ptr if Q_MODE else None, page_table_ptr, swa_page_table_ptr if HAS_SWA else None,
    )  # fmt: skip
    return metadata(
        given, bs, req_to_token_stride, page_table_stride, swa_page_table_stride, PAGE_SIZE, seqlen_offset,
        max_seq_pages, q_stride if Q_MODE == Q_STRIDED else 0,
    )  # fmt: skip
