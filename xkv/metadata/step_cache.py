"""The steps of one `MetadataBuilder`, by signature: a step's arguments are checked when it is new."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import arguments, switches
from ..launch import compile
from ..launch.cache import sums_fit
from ..params import INT32_MAX, ROW_MAX, TABLE, Build, View
from ..status import Status
from .buffers import Buffers, Metadata
from .config import BuilderConfig
from .step import Inputs, Step


class StepCache:
    """Returns the `Step` of a build's arguments, and checks them.

    Args:
        config: the builder's.
        buffers: its buffers.
        status: where builds report.
    """

    def __init__(self, config: BuilderConfig, buffers: Buffers, status: Status) -> None:
        self._config, self._buffers, self._status = config, buffers, status
        self._views = buffers.views
        self._req_to_token, self._max_batch_size = config.req_to_token, config.max_batch_size
        self._on_cpu = config.req_to_token.device.type == "cpu"
        self._always_check = switches.on("XKV_CHECK")
        self._by_signature: dict[tuple[Any, ...], Step] = {}  # a few: by dtypes and which arguments are None

    def run(
        self, inputs: Inputs, ints_only: bool, max_tokens: int | None, extends: bool
    ) -> tuple[Step, Metadata]:  # fmt: skip
        """Builds a step whose arguments were not checked. Returns it, and what the build returns.

        Args:
            inputs: of the build.
            ints_only: whether only ints are given beside rows and lengths.
            max_tokens: of the build.
            extends: whether only what is new in each row of a table is written.
        """
        step = self.lookup(inputs, extends)
        rows, lens, delta, query, _, start, window_start = inputs
        batch: int = lens.shape[0]
        if (
            not ints_only
            or self._on_cpu  # where no guard tells one device from another
            or rows.shape[0] != batch
            or batch > self._max_batch_size
            or not -ROW_MAX <= delta <= ROW_MAX
            or not 0 <= query <= INT32_MAX // (batch + 1)
        ):
            inputs = self.check(inputs)
        if max_tokens is not None:
            self.check_max_tokens(max_tokens)
        # at page size 1 an entry is a token
        max_entries = max_tokens if self._config.page_size == 1 else None
        if not step.run(inputs, max_entries):
            self.check(inputs)
        metadata = self._buffers.metadata(batch, start is not None, window_start is not None, max_entries)
        return step, metadata

    def lookup(self, inputs: Inputs, extends: bool) -> Step:
        """Returns the step of this signature; checks the inputs and makes it if there is none yet."""
        try:
            key = (extends, inputs[4], *[_tensor_signature(x) for x in inputs])
        except (AttributeError, RuntimeError):  # not a tensor, or one without strides: the check names it
            key = None
        step = None if key is None else self._by_signature.get(key)
        if step is None:
            inputs = self.check(inputs)
            key = (extends, inputs[4], *[_tensor_signature(x) for x in inputs])
            step = self._by_signature.setdefault(key, self.make(inputs, extends))
        return step

    def check(self, inputs: Inputs) -> Inputs:
        """Checks the arguments of a build.

        Returns:
            The inputs, with subclasses of int (such as an IntEnum) as plain ints.

        Raises:
            TypeError, ValueError: as in `MetadataBuilder.build`.
        """
        source = self._req_to_token
        rows, lens, delta, query, sign, start, window_start = inputs
        arguments.tensor("seq_lens", lens, 1, source)
        batch = lens.shape[0]
        if batch > self._max_batch_size:
            raise ValueError(
                f"seq_lens must have at most max_batch_size={self._max_batch_size} entries, got {batch}"
            )
        sign = arguments.integer("query_lens_sign", sign, -1, 1)
        arguments.per_row("req_pool_indices", rows, source, batch)
        for name, value in (("kv_start", start), ("window_kv_start", window_start)):
            if value is not None:
                arguments.per_row(name, value, source, batch)
        if window_start is not None and self._config.sink_tokens is not None:
            raise ValueError("window_kv_start must be None with sink_tokens, got a tensor")
        if window_start is not None and len(self._views) == 1:
            raise ValueError("window_kv_start needs a builder with a sliding window, got one without")
        delta = arguments.int_or_per_row("seq_lens_delta", delta, source, batch, -ROW_MAX, ROW_MAX)
        query = arguments.int_or_per_row("query_lens", query, source, batch, 0, INT32_MAX // (batch + 1))
        if sign and not isinstance(query, Tensor):
            raise ValueError("query_lens_sign needs query_lens as a tensor, got an int")
        return rows, lens, delta, query, sign, start, window_start

    def check_max_tokens(self, max_tokens: int) -> None:
        """Checks ``max_tokens`` of a build: the host does not know the sum of a shard's lengths."""
        arguments.integer("max_tokens", max_tokens, 0, self._config.max_tokens)
        if self._config.shard is not None:
            raise ValueError(f"max_tokens must be None for a builder with a shard, got {max_tokens}")

    def make(self, inputs: Inputs, extends: bool) -> Step:
        """Returns a new step for checked inputs."""
        views = [used_view(view, start) for view, start in zip(self._views, inputs[5:], strict=False)]
        build = make_build(self._config, views, self._status, inputs, extends)
        check = self._status if self._always_check else None
        return Step(build, inputs, self._max_batch_size, self._buffers, check)

    def warmup(self, *, ragged: bool, row_deltas: bool, chunks: bool, extends: bool) -> int:
        """As `MetadataBuilder.warmup`."""
        one = torch.ones(1, dtype=torch.int32, device=self._req_to_token.device)
        starts = (None, one) if chunks else (None,)
        deltas: list[int | Tensor] = [0, one] if row_deltas else [0]
        queries: list[int | Tensor] = [1, one] if ragged else [1]
        window_starts = starts if len(self._views) == 2 else (None,)
        loaded = 0
        for delta, query, start, window_start, extend in itertools.product(
            deltas, queries, starts, window_starts, {False, extends}
        ):
            inputs: Inputs = (one, one, delta, query, 0, start, window_start)
            loaded += compile.warm(self.make(inputs, extend).fill(inputs), self._max_batch_size)
        return loaded


