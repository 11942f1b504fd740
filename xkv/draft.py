"""`DraftTree`: the branches of draft tokens that the rows of a step show."""

from __future__ import annotations

from dataclasses import dataclass

from .shard import check_int

MAX_BRANCHES = 1024


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
        check_int("topk of DraftTree", self.topk, 1, MAX_BRANCHES)
        check_int("num_steps of DraftTree", self.num_steps, 1, MAX_BRANCHES)
        check_int("step of DraftTree", self.step, 1, self.num_steps)
        check_int("page_size of DraftTree", self.page_size, 1, None)
        if self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size of DraftTree must be a power of two, got {self.page_size}")
