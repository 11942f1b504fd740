"""Calls of an op with the same sizes: only addresses, the delta and the bound are new in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .cache import CacheEntry, PreparedCall
from .guards import refuse
from .op_sizes import OUT, SRC_TOKENS, Measured


class SameSizes:
    """Calls of one signature and launch cache entry with the same sizes and strides.

    A tensor overlaps an output if the difference of their addresses is more than minus the tensor's bytes
    and less than the output's. The source, the rows, the lengths and the first output, which every call has,
    are written out below: a loop over them would take as long as their guard. It keeps no tensor alive.

    Args:
        entry: the entry in the launch cache.
        measured: the sizes.
        outputs: the indices of the outputs among the tensors.

    Attributes:
        guard: guard of the tensors' sizes too; refuses everything until it is set.
        entry: the entry.
        measured: the sizes.
    """

    __slots__ = (
        "_bounds", "_more_bounds", "_more_positions", "_no_overlap_at", "_positions", "_unused", "entry",
        "guard", "measured",
    )  # fmt: skip

    def __init__(self, entry: CacheEntry, measured: Measured, outputs: Sequence[int]) -> None:
        self.guard: Callable[..., bool] = refuse
        self.entry, self.measured = entry, measured
        lengths = measured.lengths
        src, rows, lens, out = lengths[:4]
        self._bounds = -src, -rows, -lens, out
        # the other pairs of an output and an input, or an output before it
        self._more_bounds = [
            (k, n, -lengths[n], lengths[k])
            for k in outputs
            for n in range(len(lengths))
            if (n < k != OUT) or (n > k and n not in outputs)
        ]
        self._no_overlap_at: list[int] = []  # the addresses that were compared last
        at, count = entry.positions, len(lengths)  # of the pointers, the delta and the sizes
        self._positions = at[0], at[1], at[2], at[3], at[count], at[count + 1 + SRC_TOKENS]
        self._more_positions = at[4:count]
        # calls to write into, each taken from here by one thread at a time
        self._unused: list[PreparedCall] = []

    def launch(self, pointers: list[int], delta: int, src_tokens: int) -> bool:
        """Launches; returns False if tensors overlap, or no kernel is compiled for these sizes.

        Args:
            pointers: addresses of the tensors, none of them 0.
            delta: tokens added to every length.
            src_tokens: tokens of a source row that are read, at most.
        """
        src, rows, lens, out = pointers[:4]
        src_low, rows_low, lens_low, high = self._bounds
        if src_low < src - out < high or rows_low < rows - out < high or lens_low < lens - out < high:
            return False
        more_positions = self._more_positions
        if more_positions and pointers != self._no_overlap_at:
            for output, other, low, high in self._more_bounds:
                if low < pointers[other] - pointers[output] < high:
                    return False
            self._no_overlap_at = pointers
        try:
            prepared = self._unused.pop()
        except IndexError:  # the first call, or other threads have all of them
            sizes, _, row_items, _ = self.measured
            found = self.entry.prepare(pointers, (delta, *sizes), sizes[0], row_items)
            if found is None:
                return False
            prepared = found
        call, args, compiled = prepared
        at_src, at_rows, at_lens, at_out, at_delta, at_src_tokens = self._positions
        args[at_src], args[at_rows], args[at_lens], args[at_out] = src, rows, lens, out
        args[at_delta], args[at_src_tokens] = delta, src_tokens
        if more_positions:
            for n, pointer in zip(more_positions, pointers[4:]):  # noqa: B905 (strict costs time)
                args[n] = pointer
        compiled.launch(call)
        self._unused.append(prepared)
        return True
