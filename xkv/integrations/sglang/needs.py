"""What SGLang's attention backends call of what is replaced, by the backend's class: see `warmup`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import context_parallel, steps
from .kv_indices import indices, indices_and_sums
from .page_tables import missing_id, tables
from .steps import StepNumbers, StepTensors


def _new(backend: Any, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=backend.req_to_token.device)


def _ints(backend: Any, shape: int = 1) -> Tensor:
    return _new(backend, torch.int32, shape)


def _indices(backend: Any, out: torch.dtype) -> int:
    """Token CSR at prefix sums that are read: from a row's start, and from elsewhere on."""
    one, ids = _ints(backend), backend.req_to_token
    count = 0
    for start in (None, one):
        inputs = (ids, one, one, start, start, None, _ints(backend, 2), _new(backend, out, 1))
        count += indices.warm(inputs, 1, ids.stride(0), 1)
    return count


def _indices_and_sums(backend: Any) -> int:
    ids, one = backend.req_to_token, _ints(backend)
    two, wide, out = _ints(backend, 2), _new(backend, torch.int64, 2), _new(backend, torch.int64, 1)
    # a sliding window's, and of what is left to the engine's own methods
    count = _indices(backend, torch.int64)
    for queries, qo_indptr in ((None, None), (one, wide)):  # steps that extend sum up their queries
        count += indices_and_sums.warm((ids, one, one, queries, two, qo_indptr, out), 1, ids.stride(0))
    if getattr(backend, "num_draft_tokens", None):  # drafts make their own int32 indices
        count += _indices(backend, torch.int32)
    return count + _indices_of_a_rank(backend)


def _ranks(backend: Any) -> int:
    """Ranks among which decode context parallelism divides the cache."""
    for name in ("dcp_size", "dcp_world_size"):
        if hasattr(backend, name):
            return int(getattr(backend, name))
    parallel = getattr(sys.modules.get(type(backend).__module__), "get_parallel", None)
    return 1 if parallel is None else int(getattr(parallel(), "dcp_size", 1))


def _indices_of_a_rank(backend: Any) -> int:
    """Token CSR of a rank: from a row's start, and from elsewhere on."""
    ranks, ids, one, count = _ranks(backend), backend.req_to_token, _ints(backend), 0
    for start in (None, one) if ranks > 1 else ():
        inputs = (ids, one, one, start, one, _new(backend, torch.int64, 1))
        count += context_parallel.indices.warm(inputs, 1, ids.stride(0), ranks, 0)
    return count


def _tables_of_a_rank(backend: Any, page_size: int) -> int:
    """Page tables of a rank, in a pool of virtual pages, too."""
    ranks, ids, one = _ranks(backend), backend.req_to_token, _ints(backend)
    if ranks < 2:
        return 0
    v2p = getattr(getattr(backend, "kv_index_translator", None), "full_v2p_table", None)
    inputs = (ids, one, one, v2p, _new(backend, torch.int32, 1, 1))
    return context_parallel.tables.warm(inputs, 1, ids.stride(0), 1, page_size, ranks, 0)


def _aiter(backend: Any) -> int:
    """CSR; of ranks also the table of a verification, and that table as CSR."""
    count = _indices(backend, torch.int32) + _tables_of_a_rank(backend, 1)
    if _ranks(backend) > 1:
        one = _ints(backend)
        count += context_parallel.ragged.warm((_new(backend, torch.int32, 1, 1), one, one, one), 1, 1, 1)
    return count


def _tables(backend: Any, page_size: int, pad_value: int | None = None) -> int:
    ids, one = backend.req_to_token, _ints(backend)
    out = _new(backend, torch.int32, 1, 1)
    return tables.warm(
        (ids, one, one, None, None, None, out, None), 1, ids.stride(0), 1, page_size, 0, 0, pad_value
    )


