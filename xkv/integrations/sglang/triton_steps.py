"""The Triton backend's steps: prefix sums and indices in one launch, and no views made between launches.

Each takes the original method and its arguments, as in `methods`. Texts of what a method calls are no part of
its own: `apply_cuda_graph_metadata` looks whether those were replaced too, and so are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...launch.triton_launcher import launch_hooks_active
from .kv_indices import indices_and_sums
from .methods import by_name
from .recorded_launches import RecordedLaunches, launch_recorded

_EXTENDS = ("EXTEND", "MIXED")  # of SGLang's ForwardMode: prefill, with decodes among it or not
_REPLACED = ("_fill_kv_indptr_and_indices", "_update_decode_kv_buffers", "get_num_kv_splits")
_MOST = 512  # batch sizes whose steps a backend keeps
_splits = RecordedLaunches()
_NAMES = (
    "num_kv_splits_ptr", "seq_lens_ptr", "num_seq", "num_group", "num_head", "num_kv_head", "max_kv_splits",
    "device_core_count", "MAX_NUM_SEQ",
)  # fmt: skip


def fill_kv_indptr_and_indices(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Prefix sums of the lengths, and the slots of each row: decode, verify, extend, in graphs and not."""
    bound = by_name(original, args, kwargs)
    self, batch, lens, out = bound["self"], bound["bs"], bound["seq_lens"], bound["kv_indices"]
    indptr = bound.get("kv_indptr")
    indptr = self.kv_indptr[: batch + 1] if indptr is None else indptr
    if _translates(self) or lens.shape[0] != batch or indptr.shape[0] != batch + 1:
        return original(*args, **kwargs)
    if batch and out.numel() == 0:  # nothing cached, as in a first prefill: all lengths are 0
        indptr.zero_()
        return indptr
    if _sums(self, batch, lens, bound["req_pool_indices"], indptr, out):
        return indptr
    return original(*args, **kwargs)


