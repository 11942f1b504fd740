"""The attention backends of AMD GPUs."""

from ..platforms.specs import POWERS_OF_TWO, BackendSpec

SPECS = (
    BackendSpec(
        "aiter_mla", "csr", (1, 64), 1,
        ("kv_indptr", "kv_last_page_len", "cache_seqlens", "cu_seqlens_q"), min_last_page_len=1,
        why="Aiter MLA decode, verify and prefill. One int32 id per page (the asm kernel does not check the"
        " dtype: int64 is silently wrong), last page lengths, all 1 at page size 1, qo_indptr; the length of"
        " kv_indices feeds the split heuristic. At page size 64 kv_indptr counts pages (aiter/mla.py,"
        " mla_decode_fwd and KV_INDPTR_IS_PAGE_LEVEL; csrc/kernels/mla/metadata/v1_2_device.cuh), and there"
        " are kernels for some head counts and dtypes alone: fp8 on gfx942 and gfx950 (hk_mla_decode_fwd,"
        " experimental), bf16 queries over a packed cache on gfx942 (hsa/gfx942/mla/mla_asm.csv), gfx1250",
    ),
    BackendSpec(
        "aiter_unified", "table", POWERS_OF_TWO[:8], 16,
        ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q"), width_tokens=64, pad_to_tokens=64,
        why="Aiter unified attention and gluon PA read rows unmasked to the 64-token tile (vLLM #53658):"
        " row storage is padded to it and holds 0 there",
    ),
    BackendSpec(
        "aiter_pa", "table", (1, 16, 32), 16, ("cache_seqlens", "cu_seqlens_q"), packed=True, min_seq_len=1,
        why="Aiter's paged_attention_v1, decode (csrc/cpp_itfs/pa/pa_v1.py, pa_v1.cuh): int32 block_tables,"
        " whose width is taken for the row stride and must hold max_context_len; context_lens and"
        " cu_query_lens, through int pointers without a check of the dtype. Past the last block it reads that"
        " block again. It splits rows into parts of 256 tokens, and of a row without tokens its reduction"
        " reads part -1 (pa_kernels.cuh): lengths are at least 1. Page sizes as in op_tests/test_pa_v1.py",
    ),
    BackendSpec(
        "aiter_pa_ragged", "csr", (1, 16, 32), 16,
        ("kv_indptr", "kv_last_page_len"), min_seq_len=1, min_last_page_len=1,
        why="Aiter's paged_attention_ragged, decode (csrc/cpp_itfs/pa/pa_ragged.py, pa_ragged.cuh): int32"
        " kv_indptr, kv_page_indices and, at page sizes above 1, kv_last_page_lens; a length is"
        " (pages - 1) * page_size + last page length. The rest is as for aiter_pa, page sizes as in"
        " op_tests/test_pa_ragged.py",
    ),
    BackendSpec(
        "aiter_batch_prefill", "csr", (1, 16, 1024), 1,
        ("kv_indptr", "kv_last_page_len", "cu_seqlens_q"), min_last_page_len=1, pad_entries=256,
        why="Aiter's mha_batch_prefill_func, CK (csrc/py_itfs_ck/mha_batch_prefill_kernels.cu): kv_indptr,"
        " kv_page_indices and cu_seqlens_q must be int32; above page size 1 kv_last_page_lens is required. A"
        " row without pages has length 0. The kernel reads up to 256 entries past the last one"
        " (op_tests/test_batch_prefill.py); their keys are masked, but their values are multiplied by 0, so"
        " that the pages they name must hold no NaN (SGLang's AiterIndicesUpdaterPrefill). Page sizes are"
        " those of CK's codegen/ops/fmha_batch_prefill.py",
    ),
)  # fmt: skip
