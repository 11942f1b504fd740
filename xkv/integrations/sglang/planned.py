"""One replaced kernel's launches through the launch cache: only a signature's first call makes a `Build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...launch import compile, launch
from ...launch.cache import CacheEntry, Entries
from ...launch.guards import addresses, make_guard, refuse
from ...launch.triton_launcher import launch_hooks_active
from ...params import INT32_MAX, MAX_BATCH, ROW_MAX, Build
from ..repeats import Repeats

_INTS = (torch.int32, torch.int64)


class Sizes(NamedTuple):
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


class Planned:
    """Launches the calls of one kernel.

    Args:
        names: of xkv's kernel's pointers that the call's tensors are, in their order.
        make: from the tensors and the integers of a call to its `Build`; None where xkv cannot say it.
        sizes: from the same to its `Sizes`; None where the call must be looked at by ``make``.
    """

    def __init__(
        self, names: str, make: Callable[..., Build | None], sizes: Callable[..., Sizes | None]
    ) -> None:
        self._names, self._make, self._sizes = tuple(names.split()), make, sizes
        self._entries = Entries()
        # of the last call with the same fixed numbers: a guard of its tensors, and their entry
        self._recent: dict[Any, tuple[Callable[..., bool], CacheEntry]] = {}
        self._repeats = Repeats()

    def __call__(self, given: tuple[Any, ...], batch: int, *options: int | bool | None) -> bool:
        """Launches, unless this call is the original's: then returns False.

        Args:
            given: a tensor or None for each of the names.
            batch: requests.
            *options: all else that the build depends on.
        """
        if batch == 0:  # as a grid of no programs
            return True
        try:
            tensors = [x for x in given if x is not None]
            pointers = addresses(tensors)
            key = (batch, options, *[x is None for x in given], *pointers)
            if self._repeats.launch(key, tensors):
                return True
            sizes = self._sizes(*given, batch, *options) if 0 < batch <= MAX_BATCH else None
            if sizes is not None and self._launch(sizes, given, tensors, pointers, batch, key):
                return True
        except (AttributeError, RuntimeError):
            return False  # no tensors, or such as have no strides
        build = self._make(*given, batch, *options) if _fit(given, batch) else None
        if build is None or not _in_range(build):
            return False
        compiled = launch.run(build)
        if sizes is not None:
            signature = _signature(sizes, given)
            names = [name for name, x in zip(self._names, given, strict=True) if x is not None]
            self._entries.made(signature, build, compiled, names, sizes.names)
        return True

    def _launch(
        self, sizes: Sizes, given: tuple[Any, ...], tensors: Sequence[Tensor], pointers: list[int],
        batch: int, key: Any,
    ) -> bool:  # fmt: skip
        """Launches a call like an earlier one; False where there was none."""
        found = None if launch_hooks_active() else self._call(sizes, given, tensors, pointers, batch)
        if found is None:
            return False
        call, compiled = found
        compiled.launch(call)
        self._repeats.add(key, tensors, call, compiled)
        return True

    def _call(
        self, sizes: Sizes, given: tuple[Any, ...], tensors: Sequence[Tensor], pointers: list[int], batch: int
    ) -> tuple[list[Any], launch.CompiledLaunch] | None:
        present = sizes.fixed, sizes.names, len(tensors)
        guard, entry = self._recent.get(present, (refuse, None))
        if not guard(*tensors):
            entry = self._entries.get(_signature(sizes, given))
            if entry is None:
                return None
            if len(self._recent) >= MOST_RECENT:
                self._recent.clear()
            self._recent[present] = make_guard(tensors), entry
        if entry is None or 0 in pointers:
            return None
        return entry.call(pointers, sizes.values, batch, sizes.row_items)

    def call(self, given: tuple[Any, ...], batch: int, *options: Any) -> Any:
        """Returns a known call and what launches it, to be launched again as it is; None: it is not known."""
        sizes = self._sizes(*given, batch, *options) if 0 < batch <= MAX_BATCH else None
        if sizes is None:
            return None
        tensors = [x for x in given if x is not None]
        return self._call(sizes, given, tensors, addresses(tensors), batch)

    def warm(self, given: tuple[Any, ...], batch: int, *options: int | bool | None) -> int:
        """Compiles and loads all that calls like this can need, without making it.

        Returns:
            How many kernels were not there before.
        """
        build = self._make(*given, batch, *options) if _fit(given, batch) else None
        return 0 if build is None else compile.warm(build, None)

    def clear(self) -> None:
        """Forgets every call."""
        self._entries.clear()
        self._recent.clear()
        self._repeats.clear()


MOST_RECENT = 64


def _signature(sizes: Sizes, given: tuple[Any, ...]) -> Any:
    kinds = [x if x is None else (x.dtype, x.dim(), x.get_device()) for x in given]
    return (sizes.fixed, sizes.names, *kinds)


def _fit(given: tuple[Any, ...], batch: int) -> bool:
    tensors = [x for x in given if x is not None]
    same = all(x.dtype in _INTS and x.device == tensors[0].device for x in tensors)
    return same and tensors[0].device.type in ("cpu", "cuda") and 0 < batch <= MAX_BATCH


def _in_range(build: Build) -> bool:
    rows, width = build.req_to_token.shape
    return 0 < rows <= INT32_MAX and width * build.source_page_size <= ROW_MAX and build.page_size >= 1


def source_sizes(x: Tensor, stride: int, unit: int) -> tuple[int, int] | None:
    """Rows of a `source`, ``stride`` apart, and the tokens of one; None where there is none."""
    if x.stride() == (stride, 1):
        rows, width = x.shape
    elif x.is_contiguous() and 0 < stride <= x.numel():
        rows, width = x.numel() // stride, stride
    else:
        return None
    tokens = width * unit
    return (rows, tokens) if 0 < rows <= INT32_MAX and tokens <= ROW_MAX else None


def table_width(x: Tensor, batch: int, stride: int) -> int | None:
    """Entries of a row of a `table`, ``stride`` apart; None where x does not say that there are so many rows.

    Of x's own sizes alone, not of its storage's: a guard of x's sizes then holds for it.
    """
    if x.stride() == (stride, 1):
        rows, width = x.shape
        return width if rows >= batch and width <= stride else None
    return stride if 0 <= batch * stride <= x.numel() and x.is_contiguous() else None


def long_enough(batch: int, *vectors: Tensor | None) -> bool:
    """Whether each has an entry a request, side by side."""
    for x in vectors:
        if x is not None:
            shape = x.shape
            if len(shape) != 1 or shape[0] < batch or not x.is_contiguous():
                return False
    return True


def vector(x: Tensor, size: int) -> Tensor:
    """The elements from x's first on, as a kernel sees them that knows no strides."""
    return x.as_strided((size,), (1,))


def vector_or_none(x: Tensor | None, size: int) -> Tensor | None:
    """The same of what need not be there."""
    return None if x is None else vector(x, size)


def source(x: Tensor, stride: int) -> Tensor | None:
    """Rows ``stride`` apart; None where x does not say how many there are."""
    if x.dim() == 2 and x.stride() == (stride, 1):
        return x
    if not x.is_contiguous() or not 0 < stride <= x.numel():
        return None
    return x.as_strided((x.numel() // stride, stride), (stride, 1))


def table(x: Tensor, batch: int, stride: int) -> Tensor | None:
    """The first rows, ``stride`` apart and as wide as x's; None where x has not so many."""
    width = table_width(x, batch, stride)
    return None if width is None else x.as_strided((batch, width), (stride, 1))
