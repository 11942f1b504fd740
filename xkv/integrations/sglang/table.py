"""What of SGLang is replaced, as data; another text is compared (tests/test_sglang*.py), then listed."""

from __future__ import annotations

from xkv.integrations.replacing import Function, Kernel, Replacement

_HERE = "xkv.integrations.sglang"

KERNELS = tuple(
    Kernel(name, frozenset(codes.split()), f"{_HERE}.kernels:{name}")
    for name, codes in (
        ("create_flashmla_kv_indices_triton", "800060db192f"),
        ("create_flashinfer_kv_indices_triton", "5e60d62f4840 7cc912709436"),
        ("create_chunked_prefix_cache_kv_indices", "6d54b4dd597e"),
        ("create_trtllm_mha_kv_indices_triton", "5eafc6c7d4c6"),
        ("scatter_req_to_token_to_page_table_kernel", "d9b139b865db"),
        ("update_trtllm_mha_graph_metadata_kernel", "8647ea728cfb"),
    )
)

METHODS = tuple(
    Function(f"TRTLLMMLABackend._{name}", frozenset(codes.split()), f"{_HERE}.methods:{name}")
    for name, codes in (
        ("create_block_kv_indices", "1479361e8468 f166bcaf6c84"),
        ("apply_cuda_graph_metadata", "8c1ce3244dbd bf066da25c01"),
    )
)

FUNCTIONS = (
    # 4096 // page_size, by which grids are sized: 0 for larger pages, and a division by it
    Function(
        "get_num_page_per_block_flashmla", frozenset({"fe9a39b28bdb"}), f"{_HERE}.methods:page_per_block"
    ),
)

REPLACED: tuple[Replacement, ...] = (*KERNELS, *METHODS, *FUNCTIONS)

# where SGLang has had them so far
FIRST = ("kernels", "srt/layers/attention", "srt/model_executor")
