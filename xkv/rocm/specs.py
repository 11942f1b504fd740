"""The attention backends of AMD GPUs."""

from ..platforms.specs import POWERS_OF_TWO, BackendSpec

SPECS = (
    BackendSpec(
        "aiter_mla", "csr", (1,), 1,
        ("kv_indptr", "kv_last_page_len", "cache_seqlens", "cu_seqlens_q"), min_last_page_len=1,
        why="Aiter MLA decode, verify and prefill. One int32 id per token (the asm kernel does not check the"
        " dtype: int64 is silently wrong), all last page lengths 1, qo_indptr; the length of kv_indices feeds"
        " the split heuristic",
    ),
    BackendSpec(
        "aiter_unified", "table", POWERS_OF_TWO[:8], 16,
        ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q"), width_tokens=64, pad_to_tokens=64,
        why="Aiter unified attention and gluon PA read rows unmasked to the 64-token tile (vLLM #53658):"
        " row storage is padded to it and holds 0 there",
    ),
)  # fmt: skip
