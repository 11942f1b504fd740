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
            pages = tl.minimum(tl.cdiv(n, PAGE_SIZE), max_seq_pages)
            for i in range(0 if SKIP_PAGE_TABLE else pages):
                token = tl.load(req_to_token_ptr + at + i * PAGE_SIZE)
                tl.store(page_table_ptr + b * page_table_stride + i, token // PAGE_SIZE)
                if HAS_SWA:
                    slot = tl.load(swa_mapping_ptr + token)
                    page = tl.where(slot < 0, -1, slot // PAGE_SIZE)
                    tl.store(swa_page_table_ptr + b * swa_page_table_stride + i, page)
        if HAS_SWA_OUT:
            for i in range(swa_out_len):
                slot = tl.load(out_cache_loc_ptr + i, mask=i < num_out_tokens, other=0)
                twin = tl.load(swa_mapping_ptr + slot, mask=(i < num_out_tokens) & (slot >= 0), other=0)
                tl.store(swa_out_cache_loc_ptr + i, tl.where(slot < 0, -1, twin))


@triton.jit
def _mapped(page, v2p):
    return tl.maximum(tl.load(v2p + tl.maximum(page, 0)), 0)


@triton.jit
def _fused_decode_metadata_kernel(
    seq_lens, seq_lens_stride_0, req_to_token, req_to_token_stride_0, req_to_token_stride_1,
    req_pool_indices, req_pool_indices_stride_0, cache_seqlens_int32, cache_seqlens_int32_stride_0,
    cu_seqlens_k, cu_seqlens_k_stride_0, page_table, page_table_stride_0, page_table_stride_1,
    swa_page_table, swa_page_table_stride_0, swa_page_table_stride_1, full_to_swa_index_mapping,
    full_to_swa_mapping_stride_0, full_v2p, full_v2p_stride_0, swa_v2p, swa_v2p_stride_0, B, max_seq_pages,
    PAGE_SIZE: tl.constexpr, SEQ_LEN_DELTA: tl.constexpr, BLOCK_COLS: tl.constexpr,
    SKIP_PAGE_TABLE: tl.constexpr, ZERO_TAIL: tl.constexpr,
):  # fmt: skip
    """One program does it all."""
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        total = B * 0
        tl.store(cu_seqlens_k, total)
        for b in range(B):
            n = (tl.load(seq_lens + b) + SEQ_LEN_DELTA).to(tl.int32)
            tl.store(cache_seqlens_int32 + b, n)
            total += n
            tl.store(cu_seqlens_k + b + 1, total)
            at = tl.load(req_pool_indices + b) * req_to_token_stride_0
            pages = tl.minimum(tl.cdiv(n, PAGE_SIZE), max_seq_pages)
            for i in range(0 if SKIP_PAGE_TABLE else max_seq_pages if ZERO_TAIL else pages):
                page = tl.load(req_to_token + at + i * PAGE_SIZE, mask=i < pages, other=0) // PAGE_SIZE
                page2 = page
                if swa_page_table is not None:
                    if full_to_swa_index_mapping is not None:
                        slot = tl.load(req_to_token + at + i * PAGE_SIZE, mask=i < pages, other=0)
                        page2 = tl.load(full_to_swa_index_mapping + slot) // PAGE_SIZE
                    else:
                        page2 = _mapped(page, swa_v2p)
                    page2 = tl.where(i < pages, page2, 0)
                    tl.store(swa_page_table + b * swa_page_table_stride_0 + i, page2)
                if full_v2p is not None:
                    page = _mapped(page, full_v2p)
                tl.store(page_table + b * page_table_stride_0 + i, tl.where(i < pages, page, 0))


@triton.jit
def _draft_extend_metadata_kernel(
    seq_lens, seq_lens_stride_0, extend_seq_lens, extend_seq_lens_stride_0, req_to_token,
    req_to_token_stride_0, req_to_token_stride_1, req_pool_indices, req_pool_indices_stride_0,
    cache_seqlens_int32, cache_seqlens_int32_stride_0, cu_seqlens_k, cu_seqlens_k_stride_0, cu_seqlens_q,
    cu_seqlens_q_stride_0, page_table, page_table_stride_0, page_table_stride_1, full_to_swa_index_mapping,
    swa_page_table, out_cache_loc, swa_out_cache_loc, B, max_seq_pages, tokens_per_req,
    PAGE_SIZE_ONE: tl.constexpr, SHIFT: tl.constexpr, BLOCK_COLS: tl.constexpr, HAS_SWA: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program does it all."""
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        sum_k = B * 0
        sum_q = B * 0
        tl.store(cu_seqlens_k, sum_k)
        tl.store(cu_seqlens_q, sum_q)
        for b in range(B):
            n = tl.load(seq_lens + b).to(tl.int32)
            tl.store(cache_seqlens_int32 + b, n)
            sum_k += n
            sum_q += tl.load(extend_seq_lens + b).to(tl.int32)
            tl.store(cu_seqlens_k + b + 1, sum_k)
            tl.store(cu_seqlens_q + b + 1, sum_q)
            at = tl.load(req_pool_indices + b) * req_to_token_stride_0
            pages = tl.minimum(tl.cdiv(n, 1 << SHIFT), max_seq_pages)
            for i in range(pages):
                slot = tl.load(req_to_token + at + (i << SHIFT))
                tl.store(page_table + b * page_table_stride_0 + i, slot >> SHIFT)
                if HAS_SWA:
                    twin = tl.load(full_to_swa_index_mapping + slot) >> SHIFT
                    tl.store(swa_page_table + b * page_table_stride_0 + i, twin)
        if HAS_SWA:
            for i in range(B * tokens_per_req):
                slot = tl.load(out_cache_loc + i)
                tl.store(swa_out_cache_loc + i, tl.load(full_to_swa_index_mapping + slot))


@triton.jit
def create_triton_kv_indices_for_dcp_triton(
    req_to_token_ptr, req_pool_indices_ptr, dcp_kernel_lens_ptr, kv_indptr, kv_start_idx, kv_indices_ptr,
    req_to_token_ptr_stride: tl.constexpr, dcp_size: tl.constexpr, dcp_rank: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    start = b * 0
    if kv_start_idx is not None:
        start = tl.load(kv_start_idx + b).to(tl.int32)
    first = start + (dcp_rank - start % dcp_size + dcp_size) % dcp_size
    at = tl.load(req_pool_indices_ptr + b) * req_to_token_ptr_stride + first
    for i in range(tl.load(dcp_kernel_lens_ptr + b).to(tl.int32)):
        slot = tl.load(req_to_token_ptr + at + i * dcp_size)
        tl.store(kv_indices_ptr + tl.load(kv_indptr + b) + i, slot // dcp_size)


@triton.jit
def create_mla_kv_page_table_for_dcp(
    req_to_token_ptr, req_pool_indices_ptr, local_seq_lens_ptr, block_kv_indices_ptr, v2p_ptr,
    req_to_token_stride: tl.constexpr, block_table_stride: tl.constexpr, PHYSICAL_PAGE_SIZE: tl.constexpr,
    DCP_SIZE: tl.constexpr, DCP_RANK: tl.constexpr, PAGES_PER_BLOCK: tl.constexpr, HAS_V2P: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    at = tl.load(req_pool_indices_ptr + b) * req_to_token_stride + DCP_RANK
    if tl.program_id(1) == 0:
        for i in range(tl.cdiv(tl.load(local_seq_lens_ptr + b), PHYSICAL_PAGE_SIZE).to(tl.int32)):
            slot = tl.load(req_to_token_ptr + at + i * (PHYSICAL_PAGE_SIZE * DCP_SIZE))
            page = slot // (PHYSICAL_PAGE_SIZE * DCP_SIZE)
            if HAS_V2P:
                page = _mapped(page, v2p_ptr)
            tl.store(block_kv_indices_ptr + b * block_table_stride + i, page.to(tl.int32))


@triton.jit
def compact_dcp_verify_token_table_to_ragged(
    token_table_ptr, local_kv_lens_ptr, kv_indptr_ptr, kv_indices_ptr, table_stride: tl.constexpr,
    Q_LEN: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    n = tl.load(local_kv_lens_ptr + b).to(tl.int32)
    for i in range(tl.maximum(n, 1)):
        id = tl.load(token_table_ptr + b * (Q_LEN * table_stride) + i, mask=i < n, other=0)
        tl.store(kv_indices_ptr + tl.load(kv_indptr_ptr + b) + i, id)


@triton.jit
def _draft_id(row, t, v2p, page_size: tl.constexpr, ENTRY: tl.constexpr, TRANSLATE: tl.constexpr):
    id = tl.load(row + t // ENTRY).to(tl.int64) * ENTRY + t % ENTRY
    if TRANSLATE:
        id = tl.maximum(tl.load(v2p + id // page_size) * page_size + id % page_size, 0)
    return id


@triton.jit
def _draft_rows(
    pool, ids, lens, out, sums, row_stride, out_stride, sums_stride, steps, step, page_size: tl.constexpr,
    window, sink, WITH_BRANCH: tl.constexpr, ENTRY: tl.constexpr, v2p, TRANSLATE: tl.constexpr,
):  # fmt: skip
    """One program writes a step: of each request a row for each branch."""
    topk = tl.num_programs(2)
    count = step + 1
    at = count * 0
    for b in range(tl.num_programs(1)):
        n = tl.load(lens + b).to(tl.int32)
        row = ids + tl.load(pool + b) * row_stride
        pages = (n % page_size + steps + page_size - 1) // page_size
        for k in range(topk):
            shift = k * steps if page_size == 1 else k * pages * page_size
            first = tl.maximum((n + count if WITH_BRANCH else n) - window, 0)
            for t in range(n + count):
                if (t < sink) | (t >= first):
                    id = _draft_id(row, t + (t >= n) * shift, v2p, page_size, ENTRY, TRANSLATE)
                    tl.store(out + step * out_stride + at, id)
                    at += 1
            tl.store(sums + step * sums_stride + b * topk + k + 1, at)


@triton.jit
def generate_draft_decode_kv_indices(
    req_pool_indices, req_to_token, paged_kernel_lens, kv_indices, kv_indptr, positions, row_stride,
    kv_indices_stride: tl.constexpr, kv_indptr_stride: tl.constexpr, bs_upper: tl.constexpr,
    iter_upper: tl.constexpr, num_tokens_upper: tl.constexpr, page_size: tl.constexpr,
    window_size: tl.constexpr = 0, sink_size: tl.constexpr = 0, NUM_STEPS: tl.constexpr = 0,
    ENTRY_PAGE_SIZE: tl.constexpr = 1, v2p=None, TRANSLATE: tl.constexpr = False,
):  # fmt: skip
    steps = tl.num_programs(0) if NUM_STEPS == 0 else NUM_STEPS
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0) & (tl.program_id(0) < steps):
        _draft_rows(
            req_pool_indices, req_to_token, paged_kernel_lens, kv_indices, kv_indptr, row_stride,
            kv_indices_stride, kv_indptr_stride, steps, tl.program_id(0), page_size,
            window_size if window_size > 0 else 1 << 30, sink_size, False, ENTRY_PAGE_SIZE, v2p, TRANSLATE,
        )  # fmt: skip


@triton.jit
def generate_draft_decode_window_kv_indices(
    req_pool_indices, req_to_token, paged_kernel_lens, window_kv_indices, window_kv_indptr, positions,
    row_stride, kv_indices_stride: tl.constexpr, kv_indptr_stride: tl.constexpr, bs_upper: tl.constexpr,
    iter_upper: tl.constexpr, num_tokens_upper: tl.constexpr, page_size: tl.constexpr, window: tl.constexpr,
    ENTRY_PAGE_SIZE: tl.constexpr = 1, v2p=None, TRANSLATE: tl.constexpr = False,
):  # fmt: skip
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        _draft_rows(
            req_pool_indices, req_to_token, paged_kernel_lens, window_kv_indices, window_kv_indptr,
            row_stride, kv_indices_stride, kv_indptr_stride, tl.num_programs(0), tl.program_id(0), page_size,
            window, 0, True, ENTRY_PAGE_SIZE, v2p, TRANSLATE,
        )  # fmt: skip


@triton.jit
def transform_index_page_table_decode_kernel(
    page_table_ptr, topk_indices_ptr, result_ptr, page_size: tl.constexpr,
    page_table_row_stride: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    for i in range(2048):
        at = tl.load(topk_indices_ptr + b * 2048 + i)
        id = tl.load(page_table_ptr + b * page_table_row_stride + at, mask=at >= 0, other=-1)
        tl.store(result_ptr + b * 2048 + i, id)


@triton.jit
def transform_index_page_table_decode_tiled_kernel(
    page_table_ptr, topk_indices_ptr, result_ptr, page_table_row_stride: tl.constexpr,
    topk_indices_stride_0: tl.constexpr, topk_indices_stride_1: tl.constexpr, result_stride_0: tl.constexpr,
    result_stride_1: tl.constexpr, TOPK: tl.constexpr, BLOCK_TOPK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    if tl.program_id(1) == 0:
        for i in range(TOPK):
            at = tl.load(topk_indices_ptr + b * topk_indices_stride_0 + i * topk_indices_stride_1)
            id = tl.load(page_table_ptr + b * page_table_row_stride + at, mask=at >= 0, other=-1)
            tl.store(result_ptr + b * result_stride_0 + i * result_stride_1, id)


@triton.jit
def transform_index_page_table_prefill_kernel(
    page_table_ptr, topk_indices_ptr, cu_seqlens_q_ptr, result_ptr, page_table_stride_0,
    page_table_stride_1: tl.constexpr, topk_indices_stride_0: tl.constexpr,
    topk_indices_stride_1: tl.constexpr, result_stride_0: tl.constexpr, result_stride_1: tl.constexpr,
    PAGE_TABLE_IS_EXPANDED: tl.constexpr, TOPK: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_TOPK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        for token in range(tl.load(cu_seqlens_q_ptr + b), tl.load(cu_seqlens_q_ptr + b + 1)):
            row = token if PAGE_TABLE_IS_EXPANDED else b
            for i in range(TOPK):
                at = tl.load(topk_indices_ptr + token * topk_indices_stride_0 + i * topk_indices_stride_1)
                id = tl.load(page_table_ptr + row * page_table_stride_0 + at, mask=at >= 0, other=-1)
                tl.store(result_ptr + token * result_stride_0 + i * result_stride_1, id)
