"""The checked arguments of a `MetadataBuilder`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import arguments, dispatch
from ..params import CSR, INT32_MAX, MAX_BATCH, ROW_MAX, TABLE, View
from ..platforms.detect import platform
from ..platforms.specs import BackendSpec
from ..shard import Shard, local_length, local_source, source_tokens


@dataclass(frozen=True, eq=False)
class BuilderConfig:
    """What a builder was made with; `MetadataBuilder` describes the arguments.

    Attributes:
        spec: the backend.
        form: TABLE or CSR.
        req_to_token: ``[rows, width]`` int32 or int64, the source.
        page_size: tokens per page.
        source_page_size: tokens of this rank per entry of ``req_to_token``.
        max_batch_size: requests, at most.
        max_context_len: tokens, host bound of every length.
        max_tokens: tokens of all rows together (CSR), at most.
        sliding_window: tokens, or None.
        window_token_map: ``[n]`` int, or None.
        page_map: ``[m]`` int, or None.
        shard: the rank's share of each row, as `Build` takes it, or None.
    """

    spec: BackendSpec
    form: int
    req_to_token: Tensor
    page_size: int
    source_page_size: int
    max_batch_size: int
    max_context_len: int
    max_tokens: int
    sliding_window: int | None
    window_token_map: Tensor | None
    page_map: Tensor | None
    shard: Shard | None

    @classmethod
    def checked(
        cls, backend: str | BackendSpec, req_to_token: Tensor, page_size: int | None, source_page_size: int,
        max_batch_size: int, max_context_len: int, max_tokens: int | None, sliding_window: int | None,
        window_token_map: Tensor | None, page_map: Tensor | None, shard: Shard | None,
    ) -> BuilderConfig:  # fmt: skip
        """Checks the arguments and fills in the defaults.

        Raises:
            TypeError, ValueError: as in `MetadataBuilder`.
        """
        source_page_size = arguments.source(req_to_token, source_page_size)
        spec = dispatch.backend(backend, platform(req_to_token.device).vendor)
        size = spec.page_size if page_size is None else page_size
        size = arguments.integer("page_size", size, 1, arguments.MAX_PAGE_SIZE)
        if size not in spec.page_sizes:
            allowed = ", ".join(map(str, spec.page_sizes))
            raise ValueError(f"page_size for {spec.name!r} must be one of {allowed}, got {page_size}")
        source_page_size, shard = local_source(
            size, source_page_size, shard, window_token_map, "window_token_map"
        )
        max_batch_size = arguments.integer("max_batch_size", max_batch_size, 1, MAX_BATCH)
        tokens = min(source_tokens(req_to_token.shape[1] * source_page_size, shard), ROW_MAX)
        max_context_len = arguments.integer("max_context_len", max_context_len, 1, tokens)
        if max_tokens is None:
            max_tokens = min(max_batch_size * max_context_len, INT32_MAX)
        max_tokens = arguments.integer("max_tokens", max_tokens, 1, INT32_MAX)
        if sliding_window is not None:
            sliding_window = arguments.integer("sliding_window", sliding_window, 1, ROW_MAX)
        for name, ids in (("window_token_map", window_token_map), ("page_map", page_map)):
            if ids is not None:
                arguments.tensor(name, ids, 1, req_to_token)
        form = TABLE if spec.form == "table" else CSR
        return cls(
            spec, form, req_to_token, size, source_page_size, max_batch_size, max_context_len, max_tokens,
            sliding_window, window_token_map, page_map, shard,
        )  # fmt: skip

    @property
    def max_seq_len(self) -> int:
        """Tokens of a row that are shown, at most: this rank's. At least 1, which attention kernels need."""
        return max(local_length(self.max_context_len, self.shard), 1)

    @property
    def capacity(self) -> int:
        """Tokens of all rows together (CSR), at most: this rank's."""
        if self.shard is None:
            return self.max_tokens
        return self.shard.max_tokens(self.max_tokens, self.max_batch_size)

    def views(self) -> list[View]:
        """The parts of each row that the builder shows, without outputs yet: one, or two with a window."""
        views = [View(torch.empty(0), page_map=self.page_map)]
        if self.sliding_window is not None or self.window_token_map is not None:
            views.append(View(torch.empty(0), window=self.sliding_window, token_map=self.window_token_map))
        return views
