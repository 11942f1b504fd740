"""Launches that are recorded, for tests of the host's code without a GPU."""

from __future__ import annotations

from typing import Any

import torch

from xkv.launch import compile, launch
from xkv.launch.grid import make_schedule
from xkv.platforms.detect import platform


class OnGPU(torch.Tensor):
    """A CPU tensor that takes itself for a GPU's."""

    def get_device(self) -> int:
        return 0


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(OnGPU) if x.layout is torch.strided else x


class Recorded:
    """In the place of a `launch.CompiledLaunch`: keeps what it is asked to launch.

    A call is the grid's three sizes, and the kernel's arguments with pointers as integers.
    """

    fast_path, first, grid_at = True, 3, (0, 1, 2)

    def __init__(self, build: Any, launched: list[list[Any]] | None = None) -> None:
        where = platform(build.req_to_token.device)
        self.tuning = launch.tuned(build, where)
        self.schedule = make_schedule(build, self.tuning, where)
        self.call = self.args = arguments(build)
        self.launched: list[list[Any]] = []
        self._all = [] if launched is None else launched

    def make_call(self, positions: Any, values: Any, grid: Any) -> tuple[list[Any], list[Any]]:
        call = self.args.copy()
        for n, value in zip(positions, values, strict=True):
            call[n] = value
        call[:3] = grid
        return call, call

    def launch(self, call: list[Any]) -> None:
        self.launched.append(call.copy())
        self._all.append(self.launched[-1])


def arguments(build: Any) -> list[Any]:
    """The call of a build, made without the cache."""
    where = platform(build.req_to_token.device)
    schedule = make_schedule(build, launch.tuned(build, where), where)
    values = [x if x is None or type(x) is int else x.data_ptr() for x in compile.arguments(build, schedule)]
    return [*schedule.grid, *values]


def value(call: list[Any], name: str) -> Any:
    """What a call gives the kernel by that name."""
    return call[Recorded.first + compile.positions()[name]]
