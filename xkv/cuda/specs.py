"""The attention backends of NVIDIA GPUs."""

from ..platforms.specs import POWERS_OF_TWO, BackendSpec

_LENGTHS = ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q")

SPECS = (
    BackendSpec(
        "flashmla", "table", (64,), 64, _LENGTHS, pad_to_tokens=64,
        why="Hopper. Any row stride; entry 0 of every row is read even if the row is empty, and a negative"
        " one faults in the FP8 path (vLLM #35969)",
    ),
    BackendSpec(
        "cutlass_mla", "table", POWERS_OF_TWO[:8], 128, _LENGTHS,
        width_tokens=128, packed=True, pad_to_tokens=128,
        why="sm100. The width must be a multiple of 128 / page_size pages, rows must be packed, and a table"
        " wider than needed changes the KV split; entries within the 128-token tile may be read",
    ),
    BackendSpec(
        "trtllm_mla", "table", (32, 64), 64, _LENGTHS,
        width_tokens=128, packed=True, pad_to_tokens=128,
        why="sm100, trtllm-gen and CuTe DSL. As cutlass_mla; CuTe DSL reads up to the 128-token tile",
    ),
    BackendSpec(
        "trtllm_mha", "table", (16, 32, 64, 128), 64, _LENGTHS, packed=True,
        why="TRTLLM MHA and XQA, sm90 to sm120. Rows must be packed; stale entries are tolerated",
    ),
    BackendSpec(
        "flash_attention", "table", POWERS_OF_TWO, 64, _LENGTHS,
        why="FlashAttention 3 and 4, torch varlen_attn(block_table=). Any row stride; nothing past the live"
        " pages is read",
    ),
    BackendSpec(
        "flashinfer_mla", "csr", POWERS_OF_TWO, 64,
        ("kv_indptr", "kv_last_page_len", "cache_seqlens", "cu_seqlens_q"), min_last_page_len=1,
        why="FlashInfer's BatchMLAPagedAttentionWrapper, fa2 and fa3: qo_indptr, kv_indptr, kv_indices"
        " and kv_len_arr, which must agree with kv_indptr (checked since 0.7); last page lengths are 1 to the"
        " page size, for rows without pages too",
    ),
    BackendSpec(
        "flashinfer_decode", "csr", POWERS_OF_TWO, 16, ("kv_indptr", "kv_last_page_len"), min_last_page_len=1,
        why="FlashInfer's BatchDecodeWithPagedKVCacheWrapper, MHA and GQA (flashinfer/decode.py 0.6.18,"
        " include/flashinfer/page.cuh): the kernels read paged_kv_indptr, paged_kv_indices and"
        " paged_kv_last_page_len, all int32, and no id past the last one; last page lengths are 1 to the page"
        " size, of a row without pages too, whose length is 0 all the same. It makes qo_indptr itself."
        " plan() copies indptr and last_page_len to the host (a sync unless they are there), and no ids",
    ),
    BackendSpec(
        "flashinfer_prefill", "csr", POWERS_OF_TWO, 16,
        ("kv_indptr", "kv_last_page_len", "cu_seqlens_q"), min_last_page_len=1,
        why="FlashInfer's BatchPrefillWithPagedKVCacheWrapper, fa2 and fa3 (flashinfer/prefill.py 0.6.18,"
        " include/flashinfer/attention/scheduler.cuh): as flashinfer_decode, and qo_indptr. plan() reads"
        " qo_indptr, paged_kv_indptr and paged_kv_last_page_len on the host, and no ids. fa3 takes lengths"
        " from plan(), for which a row without pages has its last page length (get_seq_lens of page.py)"
        " unless seq_lens is passed",
    ),
)  # fmt: skip
