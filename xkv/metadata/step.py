"""The launch of one step signature: checked and compiled once, then launched with other rows and lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .. import arguments
from ..launch import compile, launch, verify
from ..launch.cache import CacheEntry, PreparedCall
from ..launch.guards import LOWEST, have_memory, make_guard, refuse
from ..launch.triton_launcher import launch_hooks_active
from ..params import CSR, INT32_MAX, ROW_MAX, Build
from ..status import Status
from .buffers import Buffers, Metadata

# The arguments of `MetadataBuilder.build`, which describes them: req_pool_indices, seq_lens, seq_lens_delta,
# query_lens, query_lens_sign, kv_start, window_kv_start. A plain tuple: making a NamedTuple inside a compiled
# function ends its graph with an error (torch 2.11).
Inputs = tuple[Tensor, Tensor, int | Tensor, int | Tensor, int, Tensor | None, Tensor | None]
_MAX_BATCHES = 1024  # batch sizes that a step keeps


class _SameBatch(NamedTuple):
    """Builds of one batch size.

    Attributes:
        guard: guard of rows and lengths with their size.
        metadata: what such a build returns.
        max_query: query tokens of every request, at most.
        prepared: the call to write into.
    """

    guard: Callable[..., bool]
    metadata: Metadata
    max_query: int
    prepared: PreparedCall


class Step:
    """The launches of all builds of one signature: they differ in sizes, integers and data alone.

    Args:
        build: one of them, on the whole buffers; its inputs are replaced at every run.
        inputs: its inputs.
        max_batch_size: requests, at most.
        buffers: of the builder.
        check: with XKV_CHECK=1 the status to read after each run, otherwise None.

    Attributes:
        guard: checks that rows and lengths have the dtypes, strides and device of the last run's.
    """

    def __init__(
        self, build: Build, inputs: Inputs, max_batch_size: int, buffers: Buffers, check: Status | None
    ) -> None:
        self.guard = refuse
        self._max_batch_size, self._buffers = max_batch_size, buffers
        self._by_batch: dict[int, _SameBatch] = {}
        self._last: _SameBatch | None = None
        self._build, self._check = build, check
        self._entry: CacheEntry | None = None
        self._positions: tuple[int, ...] = ()  # of the inputs among the arguments of a call
        self._row_items = build.row_items
        self._capacity = build.views[0].buffer_capacity(CSR) if build.form == CSR else None
        self._delta_is_int = not isinstance(inputs[2], Tensor)
        self._query_is_int = not isinstance(inputs[3], Tensor)
        self._sums_queries = build.views[0].cu_seqlens_q is not None
        # set if the window grows with the query tokens, and the host knows their number
        window = build.views[-1].window
        self._window = window if self._query_is_int and not build.window_is_prefix_only else None

    def launch(self, rows: Tensor, lens: Tensor, delta: Any, query: Any) -> Metadata | None:
        """Launches a decode or verify step like the last one; returns None if it needs `run`.

        Args:
            rows: ``[batch]``, ``req_pool_indices`` of `MetadataBuilder.build`, unchecked.
            lens: ``[batch]``, ``seq_lens``, likewise.
            delta: tokens added to every length: an int, unchecked.
            query: query tokens of every request: likewise.

        Returns:
            What the build returns.
        """
        same = self._last
        try:
            if rows.is_nested or lens.is_nested:  # as in `addresses`, without its list
                return None
            rows_address, lens_address = rows.data_ptr(), lens.data_ptr()
            if same is None or not same.guard(rows, lens):
                same = self._find(rows, lens)
        except (AttributeError, RuntimeError, TypeError):
            return None
        if (
            same is None or launch_hooks_active()
            or not -ROW_MAX <= delta <= ROW_MAX or not 0 <= query <= same.max_query
            or ((rows_address < LOWEST or lens_address < LOWEST) and not have_memory((0,), (rows, lens)))
        ):  # fmt: skip
            return None
        _, metadata, _, (call, args, compiled) = same
        at_rows, at_lens, at_delta, at_query, _, _, at_window, at_capacity = self._positions
        args[at_rows], args[at_lens], args[at_delta] = rows_address, lens_address, delta
        if self._sums_queries:
            args[at_query] = query
        if self._window is not None:
            args[at_window] = self._window + max(query, 1) - 1
        if self._capacity is not None:
            args[at_capacity] = self._capacity
        compiled.launch(call)
        return metadata

    def _find(self, rows: Tensor, lens: Tensor) -> _SameBatch | None:
        """Returns what is known of this batch size, after the last one's guard has refused the tensors."""
        batch = lens.numel()
        found = self._by_batch.get(batch)
        if found is None or not found.guard(rows, lens):
            if (
                not self.guard(rows, lens) or rows.numel() != batch or batch > self._max_batch_size
                or self._entry is None
            ):  # fmt: skip
                return None
            prepared = self._entry.prepared(batch, self._row_items)
            if prepared is None:
                return None
            # a guard takes longer to make than a launch: only for a batch size that came before
            guard = refuse if found is None else make_guard((rows, lens), sizes=True)
            if len(self._by_batch) >= _MAX_BATCHES:
                self._by_batch.clear()
            metadata = self._buffers.metadata(batch, False, False, None)
            found = self._by_batch[batch] = _SameBatch(guard, metadata, INT32_MAX // (batch + 1), prepared)
        self._last = found
        return found

    def run(self, inputs: Inputs, max_entries: int | None) -> bool:
        """Launches with these inputs, which were checked and have this step's signature.

        Args:
            inputs: of a batch of any size.
            max_entries: host bound of the entries of the stream. None: the buffer's capacity.

        Returns:
            False, without a launch, if a tensor has no memory, which a signature does not show.
        """
        rows, lens, delta, query, _, start, window_start = inputs
        entry = self._entry
        if entry is None or launch_hooks_active():
            self._run(inputs, max_entries)
            return True
        (batch,) = lens.shape
        prepared = entry.prepared(batch, self._row_items)
        if prepared is None:
            self._run(inputs, max_entries)
            return True
        call, args, compiled = prepared  # written in place: a builder serves one stream, so one thread
        at_rows, at_lens, at_delta, at_query, at_start, at_window_start, at_window, at_capacity = (
            self._positions
        )
        try:
            args[at_rows] = address = rows.data_ptr()
            args[at_lens] = lens_address = lens.data_ptr()
            lowest = min(address, lens_address)
            if self._delta_is_int:
                args[at_delta] = delta
            else:
                args[at_delta] = address = delta.data_ptr()  # type: ignore[union-attr]
                lowest = min(lowest, address)
            if not self._query_is_int:
                args[at_query] = address = query.data_ptr()  # type: ignore[union-attr]
                lowest = min(lowest, address)
            else:
                if self._sums_queries:
                    args[at_query] = query
                if self._window is not None:
                    args[at_window] = self._window + max(query, 1) - 1
            if start is not None:
                args[at_start] = address = start.data_ptr()
                lowest = min(lowest, address)
            if window_start is not None:
                args[at_window_start] = address = window_start.data_ptr()
                lowest = min(lowest, address)
        except RuntimeError:
            return False
        if batch and not have_memory((lowest,), inputs):
            return False
        if self._capacity is not None:
            args[at_capacity] = self._capacity if max_entries is None else min(max_entries, self._capacity)
        compiled.launch(call)
        return True

    def _run(self, inputs: Inputs, max_entries: int | None) -> None:
        """Runs a `Build`: the first time, on a CPU, and while launch hooks are active."""
        build = self.fill(inputs, max_entries)
        if self._check is not None and not verify.capturing(build.req_to_token):
            verify.run_checked(build, self._check)
            return
        compiled = launch.run(build)
        if compiled is not None and compiled.fast_path and self._check is None:
            entry = self._entry or CacheEntry(build, (), ("batch",))
            entry.add(compiled)
            names = (
                "rows_ptr", "lens_ptr", "delta" if self._delta_is_int else "delta_ptr",
                "query_len" if self._query_is_int else "query_ptr", "start_ptr", "start2_ptr",
                "window2", "capacity",
            )  # fmt: skip
            self._positions = tuple(compiled.first + compile.positions()[name] for name in names)
            # set last, the guard after it: an interrupt may come between any two lines
            self._entry = entry
            self.guard = make_guard(inputs[:2])

    def fill(self, inputs: Inputs, max_entries: int | None = None) -> Build:
        """Puts the inputs into the step's build and returns it."""
        build = self._build
        build.req_pool_indices, build.seq_lens, delta, query, _, start, window_start = inputs
        build.seq_lens_delta_rows, build.seq_lens_delta = arguments.tensor_and_int(delta)
        build.query_lens, build.query_len = arguments.tensor_and_int(query)
        build.views[0].kv_start = start
        if build.form == CSR:
            build.views[0].max_entries = max_entries
        if len(build.views) == 2:
            build.views[1].kv_start = window_start
        return build
