"""Small models with random weights from a seed; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY, CONTEXT = 32000, 4096
SEED = 7


def make(kind: str, folder: Path) -> Path:
    """Creates a folder with a config and weights, always the same; an existing folder is kept.

    Args:
        kind: llama, deepseek, gemma3; eagle_vllm or eagle_sglang: a draft model for llama.
        folder: the folder of all models.
    """
    import torch
    import transformers

    at = folder / kind
    if (at / "done").exists():
        return at
    at.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    config = _config(kind)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if kind.startswith("eagle"):
        _save_draft(model, config, at, bias=kind == "eagle_sglang")
    else:
        model.save_pretrained(at)
    (at / "done").touch()
    return at


def _config(kind: str) -> Any:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "max_position_embeddings": 2 * CONTEXT, "hidden_size": 1024,
        "num_hidden_layers": 8, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "initializer_range": 0.04,
    }  # fmt: skip
    if kind == "llama" or kind.startswith("eagle"):
        heads = {
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 2816,
        }
        if kind != "llama":
            common["num_hidden_layers"] = 1
        return t.LlamaConfig(architectures=["LlamaForCausalLM"], **heads, **common)
    if kind == "gemma3":
        common |= {"tie_word_embeddings": True, "intermediate_size": 2048}
        return t.Gemma3TextConfig(
            architectures=["Gemma3ForCausalLM"], num_attention_heads=8, num_key_value_heads=4, head_dim=128,
            query_pre_attn_scalar=128, sliding_window=512,
            layer_types=["sliding_attention", "full_attention"] * 4, **common,
        )  # fmt: skip
    if kind == "deepseek":  # every layer is dense: only attention is tested
        return t.DeepseekV3Config(
            architectures=["DeepseekV3ForCausalLM"], intermediate_size=2816, num_attention_heads=16,
            num_key_value_heads=16, q_lora_rank=768, kv_lora_rank=512, qk_rope_head_dim=64,
            qk_nope_head_dim=128, v_head_dim=128, first_k_dense_replace=8, n_routed_experts=8,
            num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=128, n_group=1, topk_group=1,
            moe_layer_freq=1, topk_method="noaux_tc", scoring_func="sigmoid", **common,
        )  # fmt: skip
    raise ValueError(f"kind must be a model of this file, got {kind!r}")


def _save_draft(model: Any, config: Any, at: Path, bias: bool) -> None:
    """Saves a model in EAGLE's form: one layer without its first norm, and a projection.

    Args:
        model: a Llama of one layer.
        config: its config.
        at: the folder to write to.
        bias: whether the projection has a bias: yes for SGLang, no for vLLM.
    """
    import torch
    from safetensors.torch import save_file

    weights = {}
    for name, tensor in model.state_dict().items():
        short = name.removeprefix("model.")
        if short.startswith(("layers.", "embed_tokens.")) and short != "layers.0.input_layernorm.weight":
            weights[short] = tensor.detach().cpu().contiguous()
    hidden = config.hidden_size
    weights["fc.weight"] = (torch.randn(hidden, 2 * hidden) * 0.02).to(torch.bfloat16)
    if bias:
        weights["fc.bias"] = torch.zeros(hidden, dtype=torch.bfloat16)
    save_file(weights, at / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
    if bias:
        written["architectures"] = ["LlamaForCausalLMEagle"]
    (at / "config.json").write_text(json.dumps(written, indent=1))
