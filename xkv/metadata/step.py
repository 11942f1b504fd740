"""One kind of step, of any batch: checked and compiled once, then launched with other rows and lengths."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..launch import compile, launch, verify
from ..launch.cache import CacheEntry
from ..launch.guards import addresses, make_guard, refuse
from ..launch.triton_launcher import launch_hooks_active
from ..params import CSR, INT32_MAX, ROW_MAX, Build
from ..status import Status

# What `MetadataBuilder.build` takes, where it is described: req_pool_indices, seq_lens, seq_lens_delta,
# query_lens, query_lens_sign, kv_start, window_kv_start. A plain tuple: a NamedTuple that is made in a
# compiled function ends its graph with an error (torch 2.11).
Inputs = tuple[Tensor, Tensor, int | Tensor, int | Tensor, int, Tensor | None, Tensor | None]


class Step:
    """The launches of all steps that differ in sizes, integers and data alone.

    Args:
        build: one of them, on the whole buffers; its inputs are replaced at every run.
        inputs: its inputs.
        check: with XKV_CHECK=1 the status to read after each run, else None.

    Attributes:
        guard: whether rows and lengths are of the same dtypes, strides and device as those of the last run.
    """

    def __init__(self, build: Build, inputs: Inputs, check: Status | None) -> None:
        self.guard = refuse
        self._build, self._check = build, check
        self._entry: CacheEntry | None = None
        self._at: tuple[int, ...] = ()  # where in a call's arguments the inputs go
        self._row_items = build.row_items
        self._capacity = build.views[0].room(CSR) if build.form == CSR else None
        self._delta_is_int = not isinstance(inputs[2], Tensor)
        self._query_is_int = not isinstance(inputs[3], Tensor)
        self._sums_queries = build.views[0].cu_seqlens_q is not None
        # where the number of query tokens decides how far a window reaches, and the host knows it
        window = build.views[-1].window
        self._window = window if self._query_is_int and not build.window_is_prefix_only else None

    def launch(self, rows: Tensor, lens: Tensor, most: int, delta: Any, query: Any) -> int | None:
        """Launches a decode or verify step like the last one; None where `run` must look at it.

        Args:
            rows: ``[batch]``, as `MetadataBuilder.build` was given them.
            lens: ``[batch]``, likewise.
            most: requests, at most.
            delta: tokens added to every length.
            query: query tokens of every request.

        Returns:
            The batch.
        """
        entry = self._entry
        if entry is None:
            return None
        try:
            pointer, lens_pointer = addresses((rows, lens))
            if not self.guard(rows, lens):
                return None
        except (AttributeError, RuntimeError, TypeError):
            return None
        (batch,), (count,) = lens.shape, rows.shape
        if (
            count != batch or batch > most or not pointer or not lens_pointer or launch_hooks_active()
            or not -ROW_MAX <= delta <= ROW_MAX or not 0 <= query <= INT32_MAX // (batch + 1)
        ):  # fmt: skip
            return None
        prepared = entry.prepared(batch, self._row_items)
        if prepared is None:
            return None
        call, args, compiled = prepared
        at_rows, at_lens, at_delta, at_query, _, _, at_window, at_capacity = self._at
        args[at_rows], args[at_lens], args[at_delta] = pointer, lens_pointer, delta
        if self._sums_queries:
            args[at_query] = query
        if self._window is not None:
            args[at_window] = self._window + max(query, 1) - 1
        if self._capacity is not None:
            args[at_capacity] = self._capacity
        compiled.launch(call)
        return batch

    def run(self, inputs: Inputs, most: int | None) -> bool:
        """Launches with these inputs, checked before and of this step's kind.

        Args:
            inputs: of a batch of any size.
            most: tokens of all rows together, at most; None: what the buffer holds.

        Returns:
            False, and launches nothing, where a tensor has no memory: its signature does not tell.
        """
        rows, lens, delta, query, _, start, window_start = inputs
        entry = self._entry
        if entry is None or launch_hooks_active():
            self._run(inputs, most)
            return True
        (batch,) = lens.shape
        prepared = entry.prepared(batch, self._row_items)
        if prepared is None:
            self._run(inputs, most)
            return True
        call, args, compiled = prepared  # patched in place: a builder serves one stream, and so one thread
        at_rows, at_lens, at_delta, at_query, at_start, at_window_start, at_window, at_capacity = self._at
        try:
            args[at_rows] = pointer = rows.data_ptr()
            args[at_lens] = lens_pointer = lens.data_ptr()
            there = pointer and lens_pointer
            if self._delta_is_int:
                args[at_delta] = delta
            else:
                args[at_delta] = pointer = delta.data_ptr()  # type: ignore[union-attr]
                there = there and pointer
            if not self._query_is_int:
                args[at_query] = pointer = query.data_ptr()  # type: ignore[union-attr]
                there = there and pointer
            else:
                if self._sums_queries:
                    args[at_query] = query
                if self._window is not None:
                    args[at_window] = self._window + max(query, 1) - 1
            if start is not None:
                args[at_start] = pointer = start.data_ptr()
                there = there and pointer
            if window_start is not None:
                args[at_window_start] = pointer = window_start.data_ptr()
                there = there and pointer
        except RuntimeError:
            return False
        if not there and batch:
            return False
        if self._capacity is not None:
            args[at_capacity] = self._capacity if most is None else min(most, self._capacity)
        compiled.launch(call)
        return True

    def _run(self, inputs: Inputs, most: int | None) -> None:
        """The same through a `Build`: the first time, on a CPU, and where launch hooks are active."""
        build = self.fill(inputs, most)
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
            self._at = tuple(compiled.first + compile.positions()[name] for name in names)
            self._entry = entry  # last but for the guard: a call may be interrupted
            self.guard = make_guard(inputs[:2])

    def fill(self, inputs: Inputs, most: int | None = None) -> Build:
        """The build with these inputs."""
        build = self._build
        build.req_pool_indices, build.seq_lens, delta, query, _, start, window_start = inputs
        build.seq_lens_delta, build.seq_lens_delta_rows = (
            (0, delta) if isinstance(delta, Tensor) else (delta, None)
        )
        build.query_len, build.query_lens = (0, query) if isinstance(query, Tensor) else (query, None)
        build.views[0].kv_start = start
        if build.form == CSR:
            build.views[0].max_entries = most
        if len(build.views) == 2:
            build.views[1].kv_start = window_start
        return build
