"""SGLang's backends' own methods, taken out of their files: importing those needs every attention library."""

from __future__ import annotations
import __future__

import ast
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from building import paged_source
from sglang_engine import kernel, version

import xkv

CONTEXT = 1024


def only(*versions: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(version not in versions, reason=f"SGLang {version} has it otherwise")


def file_of(backend: str) -> Path:
    spec = importlib.util.find_spec("sglang.srt.layers.attention")
    return Path(spec.submodule_search_locations[0]) / f"{backend}_backend.py"


def method(path: Path, cls: str, name: str, **names: Any) -> Callable[..., Any]:
    """A method as a function whose globals are these names alone."""
    (found,) = (x for x in ast.parse(path.read_text()).body if getattr(x, "name", "") == cls)
    (node,) = (x for x in found.body if getattr(x, "name", "") == name)
    code = compile(
        ast.Module([node], []), str(path), "exec", flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
    )  # fmt: skip
    names |= {"torch": torch, "xkv": xkv}
    exec(code, names)
    return names[name]


def kernels(page_size: int = 64) -> dict[str, Any]:
    """The names that backends import from the kernels' module, and triton's cdiv."""
    import triton

    it = kernel("create_flashmla_kv_indices_triton")
    module = importlib.import_module(it.fn.__module__)
    names = ("get_num_kv_index_blocks_flashmla", "get_num_page_per_block_flashmla")
    return {name: getattr(module, name) for name in names} | {
        "create_flashmla_kv_indices_triton": it, "PAGE_SIZE": page_size, "triton": triton,
        "get_parallel": lambda: SimpleNamespace(dcp_enabled=False),
    }  # fmt: skip


def mode(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        is_target_verify=lambda: name == "verify", is_decode_or_idle=lambda: name == "decode",
        is_draft_extend_v2=lambda: name == "extend", is_draft_extend=lambda include_v2: name == "extend",
    )  # fmt: skip


class Backend(SimpleNamespace):
    """As much of a backend as its metadata methods read, on a random batch."""

    def __init__(self, device: str, page_size: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        plain = SimpleNamespace(is_translating=False, reads_are_translated=False)
        ids = paged_source(rng, 5, CONTEXT, page_size, 1, torch.int32, device).contiguous()
        super().__init__(
            req_to_token=ids, page_size=page_size, num_draft_tokens=4, kv_index_translator=plain,
            device=device, max_context_len=CONTEXT - 4, num_q_heads=16, is_fp8_kvcache=False,
        )  # fmt: skip
        ints = lambda low, high: torch.tensor([rng.randint(low, high) for _ in range(6)]).to(device)  # noqa: E731
        self.bs, self.rows, self.lens = 4, ints(0, 4), ints(1, CONTEXT - 4)
