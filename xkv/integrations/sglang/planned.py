"""One replaced kernel's launches: a `Build` for each kind of call, then the pointers of each call alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xkv import launch
from xkv.build import INT32_MAX, MAX_BATCH, ROW_MAX, Build
from xkv.plans import Plan

_MOST = 4096  # kinds of call; an engine has a few batch sizes of a few calls
_INTS = (torch.int32, torch.int64)


class Planned:
    """Launches the calls of one kernel.

    Args:
        names: of xkv's kernel's pointers that the call's tensors are, in their order.
        outs: how many of them, the last ones, are written.
        make: from the tensors and the integers of a call to its `Build`; None where xkv cannot say it.
    """

    def __init__(self, names: str, outs: int, make: Callable[..., Build | None]) -> None:
        self._names, self._outs, self._make = tuple(names.split()), outs, make
        self._plans: dict[tuple[Any, ...], Plan | None] = {}

    def __call__(self, given: tuple[Any, ...], batch: int, *options: int | bool | None) -> bool:
        """Launches, unless this kind of call is the original's: then returns False.

        Args:
            given: a tensor or None for each of the names.
            batch: requests.
            *options: all else that the build depends on.
        """
        if batch == 0:  # as a grid of no programs
            return True
        try:
            # plans.kind, written out, since each call would cost a tenth of a microsecond
            kinds = [x if x is None else (x.dtype, x.shape, x.stride(), x.get_device()) for x in given]
            key = (batch, options, *kinds)
        except (AttributeError, RuntimeError):
            return False  # no tensors, or such as have no strides
        plan = self._plans.get(key, _NEW)
        if plan is None:
            return False
        if plan is not _NEW and plan.run(given, None):
            return True
        build = self._make(*given, batch, *options) if _fit(given, batch) else None
        if len(self._plans) >= _MOST:
            self._plans.clear()
        if build is None or not _in_range(build):
            self._plans[key] = None
            return False
        prepared = launch.run(build)
        if prepared is not None and prepared.cheap:
            self._plans[key] = Plan(prepared, build, given, self._names, self._outs)
        return True


_NEW: Any = object()


def _fit(given: tuple[Any, ...], batch: int) -> bool:
    tensors = [x for x in given if x is not None]
    same = all(x.dtype in _INTS and x.device == tensors[0].device for x in tensors)
    return same and tensors[0].device.type in ("cpu", "cuda") and 0 < batch <= MAX_BATCH


def _in_range(build: Build) -> bool:
    rows, width = build.req_to_token.shape
    return 0 < rows <= INT32_MAX and width * build.source_page_size <= ROW_MAX and build.page_size >= 1


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
    """The first rows, ``stride`` apart and as wide as x's; None where memory ends before them."""
    width = x.shape[1] if x.dim() == 2 and x.stride() == (stride, 1) else stride
    room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if width > stride or (batch - 1) * stride + width > room:
        return None
    return x.as_strided((batch, width), (stride, 1))
