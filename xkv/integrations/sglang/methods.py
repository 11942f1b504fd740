"""What is called in place of SGLang's methods and functions.

Of its steps of several launches: each takes the original method and its arguments, does the whole step in one
launch where it knows the case, and else calls the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import steps
from .page_tables import missing_id, tables


def create_block_kv_indices(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """TRTLLM MLA, eager: a new page table, -1 past the live pages."""
    bound = by_name(original, args, kwargs)
    self, batch, width = bound["self"], bound["batch_size"], bound["max_blocks"]
    if _plain(original, self):
        source = self.req_to_token
        out = torch.empty((batch, width), dtype=torch.int32, device=bound["device"])
        call = (source, bound["req_pool_indices"], bound["seq_lens"], None, None, None, out, None)
        if tables(call, batch, source.stride(0), width, self.page_size, 0, 0, -1):
            return out
    return original(*args, **kwargs)


def apply_cuda_graph_metadata(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """TRTLLM MLA in a graph, decode and verify: the page table and the int32 lengths."""
    bound = by_name(original, args, kwargs)
    self, batch, mode = bound["self"], bound["bs"], bound["forward_mode"]
    meta = self.decode_cuda_graph_metadata[batch]
    verify = mode.is_target_verify()
    # before 0.5.17, whose metadata has the global lengths, decode writes no lengths
    decode = mode.is_decode_or_idle() and hasattr(meta, "global_seq_lens_k")
    if meta.seq_lens_k is None or not (verify or decode) or not _plain(original, self):
        return original(*args, **kwargs)
    source, out = self.req_to_token, meta.block_kv_indices
    tensors = steps.StepTensors(
        source, bound["req_pool_indices"], bound["seq_lens"], meta.seq_lens_k, out
    )  # fmt: skip
    more = self.num_draft_tokens if verify else 0
    numbers = steps.StepNumbers(
        source.stride(0), self.page_size, out.shape[1], out.stride(0), 0, more,
        missing=missing_id(self.page_size),
    )  # fmt: skip
    if not steps.launch(batch, tensors, numbers):
        return original(*args, **kwargs)
    if verify and getattr(meta, "global_seq_lens_k", None) is not None:
        meta.global_seq_lens_k = meta.seq_lens_k  # the same lengths where there is one rank
    return None


def page_per_block(original: Callable[..., int]) -> Callable[..., int]:
    """SGLang's ``get_num_page_per_block_flashmla`` with 1 where it says 0: of pages larger than a block."""
    block = original(1)

    def pages(page_size: int = 64) -> int:
        return block // page_size or 1

    return pages


def by_name(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name; versions differ in their order."""
    names = method.__code__.co_varnames
    return dict(zip(names, args, strict=False)) | kwargs  # the names of its locals follow


def _plain(method: Callable[..., Any], backend: Any) -> bool:
    """Whether tables hold slots as they stand: no context parallelism, no translation of ids."""
    parallel = method.__globals__.get("get_parallel")
    if parallel is not None and getattr(parallel(), "dcp_enabled", False):
        return False
    if getattr(backend, "_v2p_page_table", None) is not None:  # 0.5.17's and 0.5.18's way to translate
        return False
    if getattr(backend, "_kernel_page_multiplier", 1) != 1:
        return False
    translator = getattr(backend, "kv_index_translator", None)
    return translator is None or not translator.is_translating
