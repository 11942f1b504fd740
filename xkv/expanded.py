"""`Expansion` describes one expansion of requests into rows of query tokens: what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .shard import Shard

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 1 << 24  # query tokens: an index past the end by a tile fits in int32
MAX_WIDTH = 1 << 24  # entries of a page table's row, likewise


class ExpandedQueries(NamedTuple):
    """The rows of query tokens, of requests' tokens first, then of padding. None: not asked for.

    Attributes:
        token_to_req: ``[num_tokens]`` int32: the request; ``pad_req`` for padding.
        positions: ``[num_tokens]`` int32 or int64: the position in the request's row; 0 for padding.
        seq_lens: ``[num_tokens]`` int32: tokens that the query token sees, itself included, and of a shard
            those of them that are the rank's; 0 for padding.
        out_page_table: ``[num_tokens, width]`` int32 or int64: the request's row of the page table; 0 for
            padding.

    Examples:
        Two requests, of one and of two query tokens:

        >>> import torch
        >>> import xkv
        >>> rows = xkv.expand_queries(torch.tensor([0, 1, 3]), torch.tensor([5, 3]), num_tokens=3)
        >>> rows.token_to_req
        tensor([0, 1, 1], dtype=torch.int32)
        >>> rows.positions
        tensor([4, 1, 2])
    """

    token_to_req: Tensor | None = None
    positions: Tensor | None = None
    seq_lens: Tensor | None = None
    out_page_table: Tensor | None = None


@dataclass(slots=True)
class Expansion:
    """The query tokens of each request, and where what is known of each token goes.

    Attributes:
        query_start_loc: prefix sums of the query tokens of each request, ``[batch + 1]`` int.
        seq_lens: tokens of each request, query tokens included, ``[batch]`` int.
        num_tokens: query tokens, padding included: so many entries or rows of each output are written.
        out: what is written; vectors of at least ``num_tokens`` entries, and a table of at least as many rows
            with the first entries of those of ``page_table``, in its dtype.
        page_table: a row for each request, ``[>= batch, width]`` int32 or int64, inner stride 1; or None.
        shard: the rank's share, or None for all.
        causal: whether a query token sees the row up to itself alone.
        pad_req: the request of padding.
        status: the status word, ``[1]`` int64, or None.
    """

    query_start_loc: Tensor
    seq_lens: Tensor
    num_tokens: int
    out: ExpandedQueries
    page_table: Tensor | None = None
    shard: Shard | None = None
    causal: bool = True
    pad_req: int = 0
    status: Tensor | None = None

    @property
    def batch(self) -> int:
        """Requests."""
        return int(self.seq_lens.shape[0])

    @property
    def columns(self) -> int:
        """Entries of each row that are copied; 0 without a page table."""
        return 0 if self.out.out_page_table is None else int(self.out.out_page_table.shape[1])
