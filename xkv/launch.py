"""From a checked `Build` to one launch: compiled once, then launched for what the driver costs.

A kernel is compiled by Triton's `JITFunction`; each launch after that calls the driver's launcher as Triton
itself would (`launcher`). Where it is not known how, or launch hooks are active, `JITFunction.run` launches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from xkv import dispatch, switches, tuning
from xkv.build import INT32_MAX, MAX_BATCH, TABLE, Build
from xkv.launcher import LOADING, Call, launch_hooks_active, record
from xkv.platforms import Platform, platform
from xkv.schedule import Schedule, reschedule, schedule


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
    if build.req_to_token.device.type == "cpu" and not interpreted():
        from xkv import reference

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
        args: where in it the kernel's arguments stand, pointers as integers, in the order of `positions`,
            from ``first`` on. Whoever is alone with it may put others of the same kind there.
        first: the index in ``args`` of the first.
        grid_at: the indices in ``call`` of the grid's three sizes.
    """

    __slots__ = (
        "_alone", "_config", "_device", "_nested", "_options", "_raw", "_stream", "_stream_at",
        "args", "call", "fast_path", "first", "grid_at", "row", "schedule",
    )  # fmt: skip

    def __init__(self, build: Build, row: tuning.Tuning, where: Platform) -> None:
        self.row, self.schedule = row, schedule(build, row, where)
        self._config, self._options = config(build, row, self.schedule, where), options(row, where)
        self._device = device = build.req_to_token.get_device()
        self.fast_path = False
        if device < 0:  # interpreted
            return
        tensors = self._tensors(build)
        call = compiled(device, self._config, self._options, tensors)
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
        kernel, tensors, grid = xkv_kernel(), self._tensors(build), self.schedule.grid
        if self._device < 0:
            kernel[grid](*tensors, self._config, **self._options)
            return
        with torch.cuda.device(self._device):
            kernel[grid](*tensors, self._config, **self._options)

    def _tensors(self, build: Build) -> list[Any]:
        return [*build.arguments(), self.schedule.direct]


_compiled: dict[tuple[Any, ...], Call | None] = {}


def compiled(device: int, config_: Any, options_: dict[str, Any], tensors: list[Any]) -> Call | None:
    """Compiles and loads a kernel, once, launching nothing; returns how to launch it cheaply."""
    key = (device, config_, *options_.values(), *map(_kind, tensors))
    if key not in _compiled:
        with LOADING, torch.cuda.device(device):
            if key not in _compiled:
                kernel = xkv_kernel().warmup(*tensors, config_, grid=(1,), **options_)
                _compiled[key] = record(kernel, len(tensors) + 1)
    return _compiled[key]


def warm(build: Build, max_batch: int | None) -> int:
    """Compiles and loads what builds like this can need, whatever their lengths.

    Launches nothing. Does nothing on a CPU.

    Args:
        build: one of them.
        max_batch: requests: at batches up to it, and the width at hand; None: at any batch and width.

    Returns:
        How many kernels were not there before.
    """
    before = len(_compiled)
    device = build.req_to_token.get_device()
    if device >= 0:
        where = platform(build.req_to_token.device)
        for row, plan in _ways(build, where, max_batch):
            fields = config(build, row, plan, where)
            compiled(device, fields, options(row, where), [*build.arguments(), plan.direct])
    return len(_compiled) - before


def _ways(build: Build, where: Platform, max_batch: int | None) -> Iterator[tuple[tuning.Tuning, Schedule]]:
    """The rows and schedules that builds like this can come to."""
    kind, least = build.kind, 1
    for row in dispatch.rows_of(where)[1]:
        if row.kind != kind:
            continue
        most = min(row.max_batch or MAX_BATCH, max_batch or MAX_BATCH)
        if least > most:
            return
        # what a batch decides changes once at most from the least to the most
        for batch in (least, most):
            plan = schedule(build, row, where, batch)
            yield row, plan
            # without balance also where inputs lie in host memory
            for balance in (False, True) if max_batch is None else (False,):
                yield row, reschedule(plan, row, balance)
        least = most + 1


@contextmanager
def compile_only() -> Iterator[list[Build]]:
    """Within it `run` launches nothing: it keeps the builds, of this thread alone, for `warm`."""
    builds: list[Build] = []
    token = _compile_only.set(builds)
    try:
        yield builds
    finally:
        _compile_only.reset(token)


_compile_only: ContextVar[list[Build] | None] = ContextVar("xkv_compile_only", default=None)


def _kind(x: Any) -> Any:
    """What a compiled kernel depends on of an argument."""
    if x is None:
        return None
    return x > INT32_MAX if type(x) is int else x.dtype


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 made the kernel run on the CPU."""
    return switches.on("TRITON_INTERPRET")


@functools.cache
def xkv_kernel() -> Any:
    """The kernel; imported late, since importing Triton takes a second."""
    from xkv.kernel import xkv_build

    return xkv_build


def config(build: Build, row: tuning.Tuning, plan: Schedule, where: Platform) -> Any:
    """The kernel's `Config`, one object for equal fields."""
    return _config(
        build.page_size, build.source_page_size, build.map_page_size, build.form,
        build.tail_fill is not None, plan.block, row.batch_block, plan.balance, plan.wide,
        overlaps(where), overlaps(where) and row.early, where.vendor == "hip", build.sums_given,
        lane_16(build, where),
        # each only where it makes a difference, so that other builds share a kernel
        build.window_is_prefix_only and any(view.window is not None for view in build.views),
        build.starts_are_aligned and any(view.kv_start is not None for view in build.views),
    )  # fmt: skip


def lane_16(build: Build, where: Platform) -> bool:
    """Whether lanes take 16 bytes at a time of entries that lie side by side, where a block allows it.

    Not on NVIDIA's GPUs where offences are to be reported, lane by lane as they come: the lanes' entries then
    change hands through shared memory, for each block (256 x 4K tokens, CSR, on an H100: 10.0 us instead of
    7.6). Nor in streams there, whose rows begin anywhere: what is not aligned takes four accesses for one
    (256 x ~4K tokens: 7.9 us instead of 6.7).
    """
    side_by_side = build.page_size == build.source_page_size
    return side_by_side and (where.vendor != "cuda" or (build.form == TABLE and build.status is None))


def options(row: tuning.Tuning, where: Platform) -> dict[str, Any]:
    """Triton's launch options."""
    # AMD's back end has no such option
    return {"num_warps": row.num_warps} | ({"launch_pdl": True} if overlaps(where) else {})


def overlaps(where: Platform) -> bool:
    """Whether launches there overlap the end of the kernel before them; none does in the interpreter."""
    return where.overlap and not interpreted()


@functools.cache
def _config(*fields: Any) -> Any:
    from xkv.kernel import Config

    return Config(*fields)


@functools.cache
def positions() -> dict[str, int]:
    """Where each of the kernel's arguments stands, counted from `CompiledLaunch.first`."""
    return {name: n for n, name in enumerate(xkv_kernel().arg_names)}
