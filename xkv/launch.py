"""From a checked `Build` to one launch; the only room that knows Triton's launcher.

The first launch of a kernel goes through Triton's front door and leaves the compiled kernel behind. The
next ones call that kernel's launcher directly, which costs the host a fraction, and fall back to the
front door when a launch hook is set or the private call is not as we know it.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any, NamedTuple

from xkv import dispatch, tuning
from xkv.build import INT32_MAX, Build
from xkv.platforms import Platform, platform

GRID_Y_MAX = 65_535


def run(build: Build) -> None:
    """Builds what ``build`` says: one launch on a GPU, the reference on a CPU.

    Under TRITON_INTERPRET=1 CPU tensors go through the kernel too. Does not sync on a GPU, allocates
    nothing there, and is safe in a graph.
    """
    device = build.req_to_token.device
    if device.type == "cpu" and not interpreted():
        from xkv import reference

        reference.run(build)
        return
    prepare(build)()


def prepare(build: Build) -> Prepared:
    """Readies the launch with the tuning row of the build's device, kind and batch."""
    where = platform(build.req_to_token.device)
    kind = tuning.kind_of(build.page_size, build.source_page_size)
    return Prepared(build, dispatch.tuning_row(where, kind, build.batch), where)


def launch(build: Build, row: tuning.Tuning, where: Platform) -> None:
    """Launches the kernel with this tuning row, on the device of the build's tensors."""
    Prepared(build, row, where)()


class Prepared:
    """One launch, ready to be repeated.

    Attributes:
        args: the kernel's arguments in the order of `positions`, pointers as integers. Whoever changes
            the build's tensors or integers between calls, to others of the same kind, changes them
            here too.
    """

    __slots__ = ("_build", "_config", "_device", "_direct", "_fast", "_grid", "_warps", "args")

    def __init__(self, build: Build, row: tuning.Tuning, where: Platform) -> None:
        plan = schedule(build, row, where)
        self._grid = plan.grid
        self._config = config(
            build.page_size, build.source_page_size, build.map_page_size, build.form,
            build.tail_fill is not None, row.num_page_per_block, row.batch_block,
            plan.balance, plan.wide,
        )  # fmt: skip
        self._warps = row.num_warps
        self._build = build  # keeps alive what args point to
        self._device = device = build.req_to_token.get_device()
        self._direct = plan.direct
        tensors = [*build.arguments(), plan.direct]
        if device < 0:  # interpreted
            self._fast, self.args = None, tensors
            return
        key = (device, self._config, self._warps, *map(_kind, tensors))
        if key not in _compiled:
            _compiled[key] = _compile(device, self._grid, tensors, self._config, self._warps)
        self._fast = _compiled[key]
        self.args = [x if x is None or type(x) is int else x.data_ptr() for x in tensors]

    def __call__(self) -> None:
        """Launches on the current stream of the build's device."""
        fast = self._fast
        if fast is None or _hooked():
            tensors = [*self._build.arguments(), self._direct]
            _front_door(self._device, self._grid, tensors, self._config, self._warps)
            return
        torch_c, device = _torch_c(), self._device
        stream = torch_c._cuda_getCurrentRawStream(device)
        if torch_c._cuda_getDevice() == device:
            fast(*self._grid, stream, self.args)
            return
        import torch

        with torch.cuda.device(device):
            fast(*self._grid, stream, self.args)


_compiled: dict[tuple[Any, ...], Any] = {}


def _kind(x: Any) -> Any:
    """What a compiled kernel depends on of an argument."""
    if x is None:
        return None
    return x > INT32_MAX if type(x) is int else x.dtype


def _compile(device: int, grid: tuple[int, ...], tensors: list[Any], config_: Any, warps: int) -> Any:
    """Compiles and loads the kernel, launching nothing; returns how to launch it cheaply, or None."""
    import torch

    with torch.cuda.device(device):
        compiled = xkv_kernel().warmup(*tensors, config_, grid=grid, num_warps=warps)
        return _cheap(compiled, config_)


def _cheap(compiled: Any, config_: Any) -> Any:
    """The private call, if it is the one we know: a function of the grid, a stream and arguments."""
    try:
        run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
        known = list(inspect.signature(type(run).__call__).parameters)[1:6]
    except (AttributeError, TypeError, ValueError):
        return None
    if known != ["gridX", "gridY", "gridZ", "stream", "function"]:
        return None

    def call(x: int, y: int, z: int, stream: int, args: list[Any]) -> None:
        run(x, y, z, stream, function, packed, None, None, None, *args, config_)

    return call


def _front_door(device: int, grid: tuple[int, ...], tensors: list[Any], config_: Any, warps: int) -> None:
    kernel = xkv_kernel()
    if device < 0:
        kernel[grid](*tensors, config_, num_warps=warps)
        return
    import torch

    with torch.cuda.device(device):
        kernel[grid](*tensors, config_, num_warps=warps)


def _hooked() -> bool:
    """Whether somebody wants to see every launch, such as a profiler of Triton's."""
    knobs = _knobs()
    enter, leave = knobs.launch_enter_hook, knobs.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


class Schedule(NamedTuple):
    """How the work is dealt out.

    Attributes:
        grid: rows and perhaps one for the sums, programs a row, views.
        direct: blocks of a row, at most, that its own programs write.
        balance: whether rows may have more blocks, which are then dealt out over all programs.
        wide: whether counting those takes int64.
    """

    grid: tuple[int, int, int]
    direct: int
    balance: bool
    wide: bool


def schedule(build: Build, row: tuning.Tuning, where: Platform) -> Schedule:
    """Deals the work out, from what the host knows without a sync."""
    batch = max(build.batch, 1)
    row_blocks = max(-(-build.row_items // row.num_page_per_block), 1)
    # a row of programs more than requests: they have no blocks of their own and write the sums
    rows = batch + build.writes_sums
    programs = min(max(where.compute_units * row.programs_per_cu // rows, 1), row_blocks, GRID_Y_MAX)
    direct = programs * row.blocks_per_program
    balance = row_blocks > direct
    wide = batch * row_blocks + rows * programs > INT32_MAX
    return Schedule((rows, programs, len(build.views)), min(direct, INT32_MAX), balance, wide and balance)


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
def _torch_c() -> Any:
    import torch

    return torch._C


@functools.cache
def _knobs() -> Any:
    from triton import knobs

    return knobs.runtime


@functools.cache
def positions() -> dict[str, int]:
    """Where each of the kernel's arguments stands in `Prepared.args`."""
    return {name: n for n, name in enumerate(xkv_kernel().arg_names)}
