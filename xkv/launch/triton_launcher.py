"""How Triton calls the driver's launcher. No other module depends on Triton's internals of a launch.

The call is recorded once per kernel instead of written out here, so that it holds for every version of Triton
and both vendors.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Call(NamedTuple):
    """How Triton calls the driver's launcher for one kernel.

    Attributes:
        launcher: that launcher.
        args: its arguments before the kernel's, with `_GRID` and `_STREAM` as placeholders.
        nested: whether the kernel's arguments are one argument, a sequence.
        grid_at: the indices in ``args`` of the grid's three sizes.
        stream_at: the index of the stream.
        pdl_at: the index of the flag for programmatic dependent launch; None: it is not compiled for that.
    """

    launcher: Any
    args: tuple[Any, ...]
    nested: bool
    grid_at: tuple[int, int, int]
    stream_at: int
    pdl_at: int | None = None

    def make_call(self, grid: tuple[int, int, int], arguments: Sequence[Any]) -> list[Any]:
        """Returns the launcher's arguments for a launch with this grid; `launch` adds the stream.

        Args:
            grid: programs.
            arguments: the kernel's arguments, constexprs included, pointers as integers.
        """
        call = [*self.args, arguments] if self.nested else [*self.args, *arguments]
        x, y, z = self.grid_at
        call[x], call[y], call[z] = grid
        return call

    def launch(self, call: list[Any], device: int) -> None:
        """Launches what `make_call` returned, on the current stream of the device, which must be current."""
        call[self.stream_at] = torch._C._cuda_getCurrentRawStream(device)
        self.launcher(*call)


# A CompiledKernel has its launcher before its function handle: without the lock, a thread that comes while
# another one loads the kernel would launch a null handle.
LOADING = threading.RLock()
_GRID, _STREAM, _PDL = (object(), object(), object()), object(), object()


def record(kernel: Any, count: int) -> Call | None:
    """Calls Triton's launcher with placeholders, and a recorder in place of the driver's launcher.

    Args:
        kernel: a CompiledKernel, which this loads.
        count: number of its arguments, constexprs included.

    Returns:
        The recorded call. None if it cannot be repeated with other arguments, such as one that allocates
        scratch memory per launch.
    """
    seen: list[tuple[Any, ...]] = []
    placeholders = tuple(object() for _ in range(count))
    try:
        with LOADING:
            run = kernel.run
            probe = object.__new__(type(run))
            vars(probe).update(vars(run), launch=lambda *args: seen.append(args))
            if getattr(run, "launch_pdl", False):
                probe.launch_pdl = _PDL
            launcher = run.launch
            function, metadata = kernel.function, kernel.packed_metadata
            probe(*_GRID, _STREAM, function, metadata, None, None, None, *placeholders)
    except (AttributeError, TypeError):
        return None  # not the launcher of Triton 3.6 to 3.9
    if len(seen) != 1:
        return None
    args = seen[0]
    nested = bool(args) and isinstance(args[-1], (tuple, list)) and tuple(args[-1]) == placeholders
    if not nested and args[-count:] != placeholders:
        return None
    args = args[: -1 if nested else -count]
    indices = [[n for n, x in enumerate(args) if x is each] for each in (*_GRID, _STREAM)]
    if any(len(found) != 1 for found in indices):
        return None
    (x,), (y,), (z,), (stream,) = indices
    pdl_at = next((n for n, x in enumerate(args) if x is _PDL), None)
    args = tuple(True if x is _PDL else x for x in args)
    return Call(launcher, args, nested, (x, y, z), stream, pdl_at)


def launch_hooks_active() -> bool:
    """Whether Triton must make every launch itself: a profiler's launch hooks, debug mode, pre-run hooks."""
    knobs, before_launches = _hooks()
    try:
        if knobs.launch_enter_hook.calls or knobs.launch_exit_hook.calls or knobs.debug or before_launches:
            return True
    except AttributeError:  # in other versions a hook, or None, in place of a chain of hooks
        hooks = knobs.launch_enter_hook, knobs.launch_exit_hook
        return any(getattr(x, "calls", x) for x in hooks) or bool(knobs.debug or before_launches)
    return False


@functools.cache
def _hooks() -> tuple[Any, list[Any]]:
    """Triton's runtime knobs, and the kernel's list of pre-run hooks."""
    from triton import knobs

    from ..kernel.entry import xkv_build

    return knobs.runtime, xkv_build.pre_run_hooks
