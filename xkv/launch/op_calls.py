"""The stateless ops in the launch cache: one signature for calls that differ in sizes and data alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import torch_library
from ..params import CAPACITY_MAX, INT32_MAX, MAX_BATCH, ROW_MAX, SLOTS, TABLE, Build
from . import launch
from .cache import CacheEntry, Entries, fits_int32
from .guards import addresses, make_guard, refuse
from .triton_launcher import launch_hooks_active

# The tensors of a call, by the kernel's names for them; what is read or written of each row first.
POINTERS = (
    "src_ptr", "rows_ptr", "lens_ptr", "out_ptr", "indptr_ptr", "last_ptr",
    "delta_ptr", "query_ptr", "start_ptr", "offset_ptr", "token_map_ptr", "page_map_ptr", "status_ptr",
)  # fmt: skip
_OUT, _INDPTR, _OPTIONAL, _OFFSET, _TOKEN_MAP, _PAGE_MAP = 3, 4, 6, 9, 10, 11
_OUTPUTS = (3, 4, 5, _OFFSET)
_SIZES = ("delta", "batch", "src_stride", "src_rows", "src_tokens", "out_stride", "capacity")
_MOST = 1024  # signatures: an engine has a few


# the sizes that the kernel is given, but for the delta; all tensors' lengths in bytes; the entries in one row
_Measured = tuple[list[int], list[int], int]


class _Known(NamedTuple):
    """What is known of the last call of a signature.

    Attributes:
        guard: of its tensors.
        entry: its launches.
        item_sizes: bytes of an element of each tensor.
        same: a guard of their sizes too: engines make calls of the same sizes again and again.
        last: what they were measured as.
    """

    guard: Callable[..., bool]
    entry: CacheEntry | None
    item_sizes: list[int]
    same: Callable[..., bool]
    last: _Measured | None


_NOTHING = _Known(refuse, None, [], refuse, None)


class Signature:
    """Calls of one op with the same options and the same arguments given.

    Args:
        given: whether each of `POINTERS` is.
        form, page_size, source_page_size, filled: as in `Build`; filled: whether there is a ``pad_value``.
    """

    __slots__ = (
        "_count", "_entries", "_known", "_names", "_pairs", "_sizes", "_sizes_before", "filled", "form",
        "given", "page_size", "source_page_size",
    )  # fmt: skip

    def __init__(
        self, given: Sequence[bool], form: int, page_size: int, source_page_size: int, filled: bool
    ) -> None:
        self.form, self.page_size, self.source_page_size = form, page_size, source_page_size
        self.filled = filled
        self.given = [n for n, there in enumerate(given) if there]
        # the first so many, and no others; 0: any
        self._count = len(self.given) if self.given == [*range(len(self.given))] else 0
        outputs = [k for k, n in enumerate(self.given) if n in _OUTPUTS]
        # each output, and what it has to be apart from that comes before it or is an input
        self._pairs = [
            (k, [n for n in range(len(self.given)) if n < k or (n > k and n not in outputs)]) for k in outputs
        ]
        self._names = [POINTERS[n] for n in self.given]
        maps = [name for name, n in (("token_map_len", _TOKEN_MAP), ("page_map_len", _PAGE_MAP)) if given[n]]
        self._sizes = (*_SIZES, *maps)
        self._entries = Entries()
        self._known = _NOTHING
        self._sizes_before: list[int] = []  # of the last call that was measured

    def launch(self, inputs: tuple[Any, ...], delta: int, bound: int | None) -> bool:
        """Launches a call like an earlier one; False where it is none, or must be looked at again.

        Args:
            inputs: a tensor or None for each of `POINTERS`.
            delta: tokens added to every length.
            bound: tokens of the longest row (tables) or of all of them; None: no bound.
        """
        tensors = inputs[: self._count] if self._count else [inputs[n] for n in self.given]
        known = self._known  # read once: other threads may put another in its place
        try:
            pointers = addresses(tensors)
            same = known.same(*tensors)  # also of the same sizes
            if not same and not known.guard(*tensors):
                known = self._looked_up(tensors)
            if known.entry is None or launch_hooks_active():
                return False
        except (AttributeError, RuntimeError, TypeError):
            return False  # no tensor, or one without memory: the checks to come will name it
        if type(delta) is not int or not -ROW_MAX <= delta <= ROW_MAX or 0 in pointers:
            return False
        measured = known.last if same and bound is None else self._measure(inputs, tensors, known, bound)
        if measured is None:
            return False
        sizes, lengths, row_items = measured
        for k, others in self._pairs:  # no output may overlap anything else
            low = pointers[k]
            high = low + lengths[k]
            for n in others:
                begin = pointers[n]
                if begin < high and low < begin + lengths[n]:
                    return False
        if not same and bound is None:
            if sizes == self._sizes_before:  # the second time: likely more to come
                self._known = known._replace(same=make_guard(tensors, sizes=True), last=measured)
            self._sizes_before = sizes
        return known.entry.launch(pointers, (delta, *sizes), sizes[0], row_items)

    def _measure(
        self, inputs: tuple[Any, ...], tensors: Sequence[Tensor], known: _Known, bound: int | None
    ) -> _Measured | None:
        """The sizes that the kernel is given, all tensors' lengths in bytes, and the entries in one row.

        None where they do not fit one another: the checks to come will say how.
        """
        # .shape and .stride() cost half of what .size(n) and .stride(n) do
        source, rows, lens, out = tensors[:4]
        (batch,), (entries,), item_sizes = lens.shape, rows.shape, known.item_sizes
        (source_rows, width), stride = source.shape, source.stride()[0]
        tokens = width * self.source_page_size
        if entries != batch or not 0 < batch <= MAX_BATCH or tokens > ROW_MAX or source_rows > INT32_MAX:
            return None
        longest = tokens
        if self.form == TABLE:
            (have, room), out_stride = out.shape, out.stride()[0]
            if have < batch or room > INT32_MAX or (have > 1 and out_stride < room):
                return None
            end = ((have - 1) * out_stride + room) * item_sizes[3]
            if bound is not None:
                if type(bound) is not int or not 0 <= bound <= min(room * self.page_size, ROW_MAX):
                    return None
                longest = min(tokens, bound)
        else:
            (room,), out_stride = out.shape, 0
            if room > INT32_MAX:
                return None
            end = room * item_sizes[3]
            if bound is not None and not (type(bound) is int and 0 <= bound <= room * self.page_size):
                return None
        capacity = min(room, CAPACITY_MAX)
        row_items = capacity
        if not self.filled and self.form != SLOTS:
            row_items = min(capacity, tokens // self.page_size + 1)
        sizes = [batch, stride, source_rows, longest, out_stride, capacity]
        source_end = ((source_rows - 1) * stride + width) * item_sizes[0]
        lengths = [source_end, batch * item_sizes[1], batch * item_sizes[2], end]
        if len(tensors) > 4 and not self._more(inputs, batch, known, sizes, lengths):
            return None
        return sizes, lengths, row_items

    def _more(
        self, inputs: tuple[Any, ...], batch: int, known: _Known, sizes: list[int], lengths: list[int]
    ) -> bool:
        """Whether the arguments beside the first four fit; adds their sizes, and their lengths in bytes."""
        for k, n in enumerate(self.given[4:], 4):
            (size,) = inputs[n].shape
            lengths.append(size * known.item_sizes[k])
            if n in _OUTPUTS:
                if size < batch + (n == _INDPTR):
                    return False
            elif n in (_TOKEN_MAP, _PAGE_MAP):
                sizes.append(size)
            elif size != (batch if n < _OFFSET else 1):
                return False
        return fits_int32(*sizes[len(_SIZES) - 1 :])

    def _looked_up(self, tensors: Sequence[Tensor]) -> _Known:
        """Looks the entry up by what Python says of the tensors, where the guard refuses them."""
        entry = self._entries.get(_key(tensors))
        if entry is None or any(x.size(-1) > 1 and x.stride(-1) != 1 for x in tensors):
            return _NOTHING
        return self._remember(tensors, entry)

    def run(self, build: Build, inputs: tuple[Any, ...]) -> None:
        """Launches a build that was checked, and keeps what it was launched with."""
        if is_dynamo_compiling():
            torch_library.run(build)
            return
        compiled = launch.run(build)
        if compiled is None or self is UNCACHED:
            return
        tensors = [inputs[n] for n in self.given]
        entry = self._entries.made(_key(tensors), build, compiled, self._names, self._sizes)
        if entry is not None:
            self._remember(tensors, entry)

    def _remember(self, tensors: Sequence[Tensor], entry: CacheEntry) -> _Known:
        item_sizes = [x.element_size() for x in tensors]
        self._known = known = _Known(make_guard(tensors), entry, item_sizes, refuse, None)
        return known


def _key(tensors: Sequence[Tensor]) -> Any:
    """What decides which kernel is compiled and where it runs, and a tensor's rank."""
    return tuple([(x.dtype, x.dim(), x.get_device(), type(x)) for x in tensors])


