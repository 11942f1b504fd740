"""Launches of the kernels beside this file: compiled once, then launched for what the driver costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xkv import launch
from xkv.build import INT32_MAX
from xkv.launcher import Call, record, watched

_MOST = 4096  # grids remembered: an engine has a few batch sizes


class Launcher:
    """One kernel. Its integers are not specialised, so that dtypes alone decide what is compiled.

    Args:
        name: the kernel's, in `xkv.integrations.vllm.kernels`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kernel: Any = None
        self._calls: dict[tuple[Any, ...], Call] = {}  # by what is compiled
        self._ready: dict[tuple[Any, ...], tuple[Any, list[Any], int, bool]] = {}  # and by the grid

    def __call__(
        self, device: int, grid: tuple[int, int, int], constexprs: tuple[Any, ...], *args: Any
    ) -> None:
        """Launches on the current stream of a device; no sync, no allocation, safe in a graph once compiled.

        Args:
            device: its number; negative in Triton's interpreter.
            grid: programs.
            constexprs: the kernel's last arguments.
            *args: tensors and integers; None for a tensor that this launch does not read.
        """
        kind = (device, constexprs, *[x.dtype if isinstance(x, Tensor) else None for x in args])
        ready = None if watched() else self._ready.get((grid, kind))
        if ready is None:
            call = None if watched() else self._calls.get(kind)
            if call is None:
                self._front_door(device, grid, constexprs, args)
                self._record(kind, device, constexprs, args)
                return
            if len(self._ready) >= _MOST:
                self._ready.clear()
            ready = self._ready[grid, kind] = call.raw, *call.before(grid), call.nested
        if torch._C._cuda_getDevice() != device:
            with torch.cuda.device(device):
                self(device, grid, constexprs, *args)
            return
        raw, before, stream_at, nested = ready
        given = [*[x.data_ptr() if isinstance(x, Tensor) else x for x in args], *constexprs]
        call_args = [*before, given] if nested else [*before, *given]
        call_args[stream_at] = torch._C._cuda_getCurrentRawStream(device)
        raw(*call_args)

    def warmup(self, constexprs: tuple[Any, ...], *args: Any) -> None:
        """Compiles for arguments like these, dtypes in place of tensors, on the current device."""
        self._jit().warmup(*args, *constexprs, grid=(1,))

    def _jit(self) -> Any:
        if self._kernel is None:
            from xkv.integrations.vllm import kernels

            self._kernel = getattr(kernels, self._name)
        return self._kernel

    def _front_door(self, device: int, grid: tuple[int, int, int], constexprs: Any, args: Any) -> None:
        if device < 0:
            self._jit()[grid](*args, *constexprs)
            return
        with torch.cuda.device(device):
            self._jit()[grid](*args, *constexprs)

    def _record(self, kind: Any, device: int, constexprs: Any, args: Any) -> None:
        """Keeps how what was launched just now is launched cheaply, where that is known."""
        if device < 0:
            return
        with torch.cuda.device(device):
            kernel = self._jit().warmup(*args, *constexprs, grid=(1,))  # compiled already
        call = record(kernel, len(args) + len(constexprs))
        if call is not None:
            self._calls[kind] = call


def served(*tensors: Any) -> int | None:
    """The device of tensors that our kernels can be launched on: -1 in the interpreter; None: not there."""
    first = tensors[0]
    if not all(isinstance(x, Tensor) for x in tensors):
        return None
    device = int(first.get_device())
    if any(x.get_device() != device for x in tensors):
        return None
    return device if device >= 0 or launch.interpreted() else None


def parts(rows: int, groups: int, most: int) -> int:
    """Programs that share a row: so many that a few rows fill a GPU, and not more than ``most``."""
    return max(min(_PROGRAMS // max(rows * groups, 1), most, INT32_MAX), 1)


_PROGRAMS = 1024
