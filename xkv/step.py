"""One kind of step of one batch size: prepared once, then run with other rows and lengths."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from xkv import launch, oracle
from xkv.buffers import Metadata
from xkv.build import INT32_MAX, ROW_MAX, Build
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

    def kinds(self) -> tuple[Any, ...]:
        """All that a prepared launch depends on; equal for inputs that differ in data alone."""
        rows, lens, delta, query, sign, start, window_start = self
        return (
            _kind(rows), _kind(lens), getattr(lens, "shape", None),
            int if type(delta) is int else _kind(delta), int if type(query) is int else _kind(query),
            sign, None if start is None else _kind(start),
            None if window_start is None else _kind(window_start),
        )  # fmt: skip


def _kind(x: Any) -> Any:
    return x.dtype if isinstance(x, Tensor) else type(x)


class Step:
    """A prepared launch and the metadata it writes.

    Args:
        build: the launch; its inputs are replaced at every run.
        metadata: what `MetadataBuilder.build` returns.
        check: with XKV_CHECK=1 the status to read after each run, else None.
    """

    def __init__(self, build: Build, metadata: Metadata, check: Status | None) -> None:
        self.metadata = metadata
        self._build, self._check = build, check
        self._batch, self._device = build.batch, build.req_to_token.device
        self._most_queries = INT32_MAX // (build.batch + 1)
        self._prepared: launch.Prepared | None = None

    def fits(self, inputs: StepInputs) -> bool:
        """Whether inputs of this kind have the shape, place and range that they must have."""
        rows, lens, delta, query, _, start, window_start = inputs
        batch, device = self._batch, self._device
        for x in (rows, lens, start, window_start):
            if x is not None and not _is_vector(x, batch, device):
                return False
        if type(delta) is int:
            if not -ROW_MAX <= delta <= ROW_MAX:
                return False
        elif not _is_vector(delta, batch, device):
            return False
        if type(query) is int:
            return 0 <= query <= self._most_queries
        return _is_vector(query, batch, device)

    def run(self, inputs: StepInputs) -> None:
        """Launches with these inputs, checked before and of this step's kind."""
        rows, lens, delta, query, _, start, window_start = inputs
        build = self._build
        build.req_pool_indices, build.seq_lens = rows, lens
        if type(delta) is int:
            build.seq_lens_delta = delta
        else:
            build.seq_lens_delta_rows = delta  # type: ignore[assignment]
        if type(query) is int:
            build.query_len = query
        else:
            build.query_lens = query  # type: ignore[assignment]
        build.views[0].kv_start = start
        if len(build.views) == 2:
            build.views[1].kv_start = window_start
        if self._check is not None and not oracle.capturing(build.req_to_token):
            oracle.run_checked(build, self._check)
        elif self._device.type != "cuda":
            launch.run(build)
        else:
            self._launch(inputs)

    def _launch(self, inputs: StepInputs) -> None:
        prepared = self._prepared
        if prepared is None:
            prepared = self._prepared = launch.prepare(self._build)
        else:
            rows, lens, delta, query, _, start, window_start = inputs
            args, at = prepared.args, launch.positions()
            args[at["rows_ptr"]], args[at["lens_ptr"]] = rows.data_ptr(), lens.data_ptr()
            if type(delta) is int:
                args[at["delta"]] = delta
            else:
                args[at["delta_ptr"]] = delta.data_ptr()  # type: ignore[union-attr]
            if type(query) is not int:
                args[at["query_ptr"]] = query.data_ptr()  # type: ignore[union-attr]
            elif args[at["query_len"]] is not None:
                args[at["query_len"]] = query
            if start is not None:
                args[at["start_ptr"]] = start.data_ptr()
            if window_start is not None:
                args[at["start2_ptr"]] = window_start.data_ptr()
        prepared()


def _is_vector(x: Any, batch: int, device: Any) -> bool:
    return (
        x.dim() == 1 and x.shape[0] == batch and x.device == device and (batch < 2 or x.stride(0) == 1)
    )
