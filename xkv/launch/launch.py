"""Launches a checked `Build`, at little more host time than the driver's own.

The fast path calls the driver's launcher directly, as Triton would (`triton_launcher`). If that call is not
known, or launch hooks are active, `JITFunction.run` launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .. import dispatch
from ..params import Build
from ..platforms.detect import Platform, platform
from ..platforms.tuning import Tuning
from . import compile
from .grid import make_schedule
from .triton_launcher import launch_hooks_active


def run(build: Build) -> CompiledLaunch | None:
    """Runs a build: one launch on a GPU, the torch reference on a CPU.

    Under TRITON_INTERPRET=1 CPU tensors go through the kernel too. Does not sync on a GPU, allocates
    nothing there, and is safe in a CUDA or HIP graph.

    Returns:
        The compiled launch, for other builds of the same signature; None on a CPU.
    """
    builds = _compile_only.get()
    if builds is not None:
        builds.append(build)
        return None
    if build.req_to_token.device.type == "cpu" and not compile.interpreted():
        from .. import reference

        reference.run(build)
        return None
    compiled_launch = prepare(build)
    compiled_launch.run(build)
    return compiled_launch if build.req_to_token.is_cuda else None


def prepare(build: Build) -> CompiledLaunch:
    """Compiles the launch with the tuning row of the build's device, access pattern and batch size."""
    target = platform(build.req_to_token.device)
    return CompiledLaunch(build, tuned(build, target), target)


def tuned(build: Build, target: Platform) -> Tuning:
    """Returns the tuning row of a build's access pattern and batch size."""
    return dispatch.tuning_row(target, build.access_pattern, build.batch)


def launch(build: Build, tuning: Tuning, target: Platform) -> None:
    """Launches a build with this tuning row, on the device of its tensors."""
    CompiledLaunch(build, tuning, target).run(build)


class KernelLaunch:
    """A compiled kernel, and the call of the driver's launcher that launches it. It keeps no tensor alive.

    Args:
        kernel: Triton's `JITFunction`.
        device: the index of the GPU; negative: interpreted.
        config: the kernel's constexpr, its last argument.
        options: Triton's.
        grid: programs.
        tensors: the kernel's other arguments, in order.

    Attributes:
        fast_path: whether the call of the driver's launcher is known. It may be made while no launch hooks
            are active.
        call: all arguments of that call.
        args: the list that holds the kernel's arguments among them, pointers as integers, from ``first`` on,
            in their order. A thread that has it alone may replace them by others of the same signature.
        first: the index in ``args`` of the first.
        grid_at: the indices in ``call`` of the grid's three sizes.
    """

    __slots__ = (
        "_capturing", "_config", "_device", "_kernel", "_launcher", "_nested", "_one_device", "_options",
        "_pdl_at", "_stream", "_stream_at", "args", "call", "fast_path", "first", "grid_at",
    )  # fmt: skip

    def __init__(
        self, kernel: Any, device: int, config: Any, options: dict[str, Any], grid: tuple[int, int, int],
        tensors: list[Any],
    ) -> None:  # fmt: skip
        self._kernel, self._config, self._options, self._device = kernel, config, options, device
        self.fast_path = False
        if device < 0:  # interpreted
            return
        call = compile.compiled(device, kernel, config, options, tensors)
        if call is None:
            return
        self.fast_path = True
        self._one_device = torch.cuda.device_count() == 1
        # torch.cuda.current_stream() takes fifty times as long
        self._stream = torch._C._cuda_getCurrentRawStream
        self._capturing = torch._C._cuda_isCurrentStreamCapturing
        self._launcher, self._nested = call.launcher, call.nested
        self._stream_at, self._pdl_at, self.grid_at = call.stream_at, call.pdl_at, call.grid_at
        args = [*(x if x is None or type(x) is int else x.data_ptr() for x in tensors), config]
        self.call = call.make_call(grid, args)
        self.args, self.first = (args, 0) if call.nested else (self.call, len(call.args))

    def make_call(
        self, positions: Sequence[int], values: Iterable[Any], grid: tuple[int, int, int]
    ) -> tuple[list[Any], list[Any]]:
        """Returns a copy of ``call``, and its ``args``, with this grid and ``values`` at these positions."""
        call = self.call.copy()
        args = call
        if self._nested:
            call[-1] = args = self.args.copy()
        for n, value in zip(positions, values):  # noqa: B905 (strict costs time)
            args[n] = value
        x, y, z = self.grid_at
        call[x], call[y], call[z] = grid
        return call, args

    def launch(self, call: list[Any]) -> None:
        """Launches ``call``, or one that `make_call` returned, on the current stream of its device."""
        device = self._device
        if self._one_device or torch._C._cuda_getDevice() == device:
            call[self._stream_at] = self._stream(device)
            if self._pdl_at is not None:  # see Tuning.pdl_on_streams
                call[self._pdl_at] = not self._capturing()
            self._launcher(*call)
            return
        with torch.cuda.device(device):
            self.launch(call)

    def run_tensors(self, grid: tuple[int, int, int], tensors: list[Any]) -> None:
        """Launches with these arguments, through Triton where the call of the launcher may not be made."""
        if self._device < 0:
            self._kernel[grid](*tensors, self._config, **self._options)
            return
        with torch.cuda.device(self._device):
            self._kernel[grid](*tensors, self._config, **self._options)


class CompiledLaunch(KernelLaunch):
    """The launch of a build.

    Attributes:
        tuning: the tuning row that it was compiled with.
        schedule: the schedule of the build that it was made from.
    """

    __slots__ = ("schedule", "tuning")

    def __init__(self, build: Build, tuning: Tuning, target: Platform) -> None:
        self.tuning, self.schedule = tuning, make_schedule(build, tuning, target)
        super().__init__(
            compile.xkv_kernel(), build.req_to_token.get_device(),
            compile.config(build, tuning, self.schedule, target), compile.options(tuning, target),
            self.schedule.grid, compile.arguments(build, self.schedule),
        )  # fmt: skip

    def run(self, build: Build) -> None:
        """Launches the build that this was made from, which it does not keep."""
        if self.fast_path and not launch_hooks_active():
            self.launch(self.call)
        else:
            self.run_tensors(self.schedule.grid, compile.arguments(build, self.schedule))


@contextmanager
def compile_only() -> Iterator[list[Any]]:
    """Makes `run` collect this thread's builds, for `compile.warm`, and launch nothing."""
    builds: list[Any] = []
    token = _compile_only.set(builds)
    try:
        yield builds
    finally:
        _compile_only.reset(token)


def compile_only_builds() -> list[Any] | None:
    """What collects this thread's builds in place of their launch; None: nothing does."""
    return _compile_only.get()


_compile_only: ContextVar[list[Any] | None] = ContextVar("xkv_compile_only", default=None)
