"""`ChosenTokens` describes one translation of chosen positions: what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .params import ROW_MAX
from .shard import Shard, source_tokens

if TYPE_CHECKING:
    from torch import Tensor

MAX_CHOSEN = 8192  # positions of a query token
MAX_TOKENS = 1 << 24  # query tokens: their rows in the status word fit in int32
MAX_UNIT = 1 << 12  # tokens


@dataclass(slots=True)
class ChosenTokens:
    """The positions that each query token attends to, and where their ids go.

    Attributes:
        req_to_token: the source, as in `xkv.params.Build`.
        positions: ``[tokens, k]`` int32 or int64, inner stride 1: positions in the row of the query token's
            request, in units of ``unit`` tokens. A negative one is none.
        out: ``[>= tokens, k]`` int32 or int64, inner stride 1: the ids.
        page_size: tokens per id.
        source_page_size: tokens per source entry.
        block_stride: tokens of the cache from one source entry's first to the next one's, at least
            ``source_page_size``. Page size 1 alone has another one.
        unit: tokens per position.
        token_to_req: request of each query token, ``[tokens]`` int, negative for none; or None.
        query_start_loc: prefix sums of the query tokens of each request, ``[batch + 1]`` int; or None. With
            neither, query token i is request i's.
        req_pool_indices: source row of each request, ``[batch]`` int, negative for none. None: request b's
            is row b.
        seq_lens: tokens of each request, ``[batch]`` int. None: the width of the source.
        shard: the rank's share, or None for all.
        compact: whether the ids that there are come first, in their order.
        counts: ids of each query token, ``[>= tokens]`` int32, or None.
        dummy: the id, and the only one, of a query token that would have none; or None.
        missing_id: written where there is no id.
        status: the status word, ``[1]`` int64, or None.
    """

    req_to_token: Tensor
    positions: Tensor
    out: Tensor
    page_size: int = 1
    source_page_size: int = 1
    block_stride: int = 1
    unit: int = 1
    token_to_req: Tensor | None = None
    query_start_loc: Tensor | None = None
    req_pool_indices: Tensor | None = None
    seq_lens: Tensor | None = None
    shard: Shard | None = None
    compact: bool = False
    counts: Tensor | None = None
    dummy: int | None = None
    missing_id: int = -1
    status: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Query tokens."""
        return int(self.positions.shape[0])

    @property
    def k(self) -> int:
        """Positions of each query token."""
        return int(self.positions.shape[1])

    @property
    def batch(self) -> int:
        """Requests."""
        if self.query_start_loc is not None:
            return int(self.query_start_loc.shape[0]) - 1
        for rows in (self.req_pool_indices, self.seq_lens):
            if rows is not None:
                return int(rows.shape[0])
        return int(self.req_to_token.shape[0])

    @property
    def max_tokens(self) -> int:
        """Tokens of a row, on all ranks, that a row of the source has room for."""
        width = int(self.req_to_token.shape[1]) * self.source_page_size if self.req_to_token.shape[0] else 0
        return min(source_tokens(width, self.shard), ROW_MAX)

    @property
    def whole_rows(self) -> bool:
        """Whether a query token's ids have to be counted before they are stored."""
        return self.compact or self.counts is not None or self.dummy is not None