def init_forward_metadata(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A whole eager step that extends, without a sliding window: one launch for two cumsums and a kernel."""
    bound = by_name(original, args, kwargs)
    self, forward = bound["self"], bound["forward_batch"]
    batch, prefixes, queries = forward.batch_size, forward.extend_prefix_lens_cpu, forward.extend_seq_lens_cpu
    if (
        forward.forward_mode.name not in _EXTENDS or batch < 1 or prefixes is None or queries is None
        or getattr(self, "use_sliding_window_kv_pool", False) or getattr(self, "dllm_attention", None)
        or not _one_stream(self)
    ):  # fmt: skip
        return original(*args, **kwargs)
    total, source = sum(prefixes), self.req_to_token
    # a launch needs an address to write to, also where nothing is cached
    out = torch.empty(total or 1, dtype=torch.int64, device=self.device)
    call = (
        source, forward.req_pool_indices, forward.extend_prefix_lens, forward.extend_seq_lens, self.kv_indptr,
        self.qo_indptr, out,
    )  # fmt: skip
    if not indices_and_sums(call, batch, source.stride(0)):
        return original(*args, **kwargs)
    if hasattr(self, "_dense_one_shot_kv_indptr"):
        self._dense_one_shot_kv_indptr = None  # 0.5.23: of the step before
    kv_indptr, qo_indptr = self.kv_indptr[: batch + 1], self.qo_indptr[: batch + 1]
    self.forward_metadata = original.__globals__["ForwardMetadata"](
        None, None, max(queries), None, kv_indptr, out if total else out[:0], qo_indptr, None, None,
        self.window_kv_indptr, None, None, None,
    )  # fmt: skip
    return None


def update_decode_kv_buffers(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The original; it is here because `apply_cuda_graph_metadata` has to know its text."""
    return original(*args, **kwargs)


def get_num_kv_splits(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The original, for the same reason: called by itself it is no faster for us (35 us of host for 28)."""
    return original(*args, **kwargs)


def apply_cuda_graph_metadata(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A whole decode step in a graph without a sliding window: two launches, and no view in between.

    The graph runner has one buffer of rows and one of lengths, so that a step of a batch size that was there
    before is the same two calls: they are kept, and launched as they are.
    """
    bound = by_name(original, args, kwargs)
    self, batch, rows, lens = bound["self"], bound["bs"], bound["req_pool_indices"], bound["seq_lens"]
    if not bound["forward_mode"].is_decode_or_idle() or bound["spec_info"] is not None or batch < 1:
        return original(*args, **kwargs)
    buffers = self.req_to_token, self.kv_indptr, self.cuda_graph_kv_indices, self.cuda_graph_num_kv_splits
    key = batch, rows.data_ptr(), lens.data_ptr(), rows.dtype, lens.dtype, rows.shape, lens.shape
    kept: dict[Any, Any] = self.__dict__.setdefault("xkv_steps", {})
    step = kept.get(key)
    if (
        step is not None and all(a is b for a, b in zip(step.buffers, buffers, strict=True))
        and not launch_hooks_active() and torch._C._cuda_getDevice() == step.splits[-1]
    ):  # fmt: skip
        step.compiled.launch(step.call)
        launch_recorded(step.splits)
        return None
    out = self.cuda_graph_num_kv_splits
    if lens.shape[0] < batch or not _one_stream(self) or out.shape[0] < batch:
        return original(*args, **kwargs)
    if not _sums(self, batch, lens, rows, self.kv_indptr, self.cuda_graph_kv_indices):
        return original(*args, **kwargs)
    method = type(self).get_num_kv_splits.xkv_original
    takes_uneven = "uneven_batch" in method.__code__.co_varnames  # 0.5.23
    uneven = self.cuda_graph_uneven_batch if takes_uneven else None
    _launch_splits(method, self, out, lens, uneven, batch, batch)
    _keep(kept, key, buffers, self, batch, rows, lens, uneven)
    return None


class _Step(NamedTuple):
    """Two calls, and the backend's buffers that are in them."""

    buffers: tuple[Tensor, ...]
    call: list[Any]
    compiled: Any
    splits: Any


def _keep(
    kept: dict[Any, Any], key: Any, buffers: tuple[Tensor, ...], self: Any, batch: int, rows: Tensor,
    lens: Tensor, uneven: Tensor | None,
) -> None:  # fmt: skip
    """Keeps the two calls of a step that was launched just now, where both are known."""
    source, indptr, ids, out = buffers
    call = (source, rows, lens, None, indptr, None, ids)
    found = indices_and_sums.call(call, batch, source.stride(0)) if source.is_cuda else None
    asked = _asked(type(self).get_num_kv_splits.xkv_original, self, out, lens, uneven, batch, batch)
    splits = None if found is None or asked is None else _splits.call(*asked)
    if found is not None and splits is not None:
        if len(kept) >= _MOST:
            kept.clear()
        call, compiled = found
        kept[key] = _Step(buffers, call, compiled, splits)


def _sums(self: Any, batch: int, lens: Tensor, rows: Tensor, indptr: Tensor, out: Tensor) -> bool:
    source = self.req_to_token
    return indices_and_sums((source, rows, lens, None, indptr, None, out), batch, source.stride(0))


def _translates(self: Any) -> bool:
    translator = getattr(
        self, "kv_index_translator", None
    )  # 0.5.20 and later; before, what is filled is final
    return translator is not None and (
        translator.reads_are_translated or translator.req_to_token is not self.req_to_token
    )


def _one_stream(self: Any) -> bool:
    """Whether decode is nothing but sums, indices and splits, by methods whose texts are known."""
    if self.sliding_window_size is not None and self.sliding_window_size > 0:
        return False
    if getattr(self, "_translate_kv_loc", None) is not None:  # 0.5.15 to 0.5.18, after the fill
        return False
    return getattr(self, "dcp_size", 1) <= 1 and _all_known(type(self)) and not _translates(self)


def _all_known(backend: type) -> bool:
    return all(hasattr(getattr(backend, name, None), "xkv_original") for name in _REPLACED)


def _asked(
    method: Callable[..., Any], self: Any, out: Tensor, lens: Tensor, uneven: Tensor | None,
    tokens: int, batch: int,
) -> tuple[Any, tuple[Tensor | None, ...], tuple[Any, ...]] | None:  # fmt: skip
    """The kernel that `get_num_kv_splits` launches, its pointers and numbers; None: it does other things."""
    kernel = method.__globals__.get("get_num_kv_splits_triton")
    plain = self.device_core_count > 0 and not self.static_kv_splits and not self.enable_deterministic
    groups = tokens // batch if batch else 0
    inner = lens.dim() == 1 == out.dim() and lens.is_contiguous() and out.is_contiguous()
    if kernel is None or not plain or not inner or groups * batch != tokens or groups < 1:
        return None
    width = 256 if batch < 256 else 1 << (batch - 1).bit_length()
    numbers = (
        batch, groups, self.num_head, self.num_kv_head, self.max_kv_splits, self.device_core_count, width,
    )  # fmt: skip
    names = tuple(kernel.arg_names)
    if names == _NAMES:
        return kernel, (out, lens), numbers
    return (kernel, (out, lens, uneven), numbers) if names == (*_NAMES, "uneven_batch_ptr") else None


def _launch_splits(
    method: Callable[..., Any], self: Any, out: Tensor, lens: Tensor, uneven: Tensor | None,
    tokens: int, batch: int,
) -> None:  # fmt: skip
    """What `get_num_kv_splits` does with the first ``tokens`` of ``out`` and ``batch`` of ``lens``."""
    found = _asked(method, self, out, lens, uneven, tokens, batch)
    if found is None:
        views = (self, out[:tokens], lens[:batch])
        method(*views) if uneven is None else method(*views, uneven)
        return
    kernel, pointers, numbers = found

    def launched() -> Any:  # returns the compiled kernel, which the method does not
        return kernel[(1,)](out, lens, *numbers, *pointers[2:])

    _splits(kernel, launched, pointers, numbers)
