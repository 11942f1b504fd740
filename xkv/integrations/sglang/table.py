"""What of SGLang is replaced, as data; another text is compared (tests/engines), then listed."""

from __future__ import annotations

from ..patching.replacing import Function, Kernel, Launch, Replacement

_HERE = ".sglang"  # see `replacing.resolve`


def _kernel(module: str, name: str, codes: str, **others: str) -> Kernel:
    """A kernel whose launch in that module has its name, but for the codes of texts with other arguments."""
    launches = {f"{module}:{name}": codes} | {f"earlier:{ours}": texts for ours, texts in others.items()}
    return Kernel(
        name,
        {code: Launch(f"{_HERE}.{ours}") for ours, texts in launches.items() for code in texts.split()},
    )


KERNELS = (
    _kernel("page_tables", "create_flashmla_kv_indices_triton", "800060db192f 35cb50660f84 aae7a3fea1f5"),
    _kernel(
        "kv_indices", "create_flashinfer_kv_indices_triton",
        "5e60d62f4840 28878c7aa816 24fd2a32aee4 7cc912709436",
    ),
    _kernel("kv_indices", "create_chunked_prefix_cache_kv_indices", "6d54b4dd597e"),
    _kernel(
        "page_tables", "create_trtllm_mha_kv_indices_triton", "5eafc6c7d4c6",
        trtllm_mha_without_numel="1a213976f11a",
    ),
    _kernel("page_tables", "scatter_req_to_token_to_page_table_kernel", "d9b139b865db"),
    _kernel("metadata", "update_trtllm_mha_graph_metadata_kernel", "8647ea728cfb b9b5c29e8110"),
    _kernel("metadata", "_fused_decode_metadata_kernel", "07347e638789"),
    _kernel("metadata", "_draft_extend_metadata_kernel", "ad3b4ca16722"),
    _kernel("context_parallel", "create_triton_kv_indices_for_dcp_triton", "b047bbaef678"),
    _kernel(
        "context_parallel", "create_mla_kv_page_table_for_dcp", "7304c57b1552",
        dcp_page_table_without_map="71f6847ed5dd", dcp_page_table_with_multiplier="2a50bab28cbf",
    ),
    _kernel("context_parallel", "compact_dcp_verify_token_table_to_ragged", "a5c738be4c9a"),
    _kernel(
        "draft", "generate_draft_decode_kv_indices", "06f86d0c04fa",
        draft_indices_of_pools="a52b7dc647bc", draft_indices_without_window="e0d1e9cab7dc 85295c7f02aa",
    ),
    _kernel("draft", "generate_draft_decode_window_kv_indices", "d61fdec1be9f"),
    _kernel(
        "sparse", "transform_index_page_table_decode_kernel", "f6076342bfe4",
        transform_index_of_contiguous_rows="08a4718b72f0",
    ),
    _kernel("sparse", "transform_index_page_table_decode_tiled_kernel", "d271369d40df"),
    _kernel(
        "sparse", "transform_index_page_table_prefill_kernel", "ae4722c3b865 7236e6ea841b d3c3be826d64"
    ),
)  # fmt: skip

METHODS = tuple(
    Function(f"TRTLLMMLABackend._{name}", frozenset(codes.split()), f"{_HERE}.methods:{name}")
    for name, codes in (
        ("create_block_kv_indices", "4f662541ac7b 1479361e8468 52f69abe6f64 f523e7f44f77 f166bcaf6c84"),
        (
            "apply_cuda_graph_metadata",
            "8c1ce3244dbd aa5c9bd7c6ea 4fad1faaa815 8ce3362b0f2e ec11a8559323 47ecf0dfab80 bf066da25c01",
        ),
    )
)

STEPS = tuple(
    Function(
        f"TritonAttnBackend.{name}", frozenset(codes.split()), f"{_HERE}.triton_steps:{name.lstrip('_')}"
    )
    for name, codes in (
        ("_fill_kv_indptr_and_indices", "77459d992f3d 73d3e247d6ad 39871871ae78"),
        (
            "_update_decode_kv_buffers",
            "56e5aea1be70 aa32e550d302 0a08f6160a3b 730c4f7741b4",
        ),
        (
            "init_forward_metadata",
            "c6c77e1946d8 56ee27e79cc4 e8632c5382a7 9fb05bd55cb6 3c3a14a1d9c2 771a3eb34ab1 d30386b38900 "
            "41eb09464dff",
        ),
        ("get_num_kv_splits", "d16523999544 b7db0256ff32"),
        (
            "_apply_cuda_graph_metadata",
            "d01d97b4ac04 5dc8cc407901 6be83fe91095 555e6bacfc6f d896cf753094 d3d7b6414179 21d349732934",
        ),
    )
)

FUNCTIONS = (
    # 4096 // page_size, by which grids are sized: 0 for larger pages, and a division by it
    Function(
        "get_num_page_per_block_flashmla",
        frozenset({"fe9a39b28bdb"}),
        f"{_HERE}.methods:page_per_block",
        factory=True,
    ),
)

REPLACED: tuple[Replacement, ...] = (*KERNELS, *METHODS, *STEPS, *FUNCTIONS)

# where SGLang has had them so far
FIRST = ("kernels", "srt/layers", "srt/model_executor", "srt/speculative")
