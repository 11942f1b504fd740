"""From a checked `Build` to one launch: compiled once, then launched for what the driver costs.

The only room that knows Triton's launcher. A kernel is compiled through Triton's front door; each launch
after that calls the driver's launcher as Triton itself would. How Triton calls it is recorded once a
kernel, not written down here, so that it holds for every version and both vendors; where the recording
is not as expected, or somebody watches launches, launches take the front door.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch

from xkv import dispatch, tuning
from xkv.build import INT32_MAX, Build
from xkv.platforms import Platform, platform
from xkv.schedule import schedule


def run(build: Build) -> Prepared | None:
    """Builds what ``build`` says: one launch on a GPU, the reference on a CPU.

    Under TRITON_INTERPRET=1 CPU tensors go through the kernel too. Does not sync on a GPU, allocates
    nothing there, and is safe in a graph.

    Returns:
        What launches others of its kind on its GPU, or None on a CPU.
    """
    if build.req_to_token.device.type == "cpu" and not interpreted():
        from xkv import reference

        reference.run(build)
        return None
    prepared = prepare(build)
    prepared.run(build)
    return prepared if build.req_to_token.is_cuda else None


def prepare(build: Build) -> Prepared:
    """Readies the launch with the tuning row of the build's device, kind and batch."""
    where = platform(build.req_to_token.device)
    kind = tuning.kind_of(build.page_size, build.source_page_size)
    return Prepared(build, dispatch.tuning_row(where, kind, build.batch), where)


def launch(build: Build, row: tuning.Tuning, where: Platform) -> None:
    """Launches the kernel with this tuning row, on the device of the build's tensors."""
    Prepared(build, row, where).run(build)


class Prepared:
    """A compiled kernel, a grid and arguments: what builds of one kind share, with none of their tensors.

    Attributes:
        args: the kernel's arguments in the order of `positions`, pointers as integers. Launches with
            others of the same kind take a copy with those in their place.
    """

    __slots__ = (
        "_after", "_alone", "_before", "_config", "_device", "_direct", "_grid", "_nested", "_raw", "_warps",
        "args",
    )  # fmt: skip

    def __init__(self, build: Build, row: tuning.Tuning, where: Platform) -> None:
        plan = schedule(build, row, where)
        self._grid, self._direct, self._warps = plan.grid, plan.direct, row.num_warps
        self._config = config(
            build.page_size, build.source_page_size, build.map_page_size, build.form,
            build.tail_fill is not None, row.num_page_per_block, row.batch_block,
            plan.balance, plan.wide,
        )  # fmt: skip
        self._device = device = build.req_to_token.get_device()
        tensors = self._tensors(build)
        self._raw: Any = None
        self._alone = torch.cuda.device_count() == 1
        self.args: list[Any] = []
        if device < 0:  # interpreted
            return
        key = (device, self._config, self._warps, *map(_kind, tensors))
        if key not in _compiled:
            _compiled[key] = self._compile(tensors)
        call = _compiled[key]
        self.args = [*(x if x is None or type(x) is int else x.data_ptr() for x in tensors), self._config]
        if call is not None:
            self._raw, self._nested = call.raw, call.nested
            self._before, self._after = call.around(self._grid)

    def ready(self) -> bool:
        """Whether the cheap call may be made now: it is known, and nobody watches launches."""
        return self._raw is not None and not _watched()

    def __call__(self, args: list[Any]) -> None:
        """Launches with these arguments on the current stream of their device; only when `ready`."""
        device = self._device
        if self._alone or torch._C._cuda_getDevice() == device:
            # current_stream() would cost fifty times as much
            stream = torch._C._cuda_getCurrentRawStream(device)
            if self._nested:
                self._raw(*self._before, stream, *self._after, args)
            else:
                self._raw(*self._before, stream, *self._after, *args)
            return
        with torch.cuda.device(device):
            self(args)

    def run(self, build: Build) -> None:
        """Launches the build that this was made from: it was not kept."""
        if self.ready():
            self(self.args)
            return
        kernel, tensors = xkv_kernel(), self._tensors(build)
        if self._device < 0:
            kernel[self._grid](*tensors, self._config, num_warps=self._warps)
            return
        with torch.cuda.device(self._device):
            kernel[self._grid](*tensors, self._config, num_warps=self._warps)

    def _tensors(self, build: Build) -> list[Any]:
        return [*build.arguments(), self._direct]

    def _compile(self, tensors: list[Any]) -> Call | None:
        """Compiles and loads the kernel, launching nothing."""
        with torch.cuda.device(self._device):
            kernel = xkv_kernel().warmup(*tensors, self._config, grid=self._grid, num_warps=self._warps)
            return record(kernel, len(tensors) + 1)


