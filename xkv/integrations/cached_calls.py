"""One replaced kernel's calls through the launch cache: only a signature's first call makes a `Build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..launch import compile, launch
from ..launch.cache import CacheEntry, LaunchCache
from ..launch.guards import addresses, have_memory, make_guard, refuse
from ..launch.triton_launcher import launch_hooks_active
from ..params import MAX_BATCH, Build
from .repeats import Repeats

_INTS = (torch.int32, torch.int64)
_MOST_RECENT = 64

# the names of `LaunchSizes` that every call has
SIZES: tuple[str, ...] = ("src_stride", "src_rows", "src_tokens", "batch", "delta", "out_stride", "capacity")


class LaunchSizes(NamedTuple):
    """What of a call's sizes and numbers goes into a launch.

    Attributes:
        fixed: what a compiled launch holds for good: page sizes, which outputs there are.
        names: the kernel's names of ``values``.
        values: integers of this call.
        row_items: upper bound of the entries in one row.
    """

    fixed: tuple[Any, ...]
    names: tuple[str, ...]
    values: tuple[int, ...]
    row_items: int


class CachedCalls:
    """Launches the calls of one kernel.

    Args:
        names: of xkv's kernel's pointers that the call's tensors are, in their order.
        sizes: from the tensors and the integers of a call to its `LaunchSizes`; checks its shapes, in every
            call that is not a repeated one; None where the call is left to the original.
        build: from the same to the `Build` of a call that ``sizes`` accepted; checks what a signature has,
            once for each: None where that is left to the original.
    """

    def __init__(
        self, names: str, sizes: Callable[..., LaunchSizes | None], build: Callable[..., Build | None]
    ) -> None:
        self._names, self._sizes, self._build = tuple(names.split()), sizes, build
        self._entries = LaunchCache()
        # of the last call with the same fixed numbers: a guard of its tensors, and their entry
        self._recent: dict[Any, tuple[Callable[..., bool], CacheEntry]] = {}
        self._repeats = Repeats()

    def __call__(self, inputs: tuple[Any, ...], batch: int, *options: int | bool | None) -> bool:
        """Launches, unless this call is the original's: then returns False.

        Args:
            inputs: a tensor or None for each of the names.
            batch: requests.
            *options: all else that the build depends on.
        """
        if batch == 0:  # as a grid of no programs
            return True
        try:
            tensors = [x for x in inputs if x is not None]
            pointers = addresses(tensors)
            key = (batch, options, *[x is None for x in inputs], *pointers)
            if self._repeats.launch(key, tensors):
                return True
            sizes = self._sizes(*inputs, batch, *options) if 0 < batch <= MAX_BATCH else None
            if sizes is None:
                return False
            if self._launch(sizes, inputs, tensors, pointers, batch, key):
                return True
        except (AttributeError, RuntimeError):
            return False  # no tensors, or such as have no strides
        build = self._build(*inputs, batch, *options) if _are_ints(tensors) else None
        if build is None:
            return False
        compiled = launch.run(build)
        names = [name for name, x in zip(self._names, inputs, strict=True) if x is not None]
        self._entries.add(_signature(sizes, inputs), build, compiled, names, sizes.names)
        return True

    def _launch(
        self, sizes: LaunchSizes, inputs: tuple[Any, ...], tensors: Sequence[Tensor], pointers: list[int],
        batch: int, key: Any,
    ) -> bool:  # fmt: skip
        """Launches a call like an earlier one; False where there was none."""
        found = None if launch_hooks_active() else self._call(sizes, inputs, tensors, pointers, batch)
        if found is None:
            return False
        call, compiled = found
        compiled.launch(call)
        self._repeats.add(key, tensors, call, compiled)
        return True

    def _call(
        self, sizes: LaunchSizes, inputs: tuple[Any, ...], tensors: Sequence[Tensor], pointers: list[int],
        batch: int,
    ) -> tuple[list[Any], launch.CompiledLaunch] | None:  # fmt: skip
        present = sizes.fixed, sizes.names, len(tensors)
        guard, entry = self._recent.get(present, (refuse, None))
        if not guard(*tensors):
            entry = self._entries.get(_signature(sizes, inputs))
            if entry is None:
                return None
            if len(self._recent) >= _MOST_RECENT:
                self._recent.clear()
            self._recent[present] = make_guard(tensors), entry
        if entry is None or not have_memory(pointers, tensors):
            return None
        return entry.call(pointers, sizes.values, batch, sizes.row_items)

    def call(self, inputs: tuple[Any, ...], batch: int, *options: Any) -> Any:
        """Returns a known call and what launches it, to be launched again as it is; None: it is not known."""
        sizes = self._sizes(*inputs, batch, *options) if 0 < batch <= MAX_BATCH else None
        if sizes is None:
            return None
        tensors = [x for x in inputs if x is not None]
        return self._call(sizes, inputs, tensors, addresses(tensors), batch)

    def warm(self, inputs: tuple[Any, ...], batch: int, *options: int | bool | None) -> int:
        """Compiles and loads all that calls like this can need, without making it.

        Returns:
            How many kernels were not there before.
        """
        tensors = [x for x in inputs if x is not None]
        if self._sizes(*inputs, batch, *options) is None or not _are_ints(tensors):
            return 0
        build = self._build(*inputs, batch, *options)
        return 0 if build is None else compile.warm(build, None)

    def clear(self) -> None:
        """Forgets every call."""
        self._entries.clear()
        self._recent.clear()
        self._repeats.clear()


def _signature(sizes: LaunchSizes, inputs: tuple[Any, ...]) -> Any:
    tensors = [x if x is None else (x.dtype, x.dim(), x.get_device()) for x in inputs]
    return (sizes.fixed, sizes.names, *tensors)


def _are_ints(tensors: Sequence[Tensor]) -> bool:
    """Whether all are int32 or int64 tensors of one device that xkv serves."""
    device = tensors[0].device
    same = all(x.dtype in _INTS and x.device == device for x in tensors)
    return same and device.type in ("cpu", "cuda")
