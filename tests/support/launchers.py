"""Triton's launchers, faked: how its versions call the driver's, and a compiled kernel that has one."""

from __future__ import annotations


class Launcher:
    """A launcher as Triton 3.6 has it: the driver's is given the kernel's arguments one by one."""

    cooperative = False

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.launch = lambda *args: self.calls.append(args)

    def __call__(self, gridX, gridY, gridZ, stream, function, *args):
        self.launch(gridX, gridY, gridZ, stream, function, self.cooperative, *args)


class Nested(Launcher):
    """As Triton 3.7 has it, and HIP's order: they are given as one."""

    def __call__(self, gridX, gridY, gridZ, stream, function, packed, metadata, enter, leave, *args):
        self.launch(False, gridX, gridY, gridZ, stream, function, packed, metadata, enter, leave, args)


class Compiled:
    function, packed_metadata = 7, ("packed",)

    def __init__(self, run: object) -> None:
        self.run = run