_compiled: dict[tuple[Any, ...], Call | None] = {}


def _kind(x: Any) -> Any:
    """What a compiled kernel depends on of an argument."""
    if x is None:
        return None
    return x > INT32_MAX if type(x) is int else x.dtype


class Call(NamedTuple):
    """How Triton calls the driver's launcher for one kernel.

    Attributes:
        raw: that launcher.
        args: all that it is given before the kernel's arguments, `_GRID` and `_STREAM` in their places.
        nested: whether the kernel's arguments are given as one.
    """

    raw: Any
    args: tuple[Any, ...]
    nested: bool

    def around(self, grid: tuple[int, int, int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What stands before and after the stream, for this grid."""
        numbers = dict(zip(map(id, _GRID), grid, strict=True))
        args = [numbers.get(id(x), x) for x in self.args]
        at = next(n for n, x in enumerate(args) if x is _STREAM)
        return tuple(args[:at]), tuple(args[at + 1 :])


_GRID, _STREAM = (object(), object(), object()), object()


def record(kernel: Any, count: int) -> Call | None:
    """Has Triton's launcher call a recorder in place of the driver's, with marks for arguments.

    Args:
        kernel: a CompiledKernel, loaded.
        count: how many arguments it has, constexprs among them.

    Returns:
        What was recorded; None where it is not a call that can be repeated with other arguments, such
        as one that allocates scratch memory for each launch.
    """
    seen: list[tuple[Any, ...]] = []
    marks = tuple(object() for _ in range(count))
    try:
        run = kernel.run
        probe = object.__new__(type(run))
        vars(probe).update(vars(run), launch=lambda *args: seen.append(args))
        raw = run.launch
        probe(*_GRID, _STREAM, kernel.function, kernel.packed_metadata, None, None, None, *marks)
    except (AttributeError, TypeError):
        return None  # another launcher than Triton 3.6 to 3.9 have
    if len(seen) != 1:
        return None
    args = seen[0]
    nested = bool(args) and isinstance(args[-1], (tuple, list)) and tuple(args[-1]) == marks
    if not nested and args[-count:] != marks:
        return None
    args = args[: -1 if nested else -count]
    known = all(sum(x is mark for x in args) == 1 for mark in (*_GRID, _STREAM))
    return Call(raw, args, nested) if known else None


def _watched() -> bool:
    """Whether somebody wants to see or check every launch, such as a profiler of Triton's."""
    knobs = _knobs()
    enter, leave = knobs.launch_enter_hook, knobs.launch_exit_hook
    return bool(
        getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
        or knobs.debug or _hooks()
    )  # fmt: skip


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 made the kernel run on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def xkv_kernel() -> Any:
    """The kernel; imported late, since importing Triton takes a second."""
    from xkv.kernel import xkv_build

    return xkv_build


@functools.cache
def config(*fields: Any) -> Any:
    """The kernel's `Config`, one object for equal fields."""
    from xkv.kernel import Config

    return Config(*fields)


@functools.cache
def _knobs() -> Any:
    from triton import knobs

    return knobs.runtime


@functools.cache
def _hooks() -> Any:
    """The list of what runs before each of the kernel's launches."""
    return xkv_kernel().pre_run_hooks


@functools.cache
def positions() -> dict[str, int]:
    """Where each of the kernel's arguments stands in `Prepared.args`."""
    return {name: n for n, name in enumerate(xkv_kernel().arg_names)}
