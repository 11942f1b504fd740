"""Launches that come again just as they were: the same numbers, addresses and sizes.

Engines keep the buffers of a step for life, so that a decode step's calls are the same ones each time. Such
a call is launched as it was, after one look at its tensors: with cold caches, as between two steps of an
engine, measuring its sizes again would cost more than the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..launch.guards import make_guard
from ..launch.launch import KernelLaunch
from ..launch.triton_launcher import launch_hooks_active

_MOST = 1024  # calls that one place remembers


class _Repeat(NamedTuple):
    """A call that came twice: a guard of its tensors' dtypes, sizes, strides and device, and its launch."""

    guard: Callable[..., bool]
    call: list[Any]
    compiled: KernelLaunch


class Repeats:
    """The calls of one kernel that came before. It keeps no tensor alive."""

    def __init__(self) -> None:
        self._once: set[Any] = set()
        self._repeats: dict[Any, _Repeat] = {}

    def launch(self, key: Any, tensors: Sequence[Tensor]) -> bool:
        """Launches a call that came before; False where it did not.

        Args:
            key: the tensors' addresses, which of the arguments they are, and all numbers of the call.
            tensors: none of them nested, as a guard ends the process on a tensor without sizes.
        """
        repeat = self._repeats.get(key)
        if repeat is None or not repeat.guard(*tensors) or launch_hooks_active():
            return False
        # a copy, as another thread may be about to launch it on another stream
        repeat.compiled.launch(repeat.call.copy())
        return True

    def add(self, key: Any, tensors: Sequence[Tensor], call: list[Any], compiled: KernelLaunch) -> None:
        """Remembers a call that was launched just now; only what comes again is worth a guard of its own."""
        kept: Any = self._repeats if key in self._once else self._once
        if len(kept) >= _MOST:
            kept.clear()
        if kept is self._once:
            self._once.add(key)
        else:
            self._repeats[key] = _Repeat(make_guard(tensors, sizes=True), call, compiled)

    def clear(self) -> None:
        """Forgets every call."""
        self._once.clear()
        self._repeats.clear()
