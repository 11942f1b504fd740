"""From a checked `Build` to one launch, for what the driver costs.

It calls the driver's launcher as Triton itself would (`triton_launcher`). Where it is not known how, or where
launch hooks are active, `JITFunction.run` launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .. import dispatch
from ..params import Build
from ..platforms import tuning
from ..platforms.detect import Platform, platform
from . import compile
from .grid import schedule
from .triton_launcher import launch_hooks_active


def run(build: Build) -> CompiledLaunch | None:
    """Builds what ``build`` says: one launch on a GPU, the reference on a CPU.

    Under TRITON_INTERPRET=1 CPU tensors go through the kernel too. Does not sync on a GPU, allocates
    nothing there, and is safe in a graph.

    Returns:
        What launches others like it on its GPU, or None on a CPU.
    """
    kept = _compile_only.get()
    if kept is not None:
        kept.append(build)
        return None
    if build.req_to_token.device.type == "cpu" and not compile.interpreted():
        from .. import reference

        reference.run(build)
        return None
    compiled_launch = prepare(build)
    compiled_launch.run(build)
    return compiled_launch if build.req_to_token.is_cuda else None


def prepare(build: Build) -> CompiledLaunch:
    """Readies the launch with the tuning row of the build's device, kind and batch."""
    where = platform(build.req_to_token.device)
    return CompiledLaunch(build, tuned(build, where), where)


def tuned(build: Build, where: Platform) -> tuning.Tuning:
    """The tuning row of a build's kind and batch."""
    return dispatch.tuning_row(where, build.kind, build.batch)


def launch(build: Build, row: tuning.Tuning, where: Platform) -> None:
    """Launches the kernel with this tuning row, on the device of the build's tensors."""
    CompiledLaunch(build, row, where).run(build)


class CompiledLaunch:
    """A compiled kernel, and the call of Triton's launcher that launches it. It keeps no tensor alive.

    Attributes:
        row: the tuning row that it was compiled with.
        schedule: how the work of the build that it was made from is dealt out.
        fast_path: whether the call of Triton's launcher is known; it may be made while no launch hooks are
            active.
        call: all that this call is given.
        args: where in it the kernel's arguments stand, pointers as integers, from ``first`` on, in the order
            of `compile.positions`. Whoever is alone with it may put others of the same kind there.
        first: the index in ``args`` of the first.
        grid_at: the indices in ``call`` of the grid's three sizes.
    """

    __slots__ = (
        "_alone", "_config", "_device", "_nested", "_options", "_raw", "_stream", "_stream_at",
        "args", "call", "fast_path", "first", "grid_at", "row", "schedule",
    )  # fmt: skip

    def __init__(self, build: Build, row: tuning.Tuning, where: Platform) -> None:
        self.row, self.schedule = row, schedule(build, row, where)
        self._config = compile.config(build, row, self.schedule, where)
        self._options = compile.options(row, where)
        self._device = device = build.req_to_token.get_device()
        self.fast_path = False
        if device < 0:  # interpreted
            return
        tensors = self._tensors(build)
        call = compile.compiled(device, self._config, self._options, tensors)
        if call is None:
            return
        self.fast_path = True
        self._alone = torch.cuda.device_count() == 1
        # current_stream() would cost fifty times as much
        self._stream = torch._C._cuda_getCurrentRawStream
        self._raw, self._nested = call.raw, call.nested
        self._stream_at, self.grid_at = call.stream_at, call.grid_at
        args = [*(x if x is None or type(x) is int else x.data_ptr() for x in tensors), self._config]
        before = list(call.args)
        for at, size in zip(self.grid_at, self.schedule.grid, strict=True):
            before[at] = size
        self.call = [*before, args] if call.nested else [*before, *args]
        self.args, self.first = (args, 0) if call.nested else (self.call, len(before))

    def filled(
        self, at: Sequence[int], values: Iterable[Any], grid: tuple[int, int, int]
    ) -> tuple[list[Any], list[Any]]:
        """A ``call`` that nobody else has, of this grid, and its ``args``, with ``values`` put in."""
        call = self.call.copy()
        args = call
        if self._nested:
            call[-1] = args = self.args.copy()
        for n, value in zip(at, values):  # noqa: B905 (strict costs time)
            args[n] = value
        x, y, z = self.grid_at
        call[x], call[y], call[z] = grid
        return call, args

    def launch(self, call: list[Any]) -> None:
        """Launches ``call``, or one that is `filled` otherwise, on the current stream of its device."""
        device = self._device
        if self._alone or torch._C._cuda_getDevice() == device:
            call[self._stream_at] = self._stream(device)
            self._raw(*call)
            return
        with torch.cuda.device(device):
            self.launch(call)

    def run(self, build: Build) -> None:
        """Launches the build that this was made from: it was not kept."""
        if self.fast_path and not launch_hooks_active():
            self.launch(self.call)
            return
        kernel, tensors, grid = compile.xkv_kernel(), self._tensors(build), self.schedule.grid
        if self._device < 0:
            kernel[grid](*tensors, self._config, **self._options)
            return
        with torch.cuda.device(self._device):
            kernel[grid](*tensors, self._config, **self._options)

    def _tensors(self, build: Build) -> list[Any]:
        return compile.arguments(build, self.schedule)


@contextmanager
def compile_only() -> Iterator[list[Build]]:
    """Within it `run` launches nothing: it keeps the builds, of this thread alone, for `compile.warm`."""
    builds: list[Build] = []
    token = _compile_only.set(builds)
    try:
        yield builds
    finally:
        _compile_only.reset(token)


_compile_only: ContextVar[list[Build] | None] = ContextVar("xkv_compile_only", default=None)
