"""Compiles what a launch would compile, for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import jit

from ...chosen import ChosenTokens
from ...kernel.entry import xkv_build
from ...launch import chosen, launch
from ...params import Build
from ...platforms.detect import Platform
from ...platforms.tuning import ChosenTuning, Tuning


class _Driver:
    """What Triton asks of a driver until a kernel is compiled."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _LaunchedError(Exception):
    """Ends a launch once its kernel is there: there is no GPU to load it."""


@contextmanager
def plugged(kernel: Any, where: Platform) -> Iterator[None]:
    """Triton as on a machine with that GPU, forgotten again afterwards, for one kernel."""
    arch: Any = int(where.arch.removeprefix("sm")) if where.vendor == "cuda" else where.arch
    before = jit.driver
    jit.driver = SimpleNamespace(active=_Driver(GPUTarget(where.vendor, arch, where.warp_size)))
    kernel.device_caches.clear()
    try:
        yield
    finally:
        jit.driver = before
        kernel.device_caches.clear()


def intercepted(build: Build, row: Tuning, where: Platform, run: Any) -> Any:
    """Launches on such a GPU with ``run(*args, grid=, **options)`` in the place of the kernel's.

    Returns:
        What that returns.
    """
    results = []

    def stop(*args: Any, warmup: bool, **options: Any) -> None:
        results.append(run(*args, **options))
        raise _LaunchedError

    with plugged(xkv_build, where):
        xkv_build.run = stop
        try:
            launch.launch(build, row, where)
        except _LaunchedError:
            pass
        finally:
            del xkv_build.run
    (result,) = results
    return result


def compiled(build: Build, row: Tuning, where: Platform) -> Any:
    """The CompiledKernel, down to the machine code, that this launch runs on such a GPU."""

    def run(*args: Any, grid: Any, **options: Any) -> Any:
        return type(xkv_build).run(xkv_build, *args, grid=None, warmup=True, **options)

    return intercepted(build, row, where, run)


def compiled_chosen(build: ChosenTokens, row: ChosenTuning, where: Platform, *, aligned: bool = True) -> Any:
    """The same of a translation of chosen positions, whose tensors begin at 16 bytes or do not."""
    kernel = chosen.chosen_kernel()
    with plugged(kernel, where):
        args = [*chosen.arguments(build), chosen.config(build, row, where, aligned=aligned)]
        return kernel.warmup(*args, grid=(1,), **chosen.options(build, row, where))
