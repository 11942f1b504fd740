"""How Triton calls the driver's launcher; the only room that knows of it.

It is recorded once a kernel, not written down here, so that it holds for every version and both vendors.
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
        raw: that launcher.
        args: all that it is given before the kernel's arguments, `_GRID` and `_STREAM` in their places.
        nested: whether the kernel's arguments are given as one.
        grid_at: where in ``args`` the grid's three sizes stand.
        stream_at: where the stream stands.
    """

    raw: Any
    args: tuple[Any, ...]
    nested: bool
    grid_at: tuple[int, int, int]
    stream_at: int

    def filled(self, grid: tuple[int, int, int], arguments: Sequence[Any]) -> list[Any]:
        """Returns what ``raw`` is given for a launch of this grid; `launch` puts the stream in.

        Args:
            grid: programs.
            arguments: the kernel's, constexprs among them; pointers as integers.
        """
        call = [*self.args, arguments] if self.nested else [*self.args, *arguments]
        x, y, z = self.grid_at
        call[x], call[y], call[z] = grid
        return call

    def launch(self, call: list[Any], device: int) -> None:
        """Launches what `filled` returned, on the current stream of the device, which is the current one."""
        call[self.stream_at] = torch._C._cuda_getCurrentRawStream(device)
        self.raw(*call)


# Triton's kernel has its launcher before it has its function: a thread that came while another loads it would
# launch nothing's address.
LOADING = threading.RLock()
_GRID, _STREAM = (object(), object(), object()), object()


def record(kernel: Any, count: int) -> Call | None:
    """Has Triton's launcher call a recorder in place of the driver's, with marks for arguments.

    Args:
        kernel: a CompiledKernel, which this loads.
        count: how many arguments it has, constexprs among them.

    Returns:
        What was recorded; None where it is not a call that can be repeated with other arguments, such
        as one that allocates scratch memory for each launch.
    """
    seen: list[tuple[Any, ...]] = []
    marks = tuple(object() for _ in range(count))
    try:
        with LOADING:
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
    at = [[n for n, x in enumerate(args) if x is mark] for mark in (*_GRID, _STREAM)]
    if any(len(found) != 1 for found in at):
        return None
    (x,), (y,), (z,), (stream,) = at
    return Call(raw, args, nested, (x, y, z), stream)


def launch_hooks_active() -> bool:
    """Whether somebody wants to see or check every launch, such as a profiler of Triton's."""
    knobs, before_launches = _hooks()
    enter, leave = knobs.launch_enter_hook, knobs.launch_exit_hook
    try:
        return bool(enter.calls or leave.calls or knobs.debug or before_launches)
    except AttributeError:  # no chains but hooks, or None, as other versions have them
        return any(getattr(x, "calls", x) for x in (enter, leave)) or bool(knobs.debug or before_launches)


@functools.cache
def _hooks() -> tuple[Any, list[Any]]:
    """Triton's knobs, and the list of what runs before each of the kernel's launches."""
    from triton import knobs

    from ..kernel.entry import xkv_build

    return knobs.runtime, xkv_build.pre_run_hooks
