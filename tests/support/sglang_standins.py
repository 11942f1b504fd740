"""SGLang's names and signatures, and the simplest kernels of our own behind them: one program a row."""

import triton
import triton.language as tl


@triton.jit
def create_flashmla_kv_indices_triton(
    req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_start_idx, kv_indices_ptr,
    req_to_token_ptr_stride: tl.constexpr, kv_indices_ptr_stride: tl.constexpr,
    PAGED_SIZE: tl.constexpr = 64,
):  # fmt: skip
    b = tl.program_id(0)
    if tl.program_id(1) == 0:
        at = tl.load(req_pool_indices_ptr + b) * req_to_token_ptr_stride
        if kv_start_idx is not None:
            at += tl.load(kv_start_idx + b)
        for i in range(tl.cdiv(tl.load(page_kernel_lens_ptr + b), PAGED_SIZE).to(tl.int32)):
            page = tl.load(req_to_token_ptr + at + i * PAGED_SIZE) // PAGED_SIZE
            tl.store(kv_indices_ptr + b * kv_indices_ptr_stride + i, page)


def get_num_page_per_block_flashmla(page_size: int = 64) -> int:
    return 4096 // page_size


def get_num_kv_index_blocks_flashmla(width: int, page_size: int) -> int:
    return -(-width // get_num_page_per_block_flashmla(page_size))


@triton.jit
def create_flashinfer_kv_indices_triton(
    req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_indptr, kv_start_idx, kv_indices_ptr,
    req_to_token_ptr_stride, ENTRY_PAGE_SIZE: tl.constexpr = 1, TOKEN_BLOCK_PARALLEL: tl.constexpr = False,
    token_mapping=None,
):  # fmt: skip
    b = tl.program_id(0)
    start = 0
    if kv_start_idx is not None:
        start = tl.load(kv_start_idx + b)
    at = tl.load(req_pool_indices_ptr + b) * req_to_token_ptr_stride
    first = tl.program_id(1) if TOKEN_BLOCK_PARALLEL else 0
    step = tl.num_programs(1) if TOKEN_BLOCK_PARALLEL else 1
    for i in range(first, tl.load(page_kernel_lens_ptr + b).to(tl.int32), step):
        t = start + i
        id = tl.load(req_to_token_ptr + at + t // ENTRY_PAGE_SIZE).to(tl.int64)
        id = id * ENTRY_PAGE_SIZE + t % ENTRY_PAGE_SIZE
        if token_mapping is not None:
            id = tl.load(token_mapping + id)
        tl.store(kv_indices_ptr + tl.load(kv_indptr + b) + i, id)


@triton.jit
def create_chunked_prefix_cache_kv_indices(
    req_to_token_ptr, req_pool_indices_ptr, chunk_start_idx_ptr, chunk_seq_lens_ptr, chunk_cu_seq_lens_ptr,
    chunk_kv_indices_ptr, req_to_token_ptr_stride: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    at = tl.load(req_pool_indices_ptr + b) * req_to_token_ptr_stride + tl.load(chunk_start_idx_ptr + b)
    for i in range(tl.load(chunk_seq_lens_ptr + b).to(tl.int32)):
        out = chunk_kv_indices_ptr + tl.load(chunk_cu_seq_lens_ptr + b) + i
        tl.store(out, tl.load(req_to_token_ptr + at + i))


@triton.jit
def _two_tables(b, at, pages, source, out, out2, mapping, stride, PAGE_SIZE: tl.constexpr, TWO: tl.constexpr):
    for i in range(pages):
        token = tl.load(source + at + i * PAGE_SIZE)
        tl.store(out + b * stride + i, token // PAGE_SIZE)
        if TWO:
            tl.store(out2 + b * stride + i, tl.load(mapping + token) // PAGE_SIZE)


@triton.jit
def create_trtllm_mha_kv_indices_triton(
    req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, full_to_swa_ptr, page_table_ptr,
    swa_page_table_ptr, full_to_swa_numel, req_to_token_stride: tl.constexpr,
    page_table_stride: tl.constexpr, PAGE_SIZE: tl.constexpr, HAS_SWA: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    if tl.program_id(1) == 0:
        at = tl.load(req_pool_indices_ptr + b) * req_to_token_stride
        pages = tl.cdiv(tl.load(seq_lens_ptr + b), PAGE_SIZE).to(tl.int32)
        _two_tables(
            b, at, pages, req_to_token_ptr, page_table_ptr, swa_page_table_ptr, full_to_swa_ptr,
            page_table_stride, PAGE_SIZE, HAS_SWA,
        )  # fmt: skip


@triton.jit
def scatter_req_to_token_to_page_table_kernel(
    req_to_token_ptr, req_pool_indices_ptr, seq_lens_ptr, page_table_ptr, req_to_token_stride,
    page_table_stride, sw_page_table_ptr, swa_slot_mapping_ptr, DRAFT_NUM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, HAS_SWA: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    if tl.program_id(1) == 0:
        at = tl.load(req_pool_indices_ptr + b) * req_to_token_stride
        pages = tl.cdiv(tl.load(seq_lens_ptr + b) + DRAFT_NUM, PAGE_SIZE).to(tl.int32)
        _two_tables(
            b, at, pages, req_to_token_ptr, page_table_ptr, sw_page_table_ptr, swa_slot_mapping_ptr,
            page_table_stride, PAGE_SIZE, HAS_SWA,
        )  # fmt: skip


@triton.jit
def update_trtllm_mha_graph_metadata_kernel(
    req_pool_indices_ptr, seq_lens_ptr, req_to_token_ptr, swa_mapping_ptr, out_cache_loc_ptr, qlens_ptr,
    cache_seqlens_ptr, cu_seqlens_k_ptr, cu_seqlens_q_ptr, page_table_ptr, swa_page_table_ptr,
    swa_out_cache_loc_ptr, bs, seqlen_offset, max_seq_pages, q_stride, num_out_tokens, swa_out_len,
    req_to_token_stride, page_table_stride, swa_page_table_stride, PAGE_SIZE: tl.constexpr,
    HAS_SWA: tl.constexpr, HAS_SWA_OUT: tl.constexpr, Q_MODE: tl.constexpr, PAGE_BLOCK: tl.constexpr,
    BS_BLOCK: tl.constexpr, SKIP_PAGE_TABLE: tl.constexpr = 0,
):  # fmt: skip
    """One program does it all."""
    if tl.program_id(0) == 0:
        sum_k = bs * 0
        sum_q = bs * 0
        for b in range(bs):
            n = (tl.load(seq_lens_ptr + b) + seqlen_offset).to(tl.int32)
            tl.store(cache_seqlens_ptr + b, n)
            sum_k += n
            tl.store(cu_seqlens_k_ptr + b + 1, sum_k)
            if Q_MODE == 1:
                sum_q += tl.load(qlens_ptr + b).to(tl.int32)
                tl.store(cu_seqlens_q_ptr + b + 1, sum_q)
            if Q_MODE == 2:
                tl.store(cu_seqlens_q_ptr + b + 1, (b + 1) * q_stride)
            at = tl.load(req_pool_indices_ptr + b) * req_to_token_stride
            for i in range(tl.minimum(tl.cdiv(n, PAGE_SIZE), max_seq_pages)):
                token = tl.load(req_to_token_ptr + at + i * PAGE_SIZE)
                tl.store(page_table_ptr + b * page_table_stride + i, token // PAGE_SIZE)
                if HAS_SWA:
                    slot = tl.load(swa_mapping_ptr + token)
                    page = tl.where(slot < 0, -1, slot // PAGE_SIZE)
                    tl.store(swa_page_table_ptr + b * swa_page_table_stride + i, page)
        if HAS_SWA_OUT:
            for i in range(swa_out_len):
                slot = tl.load(out_cache_loc_ptr) * 0
                if i < num_out_tokens:
                    slot = tl.load(swa_mapping_ptr + tl.load(out_cache_loc_ptr + i))
                tl.store(swa_out_cache_loc_ptr + i, slot)
