"""The checked arguments of a `MetadataBuilder`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import arguments, dispatch
from ..draft import DraftTree
from ..params import CSR, INT32_MAX, MAX_BATCH, ROW_MAX, TABLE, View
from ..platforms.detect import platform
from ..platforms.specs import BackendSpec
from ..shard import Shard, local_length, local_source, source_tokens
from .options import SlotMapping


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
        window_page_map: ``[m]`` int, or None.
        window_is_absolute: whether a window's rows have the entries of their whole rows.
        sink_tokens: first tokens of each row that the window shows too, or None.
        page_map: ``[m]`` int, or None.
        shard: the rank's share of each row, as `Build` takes it, or None.
        slot_mapping: the slots that are written too, or None.
        draft: a step of a draft tree, or None.
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
    window_page_map: Tensor | None
    window_is_absolute: bool
    sink_tokens: int | None
    page_map: Tensor | None
    shard: Shard | None
    slot_mapping: SlotMapping | None
    draft: DraftTree | None

    @classmethod
    def checked(
        cls, backend: str | BackendSpec, req_to_token: Tensor, page_size: int | None, source_page_size: int,
        max_batch_size: int, max_context_len: int, max_tokens: int | None, sliding_window: int | None,
        window_token_map: Tensor | None, window_page_map: Tensor | None, window_is_absolute: bool,
        sink_tokens: int | None, page_map: Tensor | None, shard: Shard | None,
        slot_mapping: SlotMapping | None, draft: DraftTree | None,
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
        tree = _checked_draft(draft, size, shard, slot_mapping, max_batch_size)
        tokens = min(source_tokens(req_to_token.shape[1] * source_page_size, shard), ROW_MAX)
        max_context_len = arguments.integer("max_context_len", max_context_len, 1, tokens)
        if max_tokens is None:
            max_rows = max_batch_size * (1 if tree is None else tree.topk)
            max_tokens = min(max_rows * max_context_len, INT32_MAX)
        max_tokens = arguments.integer("max_tokens", max_tokens, 1, INT32_MAX)
        if sliding_window is not None:
            sliding_window = arguments.integer("sliding_window", sliding_window, 1, ROW_MAX)
        if not isinstance(window_is_absolute, bool):
            raise TypeError(f"window_is_absolute must be a bool, got {type(window_is_absolute).__name__}")
        if window_is_absolute and sliding_window is None:
            raise ValueError("window_is_absolute needs a sliding_window, got None")
        if sink_tokens is not None:
            sink_tokens = arguments.integer("sink_tokens", sink_tokens, 1, ROW_MAX)
            if sliding_window is None:
                raise ValueError(f"sink_tokens={sink_tokens} needs a sliding_window, got None")
            if local_length(sink_tokens, shard) % size:
                raise ValueError(
                    f"sink_tokens must be whole pages of {size} tokens on this rank, got {sink_tokens}"
                )
        maps = {
            "window_token_map": window_token_map, "window_page_map": window_page_map, "page_map": page_map
        }  # fmt: skip
        for name, ids in maps.items():
            if ids is not None:
                arguments.tensor(name, ids, 1, req_to_token)
        if slot_mapping is not None and not isinstance(slot_mapping, SlotMapping):
            raise TypeError(f"slot_mapping must be an xkv.SlotMapping, got {type(slot_mapping).__name__}")
        form = TABLE if spec.form == "table" else CSR
        return cls(
            spec, form, req_to_token, size, source_page_size, max_batch_size, max_context_len, max_tokens,
            sliding_window, window_token_map, window_page_map, window_is_absolute, sink_tokens,
            page_map, shard, slot_mapping, tree,
        )  # fmt: skip

    @property
    def max_rows(self) -> int:
        """Rows of the outputs, at most: requests, or branches of them."""
        return self.max_batch_size * (1 if self.draft is None else self.draft.topk)

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
        maps = self.window_token_map, self.window_page_map
        if self.sliding_window is not None or maps != (None, None):
            views.append(
                View(
                    torch.empty(0), window=self.sliding_window, token_map=maps[0], page_map=maps[1],
                    is_absolute=self.window_is_absolute, sink=self.sink_tokens,
                )
            )  # fmt: skip
        return views

    def slot_views(self) -> list[View]:
        """The slots that the builder writes, without outputs yet: none, the rows', or the window's too.

        The window's are others only if it has a map of its own.
        """
        if self.slot_mapping is None:
            return []
        views = [View(torch.empty(0), page_map=self.page_map)]
        maps = self.window_token_map, self.window_page_map
        if maps != (None, None):
            views.append(View(torch.empty(0), token_map=maps[0], page_map=maps[1]))
        return views


def _checked_draft(
    draft: DraftTree | None, page_size: int, shard: Shard | None, slot_mapping: SlotMapping | None,
    max_batch_size: int,
) -> DraftTree | None:  # fmt: skip
    if draft is None:
        return None
    if not isinstance(draft, DraftTree):
        raise TypeError(f"draft must be an xkv.DraftTree, got {type(draft).__name__}")
    for name, value in (("shard", shard), ("slot_mapping", slot_mapping)):
        if value is not None:
            raise ValueError(f"{name} must be None with a draft, got {value}")
    if page_size > 1 and page_size != draft.page_size:
        raise ValueError(f"page_size of DraftTree must be the builder's, {page_size}, got {draft.page_size}")
    arguments.integer("max_batch_size times topk", max_batch_size * draft.topk, 1, MAX_BATCH)
    return draft
