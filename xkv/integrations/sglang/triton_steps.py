"""The Triton backend's steps: prefix sums and indices in one launch, and no views made between launches.

Each takes the original method and its arguments, as in `methods`. Texts of what a method calls are no part of
its own: `apply_cuda_graph_metadata` looks whether those were replaced too, and so are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from xkv.integrations.sglang.again import Again
from xkv.integrations.sglang.methods import named
from xkv.integrations.sglang.sums import sums

_REPLACED = ("_fill_kv_indptr_and_indices", "_update_decode_kv_buffers", "get_num_kv_splits")
_splits = Again()
_NAMES = (
    "num_kv_splits_ptr", "seq_lens_ptr", "num_seq", "num_group", "num_head", "num_kv_head", "max_kv_splits",
    "device_core_count", "MAX_NUM_SEQ",
)  # fmt: skip


def fill_kv_indptr_and_indices(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Prefix sums of the lengths, and the slots of each row: decode, verify, extend, in graphs and not."""
    given = named(original, args, kwargs)
    self, batch, lens, out = given["self"], given["bs"], given["seq_lens"], given["kv_indices"]
    indptr = given.get("kv_indptr")
    indptr = self.kv_indptr[: batch + 1] if indptr is None else indptr
    if _translates(self) or lens.shape[0] != batch or indptr.shape[0] != batch + 1:
        return original(*args, **kwargs)
    if batch and out.numel() == 0:  # nothing cached, as in a first prefill: all lengths are 0
        indptr.zero_()
        return indptr
    if _sums(self, batch, lens, given["req_pool_indices"], indptr, out):
        return indptr
    return original(*args, **kwargs)


def update_decode_kv_buffers(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The original; it is here because `apply_cuda_graph_metadata` has to know its text."""
    return original(*args, **kwargs)


def get_num_kv_splits(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The backend's own kernel, launched again."""
    given = named(original, args, kwargs)
    self, out, lens = given["self"], given["num_kv_splits"], given["seq_lens"]
    return _launch_splits(original, self, out, lens, given.get("uneven_batch"), out.shape[0], lens.shape[0])


def apply_cuda_graph_metadata(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A whole decode step in a graph without a sliding window: two launches, and no view in between."""
    given = named(original, args, kwargs)
    self, batch, lens = given["self"], given["bs"], given["seq_lens"]
    decode = given["forward_mode"].is_decode_or_idle() and given["spec_info"] is None
    if not decode or batch < 1 or lens.shape[0] < batch or not _one_stream(self):
        return original(*args, **kwargs)
    out = self.cuda_graph_num_kv_splits
    if out.shape[0] < batch:
        return original(*args, **kwargs)
    if not _sums(self, batch, lens, given["req_pool_indices"], self.kv_indptr, self.cuda_graph_kv_indices):
        return original(*args, **kwargs)
    method = type(self).get_num_kv_splits.xkv_original
    takes_uneven = "uneven_batch" in method.__code__.co_varnames  # 0.5.23
    uneven = self.cuda_graph_uneven_batch if takes_uneven else None
    _launch_splits(method, self, out, lens, uneven, batch, batch)
    return None


def _sums(self: Any, batch: int, lens: Tensor, rows: Tensor, indptr: Tensor, out: Tensor) -> bool:
    source = self.req_to_token
    return sums((source, rows, lens, indptr, out), batch, source.stride(0))


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
    return getattr(self, "dcp_size", 1) <= 1 and _all_known(type(self)) and not _translates(self)


def _all_known(backend: type) -> bool:
    return all(hasattr(getattr(backend, name, None), "xkv_original") for name in _REPLACED)


def _launch_splits(
    method: Callable[..., Any], self: Any, out: Tensor, lens: Tensor, uneven: Tensor | None,
    tokens: int, batch: int,
) -> Any:  # fmt: skip
    """What `get_num_kv_splits` does with the first ``tokens`` of ``out`` and ``batch`` of ``lens``."""
    kernel = method.__globals__.get("get_num_kv_splits_triton")

    def own() -> Any:
        asked = (self, out[:tokens], lens[:batch])
        return method(*asked) if uneven is None else method(*asked, uneven)

    plain = self.device_core_count > 0 and not self.static_kv_splits and not self.enable_deterministic
    groups = tokens // batch if batch else 0
    inner = lens.dim() == 1 == out.dim() and lens.is_contiguous() and out.is_contiguous()
    if kernel is None or not plain or not inner or groups * batch != tokens or groups < 1:
        return own()
    width = 256 if batch < 256 else 1 << (batch - 1).bit_length()
    numbers = (
        batch, groups, self.num_head, self.num_kv_head, self.max_kv_splits, self.device_core_count, width,
    )  # fmt: skip
    names = tuple(kernel.arg_names)
    if names == _NAMES:
        pointers: tuple[Tensor | None, ...] = (out, lens)
    elif names == (*_NAMES, "uneven_batch_ptr"):
        pointers = (out, lens, uneven)
    else:
        return own()

    def launched() -> Any:  # returns the compiled kernel, which the method does not
        return kernel[(1,)](out, lens, *numbers, *pointers[2:])

    return _splits(kernel, launched, pointers, numbers)
