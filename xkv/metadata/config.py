"""The checked arguments of a `MetadataBuilder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .. import arguments, dispatch
from ..params import CAPACITY_MAX, CSR, INT32_MAX, MAX_BATCH, ROW_MAX, TABLE, View
from ..platforms.detect import platform
from ..platforms.specs import BackendSpec
from ..shard import Shard, local_length, local_source, source_tokens


@dataclass(frozen=True)
class SlotMapping:
    """The slot mapping that a `MetadataBuilder` writes beside its backend's metadata, in the same launch.

    Attributes:
        max_tokens: query tokens of a batch, at most: the size of the buffer. 1 to 2**31 - 1 - 2**15.
        id_dtype: "int32" or "int64", of the slots.
        pad_value: int32, written behind the last query token up to the end of the buffer, as CUDA graphs of a
            fixed size need. None: those entries are left unwritten.
        max_position: tokens, 0 to 2**28 - 1. Query tokens at given positions from this one on get -1 and are
            not reported, such as drafts past the longest context. None: no limit.
        query_seqlens: also write how many tokens each query token sees, itself included: with a shard, how
            many of them are this rank's. They are causal lengths for each query token, as decode kernels take
            them for several query tokens a row. 0 for padding, and for a token outside its row.

    Raises:
        TypeError: a field of another type. The message names the field.
        ValueError: a field out of its range. Likewise.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.arange(64, dtype=torch.int32).view(2, 32)
        >>> builder = xkv.MetadataBuilder(
        ...     "flash_attention", req_to_token, max_batch_size=2, max_context_len=32, page_size=4,
        ...     slot_mapping=xkv.SlotMapping(max_tokens=8),
        ... )
        >>> meta = builder.build(torch.tensor([1, 0]), torch.tensor([7, 3]))
        >>> meta.slot_mapping
        tensor([38,  2])
    """

    max_tokens: int
    id_dtype: Literal["int32", "int64"] = "int64"
    pad_value: int | None = -1
    max_position: int | None = None
    query_seqlens: bool = False

    def __post_init__(self) -> None:
        """Checks the fields."""
        arguments.integer("max_tokens of SlotMapping", self.max_tokens, 1, CAPACITY_MAX)
        if self.id_dtype not in ("int32", "int64"):
            raise ValueError(f"id_dtype of SlotMapping must be 'int32' or 'int64', got {self.id_dtype!r}")
        if self.pad_value is not None:
            arguments.integer("pad_value of SlotMapping", self.pad_value, -INT32_MAX - 1, INT32_MAX)
        if self.max_position is not None:
            arguments.integer("max_position of SlotMapping", self.max_position, 0, ROW_MAX)
        if not isinstance(self.query_seqlens, bool):
            raise TypeError(
                f"query_seqlens of SlotMapping must be a bool, got {type(self.query_seqlens).__name__}"
            )


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

    @classmethod
    def checked(
        cls, backend: str | BackendSpec, req_to_token: Tensor, page_size: int | None, source_page_size: int,
        max_batch_size: int, max_context_len: int, max_tokens: int | None, sliding_window: int | None,
        window_token_map: Tensor | None, window_page_map: Tensor | None, window_is_absolute: bool,
        sink_tokens: int | None, page_map: Tensor | None, shard: Shard | None,
        slot_mapping: SlotMapping | None,
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
            page_map, shard, slot_mapping,
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
