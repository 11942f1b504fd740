"""Compiling, as the engine starts, what its attention backends can ask of xkv's kernel.

SGLang's model runner makes its attention backends once, after its memory pools and before it captures graphs.
Right after that each backend is looked at: its class says which replaced kernels and steps it calls, its
table of slots their dtypes. Whatever goes wrong here is logged, and the engine starts without it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ... import switches
from ..patching import importing, logs
from . import steps
from .kv_indices import indices, indices_and_sums
from .page_tables import missing_id, tables
from .steps import StepNumbers, StepTensors

_RUNNER = "sglang.srt.model_executor.model_runner"
_METHODS = ("init_attention_backends", "init_attention_backend")  # 0.5.16 and later; before
_WITHIN = "sglang.srt.layers.attention"
_DEPTH = 3  # backends in backends: two batches of two kinds of layers of two phases
_log = logging.getLogger("sglang.xkv")


def at_start() -> None:
    """Has `warm` called once the model runner has its backends."""
    if not switches.on("XKV_DISABLE"):
        importing.after(_RUNNER, "warm-up", _attach)


def _attach() -> None:
    runner = getattr(sys.modules[_RUNNER], "ModelRunner", None)
    name = next((name for name in _METHODS if hasattr(runner, name)), None)
    if name is None:
        line = f"xkv does not warm up: {_RUNNER}.ModelRunner has none of {', '.join(_METHODS)}"
        logs.say(_log, logging.WARNING, line)
        return
    original = getattr(runner, name)
    if hasattr(original, "xkv_warms"):
        return

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        warm(self)
        return result

    call.xkv_warms = True  # type: ignore[attr-defined]
    setattr(runner, name, call)


def warm(runner: Any) -> int:
    """Compiles and loads what the backends of a model runner can need; returns how many kernels that were."""
    begin, count, done = time.perf_counter(), 0, []
    for backend in _backends(vars(runner), _DEPTH):
        for name in (cls.__name__ for cls in type(backend).__mro__ if cls.__module__.startswith(_WITHIN)):
            if name in _NEEDS:
                try:
                    count += _NEEDS[name](_with_table(backend))
                    done.append(name)
                except (
                    Exception
                ) as error:  # the engine must start: what is missing is compiled when it is called
                    _log.warning("xkv does not warm up for %s: %s: %s", name, type(error).__name__, error)
    if done:
        took, names = time.perf_counter() - begin, ", ".join(dict.fromkeys(done))
        _log.info("xkv compiled or loaded %d kernels for %s in %.1f s", count, names, took)
    return count


def _backends(fields: Mapping[str, Any], depth: int) -> Iterator[Any]:
    """Each attention backend that is among an object's fields, and those in it."""
    for value in list(fields.values()):
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if depth and type(x).__module__.startswith(_WITHIN) and hasattr(x, "__dict__"):
                yield x
                yield from _backends(vars(x), depth - 1)


def _with_table(backend: Any) -> Any:
    """What has the table of slots: FlashInfer's backends leave it to what updates their indices."""
    if hasattr(backend, "req_to_token"):
        return backend
    updaters = (
        getattr(backend, name, None) for name in ("indices_updater_decode", "indices_updater_prefill")
    )
    return next((x for x in updaters if hasattr(x, "req_to_token")), backend)


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
    return _tables(backend, page, -1) + _tables(backend, page) + _lengths(backend, page)


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
_NEEDS: dict[str, Callable[[Any], int]] = {
    "TritonAttnBackend": _indices_and_sums,
    "WaveAttnBackend": lambda backend: _indices(backend, torch.int32),
    "AiterAttnBackend": lambda backend: _indices(backend, torch.int32),
    "FlashInferAttnBackend": lambda backend: _indices(backend, torch.int32),
    "FlashInferMLAAttnBackend": lambda backend: _indices(backend, torch.int32),
    "FlashMLABackend": lambda backend: _tables(backend, 64) + _lengths(backend, 64),
    "CutlassMLABackend": lambda backend: _tables(backend, 128),
    "TRTLLMMLABackend": _trtllm_mla,
    "TRTLLMHAAttnBackend": _trtllm_mha,
    "FlashAttentionBackend": _flash_attention,
}
