"""One kind of step of one batch size: prepared once, then run with other rows and lengths."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from xkv import launch, oracle
from xkv.buffers import Metadata
from xkv.build import CSR, Build
from xkv.launcher import watched
from xkv.likeness import like, unlike
from xkv.status import Status


class StepInputs(NamedTuple):
    """What `MetadataBuilder.build` takes; there it is described."""

    req_pool_indices: Tensor
    seq_lens: Tensor
    seq_lens_delta: int | Tensor
    query_lens: int | Tensor
    query_lens_sign: int
    kv_start: Tensor | None
    window_kv_start: Tensor | None


def kind(x: Any) -> Any:
    """What of a vector on a GPU a launch and its checks depend on."""
    return x.dtype, x.shape, x.is_contiguous(), x.get_device()


class Step:
    """A prepared launch and the metadata it writes.

    Args:
        build: the launch; its inputs are replaced at every run.
        metadata: what `MetadataBuilder.build` returns.
        most_queries: query tokens of a request, where one number stands for all of them.
        check: with XKV_CHECK=1 the status to read after each run, else None.
    """

    def __init__(self, build: Build, metadata: Metadata, most_queries: int, check: Status | None) -> None:
        self.metadata = metadata
        self.most_queries = most_queries
        self._build, self._check = build, check
        self._prepared: launch.Prepared | None = None
        self.like = unlike  # whether rows and lengths are like those that it was prepared with
        self._at: tuple[int, ...] = ()
        # of a stream, whose length a step may bound
        self._capacity = build.views[0].room(CSR) if build.form == CSR else None
        window = build.views[-1].window
        # what of a window the host has to work out anew with the number of query tokens
        self._window = None if build.window_is_prefix_only else window

    def run(
        self,
        rows: Tensor,
        lens: Tensor,
        delta: int | Tensor,
        query: int | Tensor,
        start: Tensor | None,
        window_start: Tensor | None,
        most: int | None,
    ) -> bool:
        """Launches with these inputs, checked before and of this step's kind.

        ``most``: tokens of all rows together, at most, or None.

        Returns:
            False, and launches nothing, where a tensor has no memory: its kind does not tell.
        """
        prepared = self._prepared
        if prepared is None or watched():
            self._run(rows, lens, delta, query, start, window_start, most)
            return True
        # in place: a builder serves one stream, and so one thread, at a time
        args = prepared.args
        at_rows, at_lens, at_delta, at_query, at_start, at_window_start, at_window, at_capacity = self._at
        try:
            args[at_rows] = pointer = rows.data_ptr()
            args[at_lens] = lens_pointer = lens.data_ptr()
            there = pointer and lens_pointer
            if type(delta) is int:
                args[at_delta] = delta
            else:
                args[at_delta] = pointer = delta.data_ptr()  # type: ignore[union-attr]
                there = there and pointer
            if args[at_query] is not None:
                if type(query) is int:
                    args[at_query] = query
                else:
                    args[at_query] = pointer = query.data_ptr()  # type: ignore[union-attr]
                    there = there and pointer
            if self._window is not None and type(query) is int:
                args[at_window] = self._window + max(query, 1) - 1
            if start is not None:
                args[at_start] = pointer = start.data_ptr()
                there = there and pointer
            if window_start is not None:
                args[at_window_start] = pointer = window_start.data_ptr()
                there = there and pointer
        except RuntimeError:
            return False
        if not there and self._build.batch:
            return False
        if self._capacity is not None:
            args[at_capacity] = self._capacity if most is None else min(most, self._capacity)
        prepared.launch(prepared.call)
        return True

    def _run(
        self, rows: Any, lens: Any, delta: Any, query: Any, start: Any, window_start: Any, most: int | None
    ) -> None:
        """The same through a `Build`: the first time, on a CPU, and where launches are watched."""
        build = self.fill(rows, lens, delta, query, start, window_start, most)
        if self._check is not None and not oracle.capturing(build.req_to_token):
            oracle.run_checked(build, self._check)
            return
        prepared = launch.run(build)
        if prepared is not None and prepared.cheap and self._check is None:
            names = (
                "rows_ptr", "lens_ptr", "delta" if build.seq_lens_delta_rows is None else "delta_ptr",
                "query_len" if build.query_lens is None else "query_ptr", "start_ptr", "start2_ptr",
                "window2", "capacity",
            )  # fmt: skip
            self._at = tuple(prepared.first + launch.positions()[name] for name in names)
            self._prepared = prepared
            self.like = like((rows, lens))

    def fill(
        self, rows: Any, lens: Any, delta: Any, query: Any, start: Any, window_start: Any,
        most: int | None = None,
    ) -> Build:  # fmt: skip
        """The build with these inputs."""
        build = self._build
        build.req_pool_indices, build.seq_lens = rows, lens
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
