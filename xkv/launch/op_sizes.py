"""The sizes of an op's call: what the kernel is given of them, and whether they are consistent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..params import CAPACITY_MAX, CSR, INT32_MAX, MAX_BATCH, ROW_MAX, SLOTS, TABLE
from ..shard import Shard, local_length, source_tokens
from .cache import fits_int32

# The tensors of a call, by the kernel's names. Those that are not per request come last.
POINTERS = (
    "src_ptr", "rows_ptr", "lens_ptr", "out_ptr", "indptr_ptr", "last_ptr",
    "delta_ptr", "query_ptr", "start_ptr", "offset_ptr", "token_map_ptr", "page_map_ptr", "status_ptr",
    "positions_ptr",
)  # fmt: skip
OUT, INDPTR, LAST, QUERY, OFFSET, TOKEN_MAP, PAGE_MAP, POSITIONS = 3, 4, 5, 7, 9, 10, 11, 13
OUTPUTS = (OUT, INDPTR, LAST, OFFSET)
REQUIRED = {TABLE: (0, 1, 2, OUT), CSR: (0, 1, 2, OUT, INDPTR, LAST), SLOTS: (0, 1, 2, OUT, QUERY)}  # by form
_SIZES = ("batch", "src_stride", "src_rows", "src_tokens", "out_stride", "capacity")
SRC_TOKENS = 3
_LENGTHS = {TOKEN_MAP: "token_map_len", PAGE_MAP: "page_map_len", POSITIONS: "positions_len"}


class Measured(NamedTuple):
    """The sizes of a call.

    Attributes:
        sizes: the integers of `OpSizes.names`; the first is the batch size.
        lengths: of each tensor, bytes.
        row_items: upper bound of the entries in one row.
        max_bound: tokens, the largest ``max_seq_len`` or ``max_tokens`` that the output has room for.
    """

    sizes: list[int]
    lengths: list[int]
    row_items: int
    max_bound: int


class OpSizes:
    """The sizes of an op's calls with the same options and the same arguments present (not None).

    Args:
        present: the indices in `POINTERS` of those that are.
        form: TABLE, CSR or SLOTS.
        page_size, source_page_size: tokens per output page and per source entry.
        has_pad_value: whether ``pad_value`` is not None.
        shard: the rank's share of each row; not checked yet.

    Attributes:
        names: the kernel's names of the sizes.
        outputs: the indices in ``present`` of the outputs.
    """

    def __init__(
        self, present: Sequence[int], form: int, page_size: int, source_page_size: int, has_pad_value: bool,
        shard: Shard | None,
    ) -> None:  # fmt: skip
        self._form, self._has_pad_value = form, has_pad_value
        self._page_size, self._source_page_size, self._shard = page_size, source_page_size, shard
        self._optional = present[4:]
        self.names = (*_SIZES, *(name for n, name in _LENGTHS.items() if n in present))
        # of slots, where each row's query tokens begin is an input
        self._outputs = [n for n in OUTPUTS if form != SLOTS or n != INDPTR]
        self.outputs = [k for k, n in enumerate(present) if n in self._outputs]

    def measure(self, tensors: Sequence[Tensor], item_sizes: Sequence[int]) -> Measured | None:
        """Returns a call's sizes; None if they are inconsistent, which the full checks report.

        Args:
            tensors: those that are present, of an earlier call's dtypes, ranks, inner strides and devices.
            item_sizes: bytes per element of each.
        """
        # .shape and .stride() take half the time of .size(n) and .stride(n)
        source, rows, lens, out = tensors[:4]
        (batch,), (num_rows,) = lens.shape, rows.shape
        (source_rows, width), stride = source.shape, source.stride()[0]
        tokens = width * self._source_page_size
        if num_rows != batch or not 0 < batch <= MAX_BATCH or tokens > ROW_MAX or source_rows > INT32_MAX:
            return None
        shard = self._shard
        if shard is not None:
            tokens = min(source_tokens(tokens, shard), ROW_MAX)
        if self._form == TABLE:
            (out_rows, out_width), out_stride = out.shape, out.stride()[0]
            if out_rows < batch or (out_rows > 1 and out_stride < out_width):
                return None
            out_bytes = ((out_rows - 1) * out_stride + out_width) * item_sizes[3]
            room = out_width * self._page_size
            max_bound = min(room if shard is None else shard.longest(room), ROW_MAX)
        else:
            (out_width,), out_stride = out.shape, 0
            out_bytes = out_width * item_sizes[3]
            max_bound = out_width * self._page_size
            if shard is not None and self._form == CSR:
                max_bound = (max_bound + 1) * shard.size - 1
        if out_width > INT32_MAX:
            return None
        capacity = min(out_width, CAPACITY_MAX)
        row_items = capacity
        if not self._has_pad_value and self._form != SLOTS:
            row_items = min(capacity, local_length(tokens, shard) // self._page_size + 1)
        sizes = [batch, stride, source_rows, tokens, out_stride, capacity]
        source_bytes = ((source_rows - 1) * stride + width) * item_sizes[0]
        lengths = [source_bytes, batch * item_sizes[1], batch * item_sizes[2], out_bytes]
        if len(tensors) > 4 and not self._measure_optional(tensors[4:], item_sizes[4:], sizes, lengths):
            return None
        if POSITIONS in self._optional and not self._has_pad_value:
            row_items = min(row_items, sizes[-1])
        return Measured(sizes, lengths, row_items, max_bound)

    def _measure_optional(
        self, tensors: Sequence[Tensor], item_sizes: Sequence[int], sizes: list[int], lengths: list[int]
    ) -> bool:
        """Appends sizes, and lengths in bytes, of all but the first four tensors; False if inconsistent."""
        batch = sizes[0]
        for n, x, item_size in zip(self._optional, tensors, item_sizes, strict=True):
            (size,) = x.shape
            lengths.append(size * item_size)
            if n in self._outputs:
                if size < batch + (n == INDPTR):
                    return False
            elif n in _LENGTHS:
                sizes.append(size)
            elif n == INDPTR:
                if size != batch + 1:
                    return False
            elif size != (batch if n < OFFSET else 1):
                return False
        return fits_int32(*sizes[len(_SIZES) :])
