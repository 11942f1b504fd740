"""A memory checker for Triton's interpreter: what a GPU would forgive, or make a race of, is an error there.

Within every launch of the kernel, by every test of that tier:

* nothing is read or written but the elements of the launch's own tensors, the gaps between rows of a strided
  one excluded; nothing is written but outputs
* no word is written twice, by whichever programs, and none that is written is read: programs run in any order
  (where an engine gives the sums, a word that several rows claim by them may be written by each of the rows)
* a hint about a pointer's alignment holds
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from triton.runtime import interpreter

from xkv.cli.check import oracle
from xkv.kernel.chosen import xkv_translate
from xkv.kernel.entry import xkv_build
from xkv.kernel.expanded import xkv_expand
from xkv.kernel.group import xkv_build_group
from xkv.launch import group
from xkv.launch.launch import CompiledLaunch
from xkv.params import Build

# of view 2: 2 behind
_OUTPUTS = {
    "out",
    "seqlens",
    "cu_k",
    "indptr",
    "last",
    "cu_q",
    "offset",
    "empty",
    "record",
    "query_seqlens",
    "loc_out",
    "counts",
    "req_out",
    "position_out",
    "lens_out",
    "table_out",
}


class Region(NamedTuple):
    """The bytes of one tensor: ``rows`` times ``width`` of them, ``stride`` apart."""

    name: str
    begin: int
    rows: int
    width: int
    stride: int

    def __str__(self) -> str:
        return f"{self.name} ({self.rows} rows of {self.width} bytes, {self.stride} apart)"

    def takes(self, what: str) -> bool:
        """Whether such an access may go there."""
        name = self.name.split()[-1]  # of a group's parts, the number comes first
        if what == "atomic":
            return name == "status_ptr"
        return what == "read" or name.removesuffix("_ptr").removesuffix("2") in _OUTPUTS

    @property
    def is_record(self) -> bool:
        """Whether it has the records of a table's rows, which a program reads and replaces."""
        return self.name.split()[-1] in ("record_ptr", "record2_ptr")

    def holds(self, at: Any, size: int) -> Any:
        """Which of the addresses begin ``size`` bytes that are all the tensor's."""
        row, column = np.divmod(at - self.begin, self.stride)
        return (row >= 0) & (row < self.rows) & (column + size <= self.width)


def region(name: str, x: torch.Tensor) -> Region:
    """Where a tensor of one or two dimensions lies."""
    size, shape = x.element_size(), (1, *x.shape)[-2:]
    if shape[1] > 1 and x.stride(-1) != 1:
        raise AssertionError(f"{name}: entries of a row do not lie side by side: {x.stride()}")
    rows, width = shape[0], shape[1] * size
    stride = x.stride(0) * size if x.dim() == 2 and rows > 1 else max(width, 1)
    if stride < max(width, 1):  # rows over each other, as of an expanded tensor: together they are one row
        rows, width = 1, (rows - 1) * stride + width
        stride = max(width, 1)
    return Region(name, x.data_ptr(), rows, width, stride)


