"""Calls like earlier ones of the same sizes: only addresses are looked at again.

A layer's call comes again in every step, mostly of the same sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..arguments import extent
from .guards import addresses, have_memory, make_guard
from .launch import KernelLaunch
from .triton_launcher import launch_hooks_active

ALIGNED = 16  # bytes
_MAX_OPTIONS = 1024  # of one kernel
_MAX_SIZES = 256  # of calls with the same options


class _Same(NamedTuple):
    """Calls of the same sizes and strides. It keeps no tensor alive.

    Attributes:
        guard: of the tensors' dtypes, sizes, strides and device.
        launch: the launch of one of them.
        places: the indices among the launcher's arguments of the tensors' addresses.
        grid: programs.
        aligned: the tensors that begin at multiples of 16 bytes.
        bounds: two tensors, one of them an output, and between which differences of their addresses they
            overlap.
    """

    guard: Callable[..., bool]
    launch: KernelLaunch
    places: list[int]
    grid: tuple[int, int, int]
    aligned: list[int]
    bounds: list[tuple[int, int, int, int]]


class Known:
    """Calls with the same options and the same tensors present, to be made again with others."""

    def __init__(self, calls: KeptCalls) -> None:
        self._calls = calls
        self._last: _Same | None = None  # read and written as a whole, as threads may share it
        self._by_sizes: dict[tuple[int, ...], _Same] = {}

    def launch(self, inputs: Sequence[Tensor | None]) -> bool:
        """Launches a call like an earlier one; False if there was none, or it needs the full checks."""
        try:
            tensors = [x for x in inputs if x is not None]
            pointers = addresses(tensors)
            same = self._last
            if same is None or not same.guard(*tensors):
                same = self._by_sizes.get(tuple([x.numel() for x in tensors]))
                if same is None or not same.guard(*tensors):
                    return False
                self._last = same
        except (AttributeError, RuntimeError):
            return False  # no tensors: the full checks name them
        if not have_memory(pointers, tensors) or launch_hooks_active():
            return False
        if any(pointers[n] % ALIGNED for n in same.aligned):
            return False
        for output, other, low, high in same.bounds:
            if low < pointers[other] - pointers[output] < high:
                return False
        call, _ = same.launch.make_call(same.places, pointers, same.grid)
        same.launch.launch(call)
        return True

    def keep(
        self, launch: KernelLaunch, args: list[Any], inputs: Sequence[Tensor | None],
        programs: tuple[int, int, int], aligned: Sequence[str],
    ) -> None:  # fmt: skip
        """Remembers a call that was launched just now.

        Args:
            launch: its launch.
            args: the kernel's arguments, pointers as integers.
            inputs: as in `lookup`.
            programs: the grid.
            aligned: the kernel's names of those that it was told to be aligned.
        """
        own = copy.copy(launch)  # with this call's numbers
        own.call, own.args = launch.make_call(range(launch.first, launch.first + len(args)), args, programs)
        present = [(name, x) for name, x in zip(self._calls.inputs, inputs, strict=True) if x is not None]
        tensors, sizes = [x for _, x in present], [extent(x) for _, x in present]
        outputs = [n for n, (name, _) in enumerate(present) if name in self._calls.outputs]
        bounds = [
            (k, n, -sizes[n], sizes[k])
            for k in outputs
            for n in range(len(present))
            if n < k or (n > k and n not in outputs)
        ]
        at = [n for n, (name, _) in enumerate(present) if name in aligned]
        names = self._calls.kernel().arg_names
        places = [launch.first + names.index(name) for name, _ in present]
        same = _Same(
            make_guard(tensors, sizes=True), own, places, programs, at, bounds
        )  # fmt: skip
        if len(self._by_sizes) >= _MAX_SIZES:
            self._by_sizes.clear()
        self._by_sizes[tuple([x.numel() for x in tensors])] = same
        self._last = same


class KeptCalls:
    """The launches and the calls of one kernel.

    Args:
        kernel: returns it, Triton's `JITFunction`.
        inputs: the kernel's names of the tensors that a call gives.
        outputs: those of them that are written, and may overlap no other.
    """

    def __init__(self, kernel: Callable[[], Any], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.kernel, self.inputs, self.outputs = kernel, tuple(inputs), tuple(outputs)
        self._known: dict[Any, Known] = {}
        self._launches: dict[Any, KernelLaunch] = {}

    def prepare(
        self, device: int, config: Any, options: dict[str, Any], programs: tuple[int, int, int],
        values: list[Any],
    ) -> KernelLaunch:  # fmt: skip
        """Compiles and loads the kernel, if it is not; takes what `KernelLaunch` takes, and returns one."""
        types = [x.dtype if isinstance(x, Tensor) else x is None for x in values]
        key = (device, config, *options.values(), *types)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._launches[key] = KernelLaunch(
                self.kernel(), device, config, options, programs, values
            )
        return launch

    def launch(
        self, launch: KernelLaunch, programs: tuple[int, int, int], values: list[Any], known: Known | None,
        inputs: Sequence[Tensor | None], aligned: Sequence[str],
    ) -> None:  # fmt: skip
        """Launches a call that is not known, and remembers it where it can be made again.

        Args:
            launch: its launch, as `prepare` returned it.
            programs: the grid.
            values: the kernel's arguments.
            known: where it is remembered, if anywhere.
            inputs: as in `lookup`.
            aligned: the kernel's names of those that it is told to be aligned.
        """
        if not launch.fast_path or launch_hooks_active():
            launch.run_tensors(programs, values)
            return
        pointers = [x.data_ptr() if isinstance(x, Tensor) else x for x in values]
        call, _ = launch.make_call(range(launch.first, launch.first + len(values)), pointers, programs)
        launch.launch(call)
        if known is not None:
            known.keep(launch, pointers, inputs, programs, aligned)

    def lookup(self, inputs: Sequence[Any], options: tuple[Any, ...]) -> Known | None:
        """Returns what is known of calls with these options; None if one cannot be hashed.

        Args:
            inputs: a tensor or None for each of the kernel's.
            options: everything else.
        """
        # an int and a bool are equal, but not the same option
        key = options, tuple(map(type, options)), tuple([x is not None for x in inputs])
        try:
            known = self._known.get(key)
        except TypeError:
            return None
        if known is None:
            if len(self._known) >= _MAX_OPTIONS:
                self._known.clear()
            known = self._known.setdefault(key, Known(self))
        return known

    def forget(self) -> None:
        """Removes every known call."""
        self._known.clear()
