"""`SlotMapping`: what a `MetadataBuilder` writes beside its backend's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import arguments
from ..params import CAPACITY_MAX, INT32_MAX, ROW_MAX


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
