"""What of SGLang is replaced, as data; another version is compared (tests/test_sglang*.py), then listed."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from xkv.integrations.sglang import kernels, methods
from xkv.integrations.sglang.later import Method
from xkv.integrations.sglang.replace import Replacement

# Between them a kernel that was changed is known by its code; outside nothing is touched.
VERSIONS = SpecifierSet(">=0.5.13,<=0.5.23", prereleases=True)

_NEW, _OLD = "sglang.kernels.ops.attention.", "sglang.srt.layers.attention.triton_ops."
_MIXIN = "sglang.srt.model_executor.forward_batch_deepseek_mha_mixin"

KERNELS = tuple(
    Replacement(name, modules, frozenset(codes.split()), getattr(kernels, name))
    for name, modules, codes in (
        (
            "create_flashmla_kv_indices_triton",
            (_NEW + "kv_indices", _OLD + "kv_indices"),
            "800060db192f",
        ),
        (
            "create_flashinfer_kv_indices_triton",
            (_NEW + "kv_indices", _OLD + "kv_indices"),
            "5e60d62f4840 7cc912709436",
        ),
        (
            "create_chunked_prefix_cache_kv_indices",
            (_NEW + "kv_indices", _MIXIN),
            "6d54b4dd597e",
        ),
        (
            "create_trtllm_mha_kv_indices_triton",
            (_NEW + "trtllm_mha_page_table",),
            "5eafc6c7d4c6",
        ),
        (
            "scatter_req_to_token_to_page_table_kernel",
            (_NEW + "aiter_unified_page_table", _OLD + "aiter_unified_attention"),
            "d9b139b865db",
        ),
        (
            "update_trtllm_mha_graph_metadata_kernel",
            (_NEW + "trtllm_mha_graph_metadata",),
            "8647ea728cfb",
        ),
    )
)  # fmt: skip

_TRTLLM_MLA = ("sglang.srt.layers.attention.trtllm_mla_backend", "TRTLLMMLABackend")

METHODS = (
    Method(
        *_TRTLLM_MLA, "_create_block_kv_indices", frozenset({"1479361e8468", "f166bcaf6c84"}),
        methods.create_block_kv_indices,
    ),
    Method(
        *_TRTLLM_MLA, "_apply_cuda_graph_metadata", frozenset({"8c1ce3244dbd", "bf066da25c01"}),
        methods.apply_cuda_graph_metadata,
    ),
)  # fmt: skip

# NUM_PAGE_PER_BLOCK = 4096 // page_size, by which grids are sized: 0 of larger pages, and a division by it
PAGE_PER_BLOCK = "get_num_page_per_block_flashmla"
