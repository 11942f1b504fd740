"""An engine's own kernel, launched again for what the driver costs.

Triton's `JITFunction` looks at every argument of every launch. Where a launch differs from an earlier one in
its pointers alone, and those are aligned alike, it would find the same compiled kernel: that is launched at
once. Nothing is compiled here but what the engine's own launch compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...launch.triton_launcher import Call, launch_hooks_active, record

_MOST = 4096  # launches that are remembered: a key and a list each
_ALIGNED = 16  # bytes; what Triton specialises a pointer on


class RecordedLaunches:
    """The launches of one kernel, each of one program."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, Call | None]] = {}

    def __call__(
        self, kernel: Any, own: Callable[[], Any], tensors: tuple[Tensor | None, ...], values: tuple[Any, ...]
    ) -> None:
        """Launches on the current stream.

        Args:
            kernel: the kernel.
            own: the engine's own launch of it with these arguments; what it returns is the compiled kernel.
            tensors: its pointers; the first two are its first arguments, the others its last.
            values: its arguments in between, constexprs among them.
        """
        key = self._key(kernel, tensors, values)
        if key is None:
            own()
            return
        if key not in self._known:
            compiled = own()
            if len(self._known) >= _MOST:
                self._known.clear()
            # the kernel is kept, so that its id stays its own
            self._known[key] = kernel, record(compiled, len(tensors) + len(values))
            return
        found = self._call(key, tensors, values)
        if found is None:
            own()
            return
        launch_recorded(found)

    def call(self, kernel: Any, tensors: tuple[Tensor | None, ...], values: tuple[Any, ...]) -> Any:
        """Returns a known call, for `launch_recorded`; None: it is not known."""
        return self._call(self._key(kernel, tensors, values), tensors, values)

    def _call(self, key: Any, tensors: tuple[Tensor | None, ...], values: tuple[Any, ...]) -> Any:
        _, call = self._known.get(key, (None, None))
        if call is None:
            return None
        pointers = [None if x is None else x.data_ptr() for x in tensors]
        return call, call.make_call((1, 1, 1), (*pointers[:2], *values, *pointers[2:])), key[1]

    def _key(self, kernel: Any, tensors: tuple[Tensor | None, ...], values: tuple[Any, ...]) -> Any:
        """What decides which compiled kernel Triton would launch; None: Triton has to be asked."""
        if launch_hooks_active() or getattr(kernel, "pre_run_hooks", True):
            return None
        device = next(x.get_device() for x in tensors if x is not None)
        if device < 0 or torch._C._cuda_getDevice() != device:
            return None
        kinds = [x if x is None else (x.dtype, x.data_ptr() % _ALIGNED == 0) for x in tensors]
        return (id(kernel), device, values, *kinds)

    def clear(self) -> None:
        """Forgets every launch."""
        self._known.clear()


def launch_recorded(found: tuple[Call, list[Any], int]) -> None:
    """Launches what `RecordedLaunches.call` returned, on the current stream of its device."""
    call, arguments, device = found
    call.launch(arguments, device)
