"""Engines' kernels that translate chosen positions, as launches of `xkv.launch.chosen`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..chosen import MAX_CHOSEN, MAX_TOKENS, ChosenTokens
from ..launch import chosen, compile
from ..params import INT32_MAX, MAX_BATCH, ROW_MAX, SOURCE_PAGE_MAX
from ..shard import MAX_INTERLEAVE, MAX_SIZE, Shard

_INTS = (torch.int32, torch.int64)


def translate(
    table: Tensor, positions: Tensor, out: Tensor, to_req: Tensor | None = None,
    starts: Tensor | None = None, counts: Tensor | None = None, *, block_size: int = 1, block_stride: int = 1,
    compact: bool = False, ranks: tuple[int, int, int] = (1, 0, 1),
) -> bool:  # fmt: skip
    """Launches it, unless it is left to the original: then returns False. No sync; safe in a graph.

    Args:
        table: ``[rows, width]``, ids of ``block_size`` tokens each.
        positions: ``[tokens, k]``.
        out: ``[>= tokens, k]``.
        to_req: request of each query token, or None.
        starts: ``[batch + 1]``, prefix sums of the query tokens, or None.
        counts: ``[>= tokens]`` int32, or None.
        block_size: tokens of an entry of the table.
        block_stride: tokens from one block of the cache to the next.
        compact: whether ids are packed.
        ranks: how many share a row, which one this is, and the tokens in a run of one.
    """
    inputs = (table, positions, out, to_req, starts, None, None, counts, None)
    known = chosen.CALLS.lookup(inputs, (block_size, block_stride, compact, ranks))
    if known is not None and known.launch(inputs):
        return True
    try:
        if not _fits(table, positions, out, to_req, starts, counts, block_size, block_stride, ranks):
            return False
    except (AttributeError, RuntimeError):
        return False  # no tensors, or such as have no strides
    size, rank, interleave = ranks
    build = ChosenTokens(
        table, positions, out, 1, block_size, block_stride, token_to_req=to_req, query_start_loc=starts,
        shard=None if size == 1 else Shard(size, rank, interleave), compact=compact, counts=counts,
    )  # fmt: skip
    chosen.run(build, known, inputs)
    return True


def _fits(
    table: Tensor, positions: Tensor, out: Tensor, to_req: Tensor | None, starts: Tensor | None,
    counts: Tensor | None, block_size: int, block_stride: int, ranks: tuple[int, int, int],
) -> bool:  # fmt: skip
    """Whether xkv serves the call: its tensors have room for what it would access."""
    (tokens, k), (size, rank, interleave) = positions.shape, ranks
    given: list[Any] = [x for x in (table, positions, out, to_req, starts, counts) if x is not None]
    return (
        all(x.dtype in _INTS and x.device == table.device for x in given)
        and all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in given)
        and (table.is_cuda or compile.interpreted() or table.device.type == "cpu")
        and (table.dim(), out.dim()) == (2, 2)
        and tokens <= MAX_TOKENS
        and 0 < k <= MAX_CHOSEN
        and out.shape[0] >= tokens
        and out.shape[1] == k
        and out.stride(0) >= k
        and table.shape[0] <= INT32_MAX
        and 0 < block_size <= block_stride <= SOURCE_PAGE_MAX
        and table.shape[1] * block_size <= ROW_MAX
        and (to_req is None or to_req.shape[0] >= tokens)
        and (starts is None or 0 < starts.shape[0] <= MAX_BATCH + 1)
        and (to_req is not None or starts is not None or table.shape[0] >= tokens)
        and (counts is None or (counts.dtype is torch.int32 and counts.shape[0] >= tokens))
        and 0 < size <= MAX_SIZE
        and 0 <= rank < size
        and 0 < interleave <= MAX_INTERLEAVE
        and (size == 1 or block_size % interleave == 0)
    )
