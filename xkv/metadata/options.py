"""What a `MetadataBuilder` may write beside its backend's metadata, or for: `SlotMapping`, `DraftTree`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import arguments
from ..params import CAPACITY_MAX, INT32_MAX, ROW_MAX

_MAX_BRANCHES = 1024


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


@dataclass(frozen=True)
class DraftTree:
    """One step of speculative decoding with a tree: each request has ``topk`` branches of draft tokens.

    A `MetadataBuilder` with it has a row for each branch: row ``b * topk + k`` shows the tokens of request b
    and the first ``step`` tokens of branch k. Those of all steps are written in one launch by a
    `MetadataGroup` with a builder for each step.

    In the request's row of the table, n tokens are followed by the branches: that of k begins at
    ``n + k * num_steps``. In a cache with pages each branch has whole pages of its own, and a copy of the
    last, partial page of the n tokens: its own tokens begin ``k * ceil((n % page_size + num_steps) /
    page_size)`` pages behind n.

    Attributes:
        topk: branches, 1 to 1024.
        num_steps: tokens of each, 1 to 1024.
        step: draft tokens that the rows show, 1 to ``num_steps``.
        page_size: tokens per page of the cache, a power of two: the builder's, or any where that is 1.

    Raises:
        TypeError, ValueError: a field of another type, or out of its range. The message names the field.

    Examples:
        Two branches of one request with three tokens, after their second step:

        >>> import torch
        >>> import xkv
        >>> builder = xkv.MetadataBuilder(
        ...     "flashinfer_mla", torch.arange(16).view(1, 16), page_size=1, max_batch_size=1,
        ...     max_context_len=16, draft=xkv.DraftTree(topk=2, num_steps=4, step=2),
        ... )
        >>> meta = builder.build(torch.tensor([0]), torch.tensor([3]))
        >>> meta.kv_indptr, meta.kv_indices[:10]
        (tensor([ 0,  5, 10], dtype=torch.int32), tensor([0, 1, 2, 3, 4, 0, 1, 2, 7, 8], dtype=torch.int32))
    """

    topk: int
    num_steps: int
    step: int
    page_size: int = 1

    def __post_init__(self) -> None:
        """Checks the fields."""
        arguments.integer("topk of DraftTree", self.topk, 1, _MAX_BRANCHES)
        arguments.integer("num_steps of DraftTree", self.num_steps, 1, _MAX_BRANCHES)
        arguments.integer("step of DraftTree", self.step, 1, self.num_steps)
        arguments.power_of_two("page_size of DraftTree", self.page_size)
