"""The ops' launch cache: calls of one signature differ in sizes and data alone.

Engines repeat calls of the same sizes, mostly with new tensors. Such a call is told by one guard; its sizes
are not looked at again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import torch_library
from ..params import ROW_MAX, TABLE, Build
from ..shard import Shard
from . import launch
from .cache import CacheEntry, LaunchCache
from .guards import addresses, have_memory, make_guard
from .op_sizes import OUT, POINTERS, REQUIRED, SRC_TOKENS, OpSizes
from .same_sizes import SameSizes
from .triton_launcher import launch_hooks_active

_MAX_SIGNATURES = 1024  # an engine has a few
_MAX_SAME_SIZES = 1024  # that a signature keeps: an engine has a few batch sizes


class _LastEntry(NamedTuple):
    """The launch cache's entry of a signature's last call.

    Attributes:
        guard: guard of that call's tensors, whatever their sizes.
        entry: the entry.
        item_sizes: bytes per element of each tensor.
    """

    guard: Callable[..., bool]
    entry: CacheEntry
    item_sizes: list[int]


class Signature:
    """Calls of one op with the same options and the same arguments present (not None).

    Args:
        present: whether each of `POINTERS` is.
        form: TABLE, CSR or SLOTS.
        page_size, source_page_size: tokens per output page and per source entry.
        has_pad_value: whether ``pad_value`` is not None.
        shard: the option of that name.
    """

    __slots__ = (
        "_by_numel", "_entries", "_form", "_last", "_last_entry", "_num_leading",
        "_op_sizes", "_present",
    )  # fmt: skip

    def __init__(
        self, present: Sequence[bool], form: int, page_size: int, source_page_size: int, has_pad_value: bool,
        shard: Shard | None,
    ) -> None:  # fmt: skip
        self._form = form
        self._present = [n for n, is_present in enumerate(present) if is_present]
        # if the first few are present and no others: how many; otherwise 0
        count = len(self._present)
        self._num_leading = count if self._present == [*range(count)] else 0
        self._op_sizes = OpSizes(self._present, form, page_size, source_page_size, has_pad_value, shard)
        self._entries = LaunchCache()
        self._last_entry: _LastEntry | None = None
        self._last: SameSizes | None = None
        self._by_numel: dict[tuple[int, ...], SameSizes] = {}

    def launch(self, inputs: tuple[Any, ...], delta: int, bound: int | None) -> bool:
        """Launches a call whose signature is cached; returns False if it is not, or needs the full checks.

        Args:
            inputs: as in `lookup`.
            delta: tokens added to every length.
            bound: tokens of the longest row (tables) or of all rows together. None: no bound.
        """
        tensors = inputs[: self._num_leading] if self._num_leading else [inputs[n] for n in self._present]
        same = self._last  # read once: other threads may replace it
        try:
            pointers = addresses(tensors)
            if same is None or not same.guard(*tensors):
                same = self._find(tensors)
            if same is None or launch_hooks_active():
                return False
        except (AttributeError, RuntimeError, TypeError):
            return False  # not a tensor, or one without memory: the full checks name it
        if type(delta) is not int or not -ROW_MAX <= delta <= ROW_MAX or not have_memory(pointers, tensors):
            return False
        sizes, _, _, max_bound = same.measured
        src_tokens = sizes[SRC_TOKENS]
        if bound is not None:
            if type(bound) is not int or not 0 <= bound <= max_bound:
                return False
            if self._form == TABLE:
                src_tokens = min(src_tokens, bound)
        return same.launch(pointers, delta, src_tokens)

    def _find(self, tensors: Sequence[Tensor]) -> SameSizes | None:
        """Returns what is known of calls of these sizes, after the last call's guard has refused them.

        None if the call has no entry, or its sizes are inconsistent.
        """
        numel = tuple([x.numel() for x in tensors])
        known = self._by_numel.get(numel)
        if known is None or not known.guard(*tensors):
            last = self._last_entry
            if last is None or not last.guard(*tensors):
                last = self._lookup(tensors)
            measured = None if last is None else self._op_sizes.measure(tensors, last.item_sizes)
            if last is None or measured is None:
                return None
            if known is not None and known.entry is last.entry and known.measured == measured:
                known.guard = make_guard(tensors, sizes=True)  # the second time: likely to come again
            else:
                known = SameSizes(last.entry, measured, self._op_sizes.outputs)
                if len(self._by_numel) >= _MAX_SAME_SIZES:
                    self._by_numel.clear()
                self._by_numel[numel] = known
        self._last = known
        return known

    def _lookup(self, tensors: Sequence[Tensor]) -> _LastEntry | None:
        """Looks the entry up by the tensors' Python attributes, after the guard has refused them."""
        entry = self._entries.get(_key(tensors))
        if entry is None or any(x.size(-1) > 1 and x.stride(-1) != 1 for x in tensors):
            return None
        return self._remember(tensors, entry)

    def run(self, build: Build, inputs: tuple[Any, ...]) -> None:
        """Launches a checked build, and adds its compiled launch to the cache."""
        if is_dynamo_compiling():
            torch_library.run(build)
            return
        compiled = launch.run(build)
        if compiled is None or self is UNCACHED:
            return
        tensors = [inputs[n] for n in self._present]
        names = [POINTERS[n] for n in self._present]
        entry = self._entries.add(_key(tensors), build, compiled, names, ("delta", *self._op_sizes.names))
        if entry is not None:
            self._remember(tensors, entry)

    def _remember(self, tensors: Sequence[Tensor], entry: CacheEntry) -> _LastEntry:
        item_sizes = [x.element_size() for x in tensors]
        self._last_entry = last = _LastEntry(make_guard(tensors), entry, item_sizes)
        return last


def _key(tensors: Sequence[Tensor]) -> Any:
    """The key in the launch cache: what selects the kernel and the device, and ranks and types."""
    return tuple([(x.dtype, x.dim(), x.get_device(), type(x)) for x in tensors])


UNCACHED = Signature([False] * len(POINTERS), TABLE, 1, 1, False, None)


def lookup(inputs: tuple[Any, ...], required_only: bool, form: int, *options: Any) -> Signature:
    """Returns the signature of a call: its options, and which arguments are present.

    Args:
        inputs: a tensor or None for each of `POINTERS`; if ``required_only``, for the first of them.
        required_only: whether only the form's required tensors are present.
        form: TABLE, CSR or SLOTS.
        *options: page size, source page size, pad_value and shard, then every other option of the launch.

    Returns:
        The signature; `UNCACHED` if the call allocates or is traced, or an option is of a wrong type.
    """
    if inputs[OUT] is None or is_dynamo_compiling():
        return UNCACHED
    try:
        return _signature(required_only or tuple([x is not None for x in inputs]), form, *options)
    except TypeError:
        return UNCACHED  # an option that cannot be hashed: the full checks name it


@functools.lru_cache(maxsize=_MAX_SIGNATURES, typed=True)
def _signature(
    present: Any, form: int, page_size: int, unit: int, pad_value: Any, shard: Any, *_: Any
) -> Signature:
    if present is True:
        present = [n in REQUIRED[form] for n in range(len(POINTERS))]
    return Signature(present, form, page_size, unit, pad_value is not None, shard)


def forget() -> None:
    """Removes every signature, so that the next call of each is checked and compiled again."""
    _signature.cache_clear()
