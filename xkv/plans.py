"""What the stateless ops remember: one prepared launch for all calls that differ in data alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

import xkv
from xkv import launch, registered
from xkv.build import ROW_MAX, TABLE, Build
from xkv.checks import extent
from xkv.launcher import watched
from xkv.likeness import like, unlike

_OPS = ("build_page_table", "build_kv_indices", "build_slot_mapping")
_MOST = 4096  # plans: a few KB each, and a server has a few batch sizes of a few ops
_OUTS = 4  # how many of NAMES are written; the ids are the first of them
NAMES = (
    "src_ptr", "rows_ptr", "lens_ptr", "delta_ptr", "query_ptr", "start_ptr", "token_map_ptr",
    "page_map_ptr", "status_ptr", "out_ptr", "indptr_ptr", "last_ptr", "offset_ptr",
)  # fmt: skip


class Plan:
    """A checked call's launch, for other tensors of the same dtypes, shapes, strides and device.

    It keeps no tensor alive.

    Args:
        prepared: the launch.
        build: what it was prepared from.
        given: the call's tensors; None or an int where there is none.
        names: what each is to the kernel.
        outs: how many, the last ones, are written.
    """

    __slots__ = ("_bytes", "_longest", "_longest_at", "_outs", "_prepared", "_room", "_where")

    def __init__(
        self, prepared: launch.Prepared, build: Build, given: tuple[Any, ...],
        names: tuple[str, ...] = NAMES, outs: int = _OUTS,
    ) -> None:  # fmt: skip
        self._prepared = prepared
        at = launch.positions()
        tensors = [n for n, x in enumerate(given) if isinstance(x, Tensor)]
        self._where = [(n, prepared.first + at[names[n]]) for n in tensors]
        self._bytes = [extent(given[n]) for n in tensors]
        self._outs = [k for k, n in enumerate(tensors) if n >= len(names) - outs]
        room = build.views[0].capacity(build.form) * build.page_size
        self._room = min(room, ROW_MAX) if build.form == TABLE else room
        # tokens of the longest row, which a table's call may bound
        self._longest, self._longest_at = build.source_tokens, None
        if build.form == TABLE:
            self._longest_at = prepared.first + at["src_tokens"]

    def run(self, given: tuple[Any, ...], bound: int | None) -> bool:
        """Launches with these tensors, unless the call must be looked at again: then returns False.

        Args:
            given: as in `find`.
            bound: tokens that the output must have room for, or None.
        """
        prepared, sizes = self._prepared, self._bytes
        if watched():
            return False
        if bound is not None and not (type(bound) is int and 0 <= bound <= self._room):
            return False
        call, args = prepared.copy()
        if self._longest_at is not None:
            args[self._longest_at] = self._longest if bound is None else min(bound, self._longest)
        pointers = []
        try:
            for n, at in self._where:
                args[at] = pointer = given[n].data_ptr()
                pointers.append(pointer)
        except RuntimeError:
            return False  # no memory, as in a transform of torch.func: the checks will name it
        if 0 in pointers:
            return False  # nor here, or nothing in it
        for n in self._outs:
            low = pointers[n]
            high = low + sizes[n]
            for k in range(n):
                if pointers[k] < high and low < pointers[k] + sizes[k]:
                    return False
        prepared.launch(call)
        return True


class Slot:
    """Where the plan of one kind of call is kept, once there is one, and what tells calls of that kind."""

    __slots__ = ("like", "plan")

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.like = unlike

    def run(self, build: Build, given: tuple[Any, ...]) -> None:
        """Launches a build that was checked, and keeps its plan for the next call."""
        if is_dynamo_compiling():
            registered.run(build)
            return
        prepared = launch.run(build)
        if prepared is not None and prepared.cheap and self is not NOWHERE:
            self.plan = Plan(prepared, build, given)
            self.like = like(_tensors(given))


NOWHERE = Slot()


class _Recent:
    """The slot of the last call with some options."""

    __slots__ = ("slot",)

    def __init__(self) -> None:
        self.slot = NOWHERE


def find(given: tuple[Any, ...], plain: bool, *options: Any) -> Slot:
    """The slot of a call, by the kinds of its tensors and by its options.

    Args:
        given: the call's tensors in the order of `NAMES`; None where there is none, or an int in its
            place.
        plain: whether only the first four and the outputs may be there.
        *options: all else that the launch and its checks depend on.

    Returns:
        The slot; `NOWHERE` for calls that allocate, that run on a CPU, that are traced, or that are wrong.
    """
    if given[-_OUTS] is None or is_dynamo_compiling():
        return NOWHERE
    source, rows, lens = given[:3]
    try:
        quick = plain and type(given[3]) is int
        if quick:
            recent = _recent(given[3], *options)
            if recent.slot.like(*_tensors(given)):
                return recent.slot
        device = source.get_device()
        if device < 0:
            return NOWHERE
        # written out, since each call would cost a tenth of a microsecond
        kinds = (
            device, source.dtype, source.shape, source.stride(),
            rows.dtype, rows.shape, rows.is_contiguous(), rows.get_device(),
            lens.dtype, lens.shape, lens.is_contiguous(), lens.get_device(),
        )  # fmt: skip
        more = (given[3], *given[-_OUTS:]) if plain else given[3:]
        slot = _slot(kinds, tuple([x if type(x) is int or x is None else kind(x) for x in more]), *options)
        if quick:
            recent.slot = slot
        return slot
    except (AttributeError, RuntimeError, TypeError):
        return NOWHERE  # not a tensor, or one without strides: the checks to come will name it


def _tensors(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those of a plain call."""
    if given[-2] is None:
        return given[0], given[1], given[2], given[-_OUTS]
    return given[0], given[1], given[2], *given[-_OUTS:-1]


@functools.lru_cache(maxsize=_MOST, typed=True)
def _slot(*_: Any) -> Slot:
    return Slot()


@functools.lru_cache(maxsize=_MOST, typed=True)
def _recent(*_: Any) -> _Recent:
    return _Recent()


def forget() -> None:
    """Forgets every plan."""
    _recent.cache_clear()
    _slot.cache_clear()


def warmup(op: Callable[..., Any], *args: Any, **options: Any) -> int:
    """Compiles and loads all that calls like this one can need, without making it.

    After it no call of that op compiles or loads that has the same page sizes and the same arguments
    given, whatever their batch, widths, strides, lengths, and int dtypes of ``[batch]`` arguments. It takes
    a second or so a kernel where Triton has none in its cache on disk, and does nothing on a CPU. An
    op's own ``Raises`` hold; syncs as that op does.

    Args:
        op: `xkv.build_page_table`, `xkv.build_kv_indices` or `xkv.build_slot_mapping`.
        *args: the op's.
        **options: the op's. Nothing is written to ``out``.

    Returns:
        How many kernels were not there before.
    """
    if not any(op is getattr(xkv, name) for name in _OPS):
        got = getattr(op, "__name__", type(op).__name__)
        raise TypeError(f"op must be one of {', '.join(f'xkv.{name}' for name in _OPS)}, got {got}")
    forget()  # a call that was planned would be made
    with launch.compile_only() as builds:
        op(*args, **options)
    return sum(launch.warm(build, None) for build in builds)


def kind(x: Any) -> Any:
    """What of a tensor a launch and its checks depend on."""
    return x.dtype, x.shape, x.stride(), x.get_device()
