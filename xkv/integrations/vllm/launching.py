"""Launches of the kernels beside this file: compiled once, then launched for what the driver costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...launch import compile
from ...launch.triton_launcher import LOADING, Call, launch_hooks_active, record


class Launcher:
    """One kernel. Its integers are not specialised, so that dtypes alone decide what is compiled.

    Args:
        name: the kernel's, in `xkv.integrations.vllm.kernels`.
        options: what Triton is told beside its arguments.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self._name = name
        self._options = options
        self._kernel: Any = None
        self._calls: dict[tuple[Any, ...], Call] = {}  # by what is compiled

    def __call__(
        self,
        device: int,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor | None, ...],
        numbers: tuple[int, ...],
        constexprs: tuple[Any, ...],
    ) -> None:
        """Launches on the current stream of a device; no sync, no allocation, safe in a graph once compiled.

        Args:
            device: its number, where the tensors are; negative in Triton's interpreter.
            grid: programs.
            tensors: the kernel's first arguments; None for what this launch does not read.
            numbers: those that follow.
            constexprs: its last ones.
        """
        signature = (device, constexprs, *[None if x is None else x.dtype for x in tensors])
        call = None if launch_hooks_active() else self._calls.get(signature)
        if call is None:
            with LOADING:
                self._front_door(device, grid, (*tensors, *numbers, *constexprs))
                self._record(signature, device, (*tensors, *numbers, *constexprs))
            return
        if torch._C._cuda_getDevice() != device:
            with torch.cuda.device(device):
                self(device, grid, tensors, numbers, constexprs)
            return
        pointers = [None if x is None else x.data_ptr() for x in tensors]
        call.launch(call.make_call(grid, [*pointers, *numbers, *constexprs]), device)

    def warmup(self, dtypes: tuple[Any, ...], numbers: tuple[int, ...], constexprs: tuple[Any, ...]) -> None:
        """Compiles for arguments like these, dtypes in place of tensors, on the current device."""
        self._jit().warmup(*dtypes, *numbers, *constexprs, grid=(1,), **self._options)

    def prepare(
        self, device: int, dtypes: tuple[Any, ...], numbers: int, constexprs: tuple[Any, ...]
    ) -> None:
        """Compiles, loads and records for so many numbers: the first launch is as cheap as the next.

        Args:
            device: where it will be launched.
            dtypes: of its tensors; None for what it will not read.
            numbers: how many follow.
            constexprs: its last arguments.
        """
        args = (*dtypes, *[1] * numbers, *constexprs)
        with LOADING:
            self._record((device, constexprs, *dtypes), device, args)

    def _jit(self) -> Any:
        if self._kernel is None:
            from . import kernels

            self._kernel = getattr(kernels, self._name)
        return self._kernel

    def _front_door(self, device: int, grid: tuple[int, int, int], args: tuple[Any, ...]) -> None:
        if device < 0:
            self._jit()[grid](*args, **self._options)
            return
        with torch.cuda.device(device):
            self._jit()[grid](*args, **self._options)

    def _record(self, signature: Any, device: int, args: tuple[Any, ...]) -> None:
        """Keeps how what was launched just now is launched cheaply, where that is known."""
        if device < 0:
            return
        with torch.cuda.device(device):
            kernel = self._jit().warmup(*args, grid=(1,), **self._options)  # compiled already
        call = record(kernel, len(args))
        if call is not None:
            self._calls[signature] = call


def served(x: Tensor) -> int | None:
    """The device of a call's tensors, by one of them; -1 in the interpreter; None: not one of ours."""
    device: int = x.get_device()
    return device if device >= 0 or compile.interpreted() else None


PROGRAMS = 1024  # fill a GPU, also where most of them have nothing to do
_READS = 64


def parts(rows: int, groups: int, most: int, programs: int = PROGRAMS) -> int:
    """Programs that share a row: about ``programs`` for all rows, and not more than ``most`` for one."""
    return min(programs // (rows * groups or 1), most) or 1


def few_parts(rows: int, groups: int, most: int) -> int:
    """The same, where each program reads over PCIe: not more reads than a wave of programs, or than rows."""
    return parts(rows, groups, most, _READS)
