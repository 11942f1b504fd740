"""Decode context parallelism: a row's tokens that one rank holds, and where they are in the source."""

import triton
import triton.language as tl

from .args import SLOTS
from .integers import clip, quotient, remainder


@triton.jit
def local_length(length, req, C: tl.constexpr):
    """Returns how many of the first ``length`` (not negative) tokens of a row are the rank's; else all."""
    if C.SHARD_SIZE > 1:
        ROUND: tl.constexpr = C.SHARD_SIZE * C.SHARD_INTERLEAVE
        rest = remainder(length, ROUND) - req.shard_rank * C.SHARD_INTERLEAVE
        length = quotient(length, ROUND) * C.SHARD_INTERLEAVE + clip(rest, 0, C.SHARD_INTERLEAVE)
    return length


@triton.jit
def whole_length(length, start, req, C: tl.constexpr):
    """Returns the length of the row of which ``length`` tokens from ``start`` on are this rank's."""
    ROUND: tl.constexpr = C.SHARD_SIZE * C.SHARD_INTERLEAVE
    # what is longer than the source ends past it, but not past int32
    length = tl.minimum(length + local_length(start, req, C), local_length(req.src_tokens, req, C) + 1)
    last = tl.maximum(length, 1) - 1
    end = quotient(last, C.SHARD_INTERLEAVE) * ROUND + req.shard_rank * C.SHARD_INTERLEAVE
    end += remainder(last, C.SHARD_INTERLEAVE) + 1
    return tl.where(length > 0, tl.maximum(end, start), tl.minimum(length, 0) + start)


@triton.jit
def source_position(at, req, C: tl.constexpr):
    """Returns the position in the source row of an item's first token, whose position is not negative."""
    if C.SHARD_SIZE > 1:
        ROUND: tl.constexpr = C.SHARD_SIZE * C.SHARD_INTERLEAVE
        if C.FORM == SLOTS and not C.SOURCE_IS_GLOBAL:  # a position in the whole row
            at = quotient(at, ROUND) * C.SHARD_INTERLEAVE + remainder(at, C.SHARD_INTERLEAVE)
        elif C.FORM != SLOTS and C.SOURCE_IS_GLOBAL:  # a position among the rank's own tokens
            first = req.shard_rank * C.SHARD_INTERLEAVE
            at = quotient(at, C.SHARD_INTERLEAVE) * ROUND + first + remainder(at, C.SHARD_INTERLEAVE)
    return at


@triton.jit
def local_slot(slot, C: tl.constexpr):
    """Returns the slot on its rank of a slot of the cache of all ranks."""
    ROUND: tl.constexpr = C.SHARD_SIZE * C.SHARD_INTERLEAVE
    return quotient(slot, ROUND) * C.SHARD_INTERLEAVE + remainder(slot, C.SHARD_INTERLEAVE)