class Shadow:
    """What one launch may touch, and what it has."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.regions = [region(name, x) for name, x in tensors.items()]
        self.read: list[Any] = []
        self.written: list[Any] = []
        self.readers: list[Any] = []  # the program of each of `read`
        self.writers: list[Any] = []

    def touch(self, what: str, ptrs: Any, mask: Any) -> Any:
        """Raises where an active lane's address is nobody's; returns the addresses."""
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        at = np.atleast_1d(ptrs.data)[np.atleast_1d(mask.data).astype(bool)].astype(np.int64)
        if not len(at):
            return at
        nobodys = np.ones(len(at), dtype=bool)
        for place in self.regions:
            if place.takes(what):
                nobodys &= ~place.holds(at, size)
                if not nobodys.any():
                    break
        else:
            program = interpreter.interpreter_builder.grid_idx
            raise AssertionError(f"program {program}: {what} {self._named(int(at[nobodys][0]))}")
        return at

    def end(self, builds: list[Build]) -> None:
        """Raises where programs would have raced."""
        written = np.sort(np.concatenate([np.empty(0, np.int64), *self.written]))
        twice = written[1:][written[1:] == written[:-1]]
        for build in builds:
            if len(twice) and build.indptr_is_input:
                twice = np.setdiff1d(twice, claimed_by_several(build))
        if len(twice):
            raise AssertionError(f"written twice in one launch: {self._named(int(twice[0]))}")
        read = np.concatenate([np.empty(0, np.int64), *self.read])
        both = np.setdiff1d(np.intersect1d(read, written), self._records_of_one_program())
        if len(both):
            raise AssertionError(f"read and written in one launch: {self._named(int(both[0]))}")

    def _records_of_one_program(self) -> Any:
        """Addresses of records that one program reads and writes, and no other one touches."""
        touched: dict[int, set[Any]] = {}
        for at, program in zip((*self.read, *self.written), (*self.readers, *self.writers), strict=True):
            for address in at:
                if any(place.is_record and place.holds(address, 4) for place in self.regions):
                    touched.setdefault(int(address), set()).add(program)
        return np.array([at for at, programs in touched.items() if len(programs) == 1], np.int64)

    def _named(self, address: int) -> str:
        """An address as bytes past the begin of the tensor that begins before it."""
        before = [place for place in self.regions if place.begin <= address]
        if not before:
            return f"address {address:#x}, before all tensors"
        place = max(before, key=lambda place: place.begin)
        return f"byte {address - place.begin} of {place}"


def claimed_by_several(build: Build) -> Any:
    """Addresses of the entries that several rows of a stream claim, by the definition."""
    out, ((expected, *_), _) = build.views[0].out, oracle.expected(build)
    several = [at for at, value in expected["out"].items() if isinstance(value, frozenset)]
    return out.data_ptr() + np.array(several, dtype=np.int64) * out.element_size()


_builds: list[list[Build]] = []  # what is launched: one build, or the parts of a group
_launch: list[Shadow] = []  # of the launch that runs
_reads: list[Any] | None = None  # of `recorded`


@contextmanager
def recorded() -> Iterator[list[Any]]:
    """The addresses that launches within it read."""
    global _reads
    _reads = found = []
    try:
        yield found
    finally:
        _reads = None


def install() -> None:
    """Puts the checker in the interpreter, for good."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    launch, run, run_group = executor.__call__, CompiledLaunch.run, group.GroupKernel.run

    def checked_load(self: Any, ptrs: Any, mask: Any, *args: Any) -> Any:
        if _launch:
            _launch[-1].read.append(_launch[-1].touch("read", ptrs, mask))
            _launch[-1].readers.append(interpreter.interpreter_builder.grid_idx)
        return load(self, ptrs, mask, *args)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *args: Any) -> Any:
        if _launch:
            _launch[-1].written.append(_launch[-1].touch("write", ptrs, mask))
            _launch[-1].writers.append(interpreter.interpreter_builder.grid_idx)
        return store(self, ptrs, value, mask, *args)

    def checked_atomic(self: Any, op: Any, ptr: Any, value: Any, mask: Any, *args: Any) -> Any:
        if _launch:
            _launch[-1].touch("atomic", ptr, mask)
        return atomic(self, op, ptr, value, mask, *args)

    def checked_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        ours = (xkv_build, xkv_build_group, xkv_expand, xkv_translate)
        if self.fn not in [kernel.rewrite() for kernel in ours]:  # engines' are not ours to check
            launch(self, *args, **kwargs)
            return
        named = dict(zip(self.arg_names, args, strict=False))
        if self.fn is xkv_build_group.rewrite():
            for n, build in enumerate(_builds[-1]):
                named |= {f"{n} {name}": x for name, x in group.own_arguments(build).items()}
        if not getattr(named.get("C"), "WRITES_IDS", True):
            del named["src_ptr"]  # nothing of a source is read for lengths
        shadow = Shadow({name: x for name, x in named.items() if isinstance(x, torch.Tensor)})
        _launch.append(shadow)
        try:
            launch(self, *args, **kwargs)
        finally:
            _launch.pop()
        shadow.end(_builds[-1] if _builds else [])
        if _reads is not None:
            _reads.extend(shadow.read)

    def known_run(self: Any, build: Build) -> None:
        _builds.append([build])
        try:
            run(self, build)
        finally:
            _builds.pop()

    def known_group(self: Any, known: Any, builds: Any, inputs: Any) -> None:
        _builds.append(list(builds))
        try:
            run_group(self, known, builds, inputs)
        finally:
            _builds.pop()

    def checked_hint(self: Any, key: str, value: list[int]) -> None:
        if key == "tt.divisibility":
            assert (self.data % value[0] == 0).all(), f"{self.data} is no multiple of {value[0]}"

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    builder.create_atomic_rmw = checked_atomic
    executor.__call__ = checked_launch
    CompiledLaunch.run = known_run  # type: ignore[method-assign]
    group.GroupKernel.run = known_group  # type: ignore[method-assign]
    interpreter.TensorHandle.set_attr = checked_hint