UNCACHED = Signature([False] * len(POINTERS), TABLE, 1, 1, False)


def lookup(inputs: tuple[Any, ...], plain: bool, form: int, *options: Any) -> Signature:
    """Returns the signature of a call, by its options and the arguments that are given.

    Args:
        inputs: a tensor or None for each of `POINTERS`.
        plain: whether there are only those that the form cannot do without.
        form: TABLE, CSR or SLOTS.
        *options: page size, source page size and pad_value first, then all else that the launch depends on.

    Returns:
        `UNCACHED` for calls that allocate, that are traced, or whose options are of a wrong type.
    """
    if inputs[_OUT] is None or is_dynamo_compiling():
        return UNCACHED
    try:
        return _signature(plain or tuple([x is not None for x in inputs]), form, *options)
    except TypeError:
        return UNCACHED  # an option that cannot be hashed: the checks to come will name it


@functools.lru_cache(maxsize=_MOST, typed=True)
def _signature(given: Any, form: int, page_size: int, unit: int, fill: Any, *_: Any) -> Signature:
    if given is True:
        given = [n < (_INDPTR if form == TABLE else _OPTIONAL) for n in range(len(POINTERS))]
    return Signature(given, form, page_size, unit, fill is not None)


def forget() -> None:
    """Forgets every signature, so that the next call of each is checked and compiled anew."""
    _signature.cache_clear()
