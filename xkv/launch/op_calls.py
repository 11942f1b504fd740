"""The ops' launch cache: calls of one signature differ in sizes and data alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import torch_library
from ..params import CAPACITY_MAX, INT32_MAX, MAX_BATCH, ROW_MAX, SLOTS, TABLE, Build
from . import launch
from .cache import CacheEntry, LaunchCache, fits_int32
from .guards import addresses, make_guard, refuse
from .triton_launcher import launch_hooks_active

# The tensors of a call, by the kernel's names. Maps and status, which are not per request, come last.
POINTERS = (
    "src_ptr", "rows_ptr", "lens_ptr", "out_ptr", "indptr_ptr", "last_ptr",
    "delta_ptr", "query_ptr", "start_ptr", "offset_ptr", "token_map_ptr", "page_map_ptr", "status_ptr",
)  # fmt: skip
_OUT, _INDPTR, _OPTIONAL, _OFFSET, _TOKEN_MAP, _PAGE_MAP = 3, 4, 6, 9, 10, 11
_OUTPUTS = (3, 4, 5, _OFFSET)
_SIZES = ("delta", "batch", "src_stride", "src_rows", "src_tokens", "out_stride", "capacity")
_MAX_SIGNATURES = 1024  # an engine has a few

# the kernel's sizes without the delta; all tensors' lengths in bytes; upper bound of the entries in one row
_Measured = tuple[list[int], list[int], int]


class _LastCall(NamedTuple):
    """The last call of a signature.

    Attributes:
        guard: guard of its tensors.
        entry: its entry in the launch cache.
        item_sizes: bytes per element of each tensor.
        exact_guard: guard of its tensors' sizes too: engines repeat calls of the same sizes.
        measured: what `Signature._measure` returned for those sizes.
    """

    guard: Callable[..., bool]
    entry: CacheEntry | None
    item_sizes: list[int]
    exact_guard: Callable[..., bool]
    measured: _Measured | None


_NO_CALL = _LastCall(refuse, None, [], refuse, None)


class Signature:
    """Calls of one op with the same options and the same arguments present (not None).

    Args:
        present: whether each of `POINTERS` is.
        form: TABLE, CSR or SLOTS.
        page_size, source_page_size: tokens per output page and per source entry.
        has_pad_value: whether ``pad_value`` is not None.
    """

    __slots__ = (
        "_apart", "_entries", "_last_call", "_last_sizes", "_names", "_num_leading", "_sizes", "form",
        "has_pad_value", "page_size", "present", "source_page_size",
    )  # fmt: skip

    def __init__(
        self, present: Sequence[bool], form: int, page_size: int, source_page_size: int, has_pad_value: bool
    ) -> None:
        self.form, self.has_pad_value = form, has_pad_value
        self.page_size, self.source_page_size = page_size, source_page_size
        self.present = [n for n, is_present in enumerate(present) if is_present]
        # if the first few are present and no others: how many; otherwise 0
        self._num_leading = len(self.present) if self.present == [*range(len(self.present))] else 0
        outputs = [k for k, n in enumerate(self.present) if n in _OUTPUTS]
        # each output, and what it must not overlap: all inputs, and the outputs before it
        self._apart = [
            (k, [n for n in range(len(self.present)) if n < k or (n > k and n not in outputs)])
            for k in outputs
        ]
        self._names = [POINTERS[n] for n in self.present]
        maps = [
            name for name, n in (("token_map_len", _TOKEN_MAP), ("page_map_len", _PAGE_MAP)) if present[n]
        ]
        self._sizes = (*_SIZES, *maps)
        self._entries = LaunchCache()
        self._last_call = _NO_CALL
        self._last_sizes: list[int] = []  # of the last call that was measured

    def launch(self, inputs: tuple[Any, ...], delta: int, bound: int | None) -> bool:
        """Launches a call whose signature is cached; returns False if it is not, or needs the full checks.

        Args:
            inputs: a tensor or None for each of `POINTERS`.
            delta: tokens added to every length.
            bound: tokens of the longest row (tables) or of all rows together. None: no bound.
        """
        tensors = inputs[: self._num_leading] if self._num_leading else [inputs[n] for n in self.present]
        last = self._last_call  # read once: other threads may replace it
        try:
            pointers = addresses(tensors)
            same = last.exact_guard(*tensors)
            if not same and not last.guard(*tensors):
                last = self._lookup(tensors)
            if last.entry is None or launch_hooks_active():
                return False
        except (AttributeError, RuntimeError, TypeError):
            return False  # not a tensor, or one without memory: the full checks name it
        if type(delta) is not int or not -ROW_MAX <= delta <= ROW_MAX or 0 in pointers:
            return False
        measured = last.measured if same and bound is None else self._measure(inputs, tensors, last, bound)
        if measured is None:
            return False
        sizes, lengths, row_items = measured
        for k, others in self._apart:  # no output may overlap another tensor
            low = pointers[k]
            high = low + lengths[k]
            for n in others:
                begin = pointers[n]
                if begin < high and low < begin + lengths[n]:
                    return False
        if not same and bound is None:
            if sizes == self._last_sizes:  # the second time in a row: likely to repeat
                exact_guard = make_guard(tensors, sizes=True)
                self._last_call = last._replace(exact_guard=exact_guard, measured=measured)
            self._last_sizes = sizes
        return last.entry.launch(pointers, (delta, *sizes), sizes[0], row_items)

    def _measure(
        self, inputs: tuple[Any, ...], tensors: Sequence[Tensor], last: _LastCall, bound: int | None
    ) -> _Measured | None:
        """Returns the call's sizes; None if they are inconsistent, which the full checks report."""
        # .shape and .stride() take half the time of .size(n) and .stride(n)
        source, rows, lens, out = tensors[:4]
        (batch,), (num_rows,), item_sizes = lens.shape, rows.shape, last.item_sizes
        (source_rows, width), stride = source.shape, source.stride()[0]
        tokens = width * self.source_page_size
        if num_rows != batch or not 0 < batch <= MAX_BATCH or tokens > ROW_MAX or source_rows > INT32_MAX:
            return None
        max_tokens = tokens
        if self.form == TABLE:
            (out_rows, out_width), out_stride = out.shape, out.stride()[0]
            if out_rows < batch or out_width > INT32_MAX or (out_rows > 1 and out_stride < out_width):
                return None
            out_bytes = ((out_rows - 1) * out_stride + out_width) * item_sizes[3]
            if bound is not None:
                if type(bound) is not int or not 0 <= bound <= min(out_width * self.page_size, ROW_MAX):
                    return None
                max_tokens = min(tokens, bound)
        else:
            (out_width,), out_stride = out.shape, 0
            if out_width > INT32_MAX:
                return None
            out_bytes = out_width * item_sizes[3]
            if bound is not None and not (type(bound) is int and 0 <= bound <= out_width * self.page_size):
                return None
        capacity = min(out_width, CAPACITY_MAX)
        row_items = capacity
        if not self.has_pad_value and self.form != SLOTS:
            row_items = min(capacity, tokens // self.page_size + 1)
        sizes = [batch, stride, source_rows, max_tokens, out_stride, capacity]
        source_bytes = ((source_rows - 1) * stride + width) * item_sizes[0]
        lengths = [source_bytes, batch * item_sizes[1], batch * item_sizes[2], out_bytes]
        if len(tensors) > 4 and not self._measure_optional(inputs, batch, last, sizes, lengths):
            return None
        return sizes, lengths, row_items

    def _measure_optional(
        self, inputs: tuple[Any, ...], batch: int, last: _LastCall, sizes: list[int], lengths: list[int]
    ) -> bool:
        """Appends sizes, and lengths in bytes, of all but the first four tensors; False if inconsistent."""
        for k, n in enumerate(self.present[4:], 4):
            (size,) = inputs[n].shape
            lengths.append(size * last.item_sizes[k])
            if n in _OUTPUTS:
                if size < batch + (n == _INDPTR):
                    return False
            elif n in (_TOKEN_MAP, _PAGE_MAP):
                sizes.append(size)
            elif size != (batch if n < _OFFSET else 1):
                return False
        return fits_int32(*sizes[len(_SIZES) - 1 :])

    def _lookup(self, tensors: Sequence[Tensor]) -> _LastCall:
        """Looks the entry up by the tensors' Python attributes, after the guard has refused them."""
        entry = self._entries.get(_key(tensors))
        if entry is None or any(x.size(-1) > 1 and x.stride(-1) != 1 for x in tensors):
            return _NO_CALL
        return self._remember(tensors, entry)

    def run(self, build: Build, inputs: tuple[Any, ...]) -> None:
        """Launches a checked build, and adds its compiled launch to the cache."""
        if is_dynamo_compiling():
            torch_library.run(build)
            return
        compiled = launch.run(build)
        if compiled is None or self is UNCACHED:
            return
        tensors = [inputs[n] for n in self.present]
        entry = self._entries.add(_key(tensors), build, compiled, self._names, self._sizes)
        if entry is not None:
            self._remember(tensors, entry)

    def _remember(self, tensors: Sequence[Tensor], entry: CacheEntry) -> _LastCall:
        item_sizes = [x.element_size() for x in tensors]
        self._last_call = last = _LastCall(make_guard(tensors), entry, item_sizes, refuse, None)
        return last


def _key(tensors: Sequence[Tensor]) -> Any:
    """The key in the launch cache: what selects the kernel and the device, and ranks and types."""
    return tuple([(x.dtype, x.dim(), x.get_device(), type(x)) for x in tensors])


UNCACHED = Signature([False] * len(POINTERS), TABLE, 1, 1, False)


def lookup(inputs: tuple[Any, ...], required_only: bool, form: int, *options: Any) -> Signature:
    """Returns the signature of a call: its options, and which arguments are present.

    Args:
        inputs: a tensor or None for each of `POINTERS`.
        required_only: whether only the form's required tensors are present.
        form: TABLE, CSR or SLOTS.
        *options: page size, source page size and pad_value, then every other option of the launch.

    Returns:
        The signature; `UNCACHED` if the call allocates or is traced, or an option is of a wrong type.
    """
    if inputs[_OUT] is None or is_dynamo_compiling():
        return UNCACHED
    try:
        return _signature(required_only or tuple([x is not None for x in inputs]), form, *options)
    except TypeError:
        return UNCACHED  # an option that cannot be hashed: the full checks name it


@functools.lru_cache(maxsize=_MAX_SIGNATURES, typed=True)
def _signature(present: Any, form: int, page_size: int, unit: int, pad_value: Any, *_: Any) -> Signature:
    if present is True:
        present = [n < (_INDPTR if form == TABLE else _OPTIONAL) for n in range(len(POINTERS))]
    return Signature(present, form, page_size, unit, pad_value is not None)


def forget() -> None:
    """Removes every signature, so that the next call of each is checked and compiled again."""
    _signature.cache_clear()