def _lengths(backend: Any, page_size: int) -> int:
    """A page table and its int32 lengths."""
    ids, one = backend.req_to_token, _ints(backend)
    out = _new(backend, torch.int32, 1, 1)
    numbers = StepNumbers(ids.stride(0), page_size, 1, 1, missing=missing_id(page_size))
    return steps.warm(StepTensors(ids, one, one, _ints(backend), out), numbers)


def _trtllm_mla(backend: Any) -> int:
    page = backend.page_size
    count = _tables(backend, page, -1) + _tables(backend, page) + _lengths(backend, page)
    return count + _tables_of_a_rank(backend, page)


def _windows(backend: Any) -> list[tuple[Tensor | None, Tensor | None]]:
    """The maps to a window's pool, and its tables, that steps may have: none, and the backend's."""
    mapping = getattr(getattr(backend, "token_to_kv_pool", None), "full_to_swa_index_mapping", None)
    found: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
    if isinstance(mapping, Tensor):
        found.append((mapping, _new(backend, torch.int32, 1, 1)))
    return found


def _trtllm_mha(backend: Any) -> int:
    """Page tables with lengths and sums, in the three ways that queries are counted; the window's beside."""
    ids, one, two = backend.req_to_token, _ints(backend), _ints(backend, 2)
    page, out, count = backend.page_size, _new(backend, torch.int32, 1, 1), 0
    for token_map, out2 in _windows(backend):
        for queries, cu_q in ((None, None), (one, two), (None, two)):
            count += _step(backend, (out, out2, two, cu_q, queries, token_map), zero_first=False)
        length = 0 if token_map is None else token_map.numel()
        inputs = (ids, one, one, None, None, token_map, out, out2)
        count += tables.warm(inputs, 1, ids.stride(0), 1, page, 0, length)
    return count


def _flash_attention(backend: Any) -> int:
    """Page tables with lengths and sums of decoding and of extending by drafts; the window's beside."""
    one, two, out, count = _ints(backend), _ints(backend, 2), _new(backend, torch.int32, 1, 1), 0
    for token_map, out2 in _windows(backend):
        for queries, cu_q in ((None, None), (one, two)):
            count += _step(backend, (out, out2, two, cu_q, queries, token_map), zero_first=True)
    return count


def _step(backend: Any, optional: tuple[Tensor | None, ...], *, zero_first: bool) -> int:
    """A step with these of `StepTensors`, from ``out`` on; with a window's, also with slots of new tokens."""
    ids, page, count = backend.req_to_token, backend.page_size, 0
    *_, token_map = optional
    locs = _new(backend, torch.int64, 1)
    missing = {missing_id(page), -1} if token_map is None else {-1}
    for slots, each in itertools.product(
        [()] if token_map is None else [(), (None, None, locs, locs)], missing
    ):
        tensors = StepTensors(ids, _ints(backend), _ints(backend), _ints(backend), *optional, *slots)
        numbers = StepNumbers(
            ids.stride(0), page, 1, 1, 1, 0, 1, 1, 1, each, zero_first=zero_first
        )  # fmt: skip
        count += steps.warm(tensors, numbers)
    return count


# by the class's name, what it and what it inherits from call of what is replaced; its bases' count, too
NEEDS: dict[str, Callable[[Any], int]] = {
    "TritonAttnBackend": _indices_and_sums,
    "WaveAttnBackend": lambda backend: _indices(backend, torch.int32),
    "AiterAttnBackend": _aiter,
    "FlashInferAttnBackend": lambda backend: _indices(backend, torch.int32),
    "FlashInferMLAAttnBackend": lambda backend: _indices(backend, torch.int32),
    "FlashMLABackend": lambda backend: _tables(backend, 64) + _lengths(backend, 64),
    "CutlassMLABackend": lambda backend: _tables(backend, 128),
    "TRTLLMMLABackend": _trtllm_mla,
    "TRTLLMHAAttnBackend": _trtllm_mha,
    "FlashAttentionBackend": _flash_attention,
}
