"""The cases: an engine, a model, a backend, and the engine's kernels that xkv must serve."""

from __future__ import annotations

from typing import Any, NamedTuple

PAGES = "_copy_page_indices_kernel"
# the methods of model runners V2 and V1 that launch the kernels
STEP_V2, STEP_V1 = "GPUModelRunner.prepare_attn", "BlockTable.compute_slot_mapping"
STREAM, TABLE = "create_flashinfer_kv_indices_triton", "create_flashmla_kv_indices_triton"
_TRITON = "TritonAttnBackend."
STEP, FILL = _TRITON + "_apply_cuda_graph_metadata", _TRITON + "_fill_kv_indptr_and_indices"
EXTEND = _TRITON + "init_forward_metadata"  # an eager step: prefill, mixed


class Case(NamedTuple):
    """One configuration of an engine.

    Attributes:
        model: its name in `serve.models`.
        kernels: the engine's kernels and methods that xkv must have served.
        options: arguments of the engine in addition to those of every case.
        runner: vLLM's model runner, 1 or 2.
        draft: the name of the draft model in `serve.models`.
        needs: a module without which the case is skipped.
    """

    model: str
    kernels: tuple[str, ...]
    options: dict[str, Any]
    runner: int = 2
    draft: str = ""
    needs: str = ""


_FLASHINFER = {"backend": "FLASHINFER", "use_trtllm_attention": False}
_MLA_DECODE = {"prefill_attention_backend": "triton", "page_size": 64}
_EAGLE: dict[str, Any] = {
    "speculative_algorithm": "EAGLE", "speculative_num_steps": 3, "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}  # fmt: skip

VLLM = {
    "gqa": Case("llama", (STEP_V2,), {"block_size": 16}),
    "mla": Case("deepseek", (STEP_V2,), {"block_size": 64}),
    "window": Case("gemma3", (STEP_V2,), {"block_size": 16}),
    "gqa_v1": Case("llama", (STEP_V1,), {"block_size": 16}, runner=1),
    "flashmla": Case(
        "deepseek", (STEP_V2,), {"block_size": 64, "attention_config": {"backend": "FLASHMLA"}}
    ),
    "flashinfer": Case(
        "llama", (STEP_V2, PAGES), {"block_size": 16, "attention_config": _FLASHINFER},
        needs="flashinfer",
    ),
    "flashinfer_v1": Case(
        "llama", (STEP_V1, PAGES), {"block_size": 16, "attention_config": _FLASHINFER}, runner=1,
        needs="flashinfer",
    ),
    "eagle": Case(
        "llama", (STEP_V2,),
        {"block_size": 16, "speculative_config": {"method": "eagle", "num_speculative_tokens": 3}},
        draft="eagle_vllm",
    ),
}  # fmt: skip

SGLANG = {
    "gqa": Case("llama", (STEP, EXTEND), {"attention_backend": "triton"}),
    "mla": Case("deepseek", (STEP, EXTEND), {"attention_backend": "triton"}),
    "flashmla": Case("deepseek", (TABLE, EXTEND), {"decode_attention_backend": "flashmla", **_MLA_DECODE}),
    "eagle": Case("llama", (FILL, EXTEND), {"attention_backend": "triton", **_EAGLE}, draft="eagle_sglang"),
    "flashinfer": Case("llama", (STREAM,), {"attention_backend": "flashinfer"}, needs="flashinfer"),
    "flashinfer_mla": Case("deepseek", (STREAM,), {"attention_backend": "flashinfer"}, needs="flashinfer"),
    # FA3 builds its page table with torch: nothing is replaced, and nothing may change
    "fa3": Case("llama", (), {"attention_backend": "fa3"}, needs="sgl_kernel.flash_ops"),
}

ENGINES = {"vllm": VLLM, "sglang": SGLANG}