def used_view(view: View, start: Tensor | None) -> View:
    """The view, without offsets of first tokens if all rows begin at token 0."""
    return view if start is not None or view.window is not None else replace(view, kv_start_offset=None)


def make_build(
    config: BuilderConfig, views: Sequence[View], status: Status, inputs: Inputs, extends: bool
) -> Build:  # fmt: skip
    """Returns what a builder launches for these views and checked inputs, but for what each view takes."""
    spec = config.spec
    return Build(
        config.req_to_token, inputs[0], inputs[1], config.form,
        config.page_size, config.source_page_size, config.page_size,
        tuple(replace(view) for view in views),
        max_seq_len=config.max_context_len, window_is_prefix_only=spec.window_is_prefix_only,
        starts_are_aligned=not spec.skips_tokens and not views[0].is_absolute,
        query_sign=inputs[4], min_seq_len=spec.min_seq_len,
        min_last_page_len=spec.min_last_page_len, missing_id=spec.pad_id,
        pad_value=spec.pad_id if spec.pad_to_tokens else None,
        pad_to_multiple_of=spec.pad_to_multiple_of(config.page_size), shard=config.shard, draft=config.draft,
        extends=extends and config.form == TABLE, status=status.word,
        sums_fit=sums_fit(config.max_rows, config.max_context_len, config.page_size),
    )  # fmt: skip


def _tensor_signature(x: Any) -> Any:
    """What of an argument selects the launch: of a tensor not sizes or data, of an int not its value."""
    if x is None or type(x) is int:
        return x is None
    return x.dtype, x.dim(), x.is_contiguous(), x.get_device()
