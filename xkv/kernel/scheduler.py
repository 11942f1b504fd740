"""The kernel's shares: which blocks of other rows a program writes once it is done with its own.

Of tables every program takes one block after the other in turn: what is written at one time lies side by
side, and nothing is counted before it is needed. A stream's rows have to be looked at before any is written,
since they are summed up: its blocks are counted then, and each program takes neighbours, few of which have to
be sought. That costs less there, and more in tables: neighbours lie far from what others write at that time.
"""

import triton
import triton.language as tl

from .args import TABLE
from .rows import before, blocks_left, describe


@triton.jit
def survey(b, zero, req, view, policy, C: tl.constexpr):
    """The blocks that the direct pass leaves of a whole stream, as wide as ``zero``, and `before`."""
    total = zero
    base = req.batch.to(tl.int64) * 0
    for chunk in range(0, req.batch, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        items = describe(i, i < req.batch, req, view, policy, C).items
        total += tl.sum(blocks_left(i, items, req, view, policy, C) + zero, 0)
        if not C.SUMS_GIVEN:
            base += tl.sum(tl.where(i < b, items, 0).to(tl.int64), 0)
    if C.SUMS_GIVEN:
        base = before(b, req, view, policy, C)
    return total, base


@triton.jit
def run_of(p, programs, total):
    """Program p's neighbours among the ``total`` blocks: the first, and the end. No two differ by two."""
    each = total // programs
    odd = total - each * programs
    u = p * each + tl.minimum(p, odd)
    return u, u + each + (p < odd).to(tl.int32)


@triton.jit
def seek(u, programs, total, req, view, policy, C: tl.constexpr):
    """Block u of those that the direct pass leaves: its row, its number there, the items before the row.

    Of a stream there are ``total``. Of a table nobody knows: the row is ``batch`` where there is no block u,
    and last comes whether there may be a block u + programs.
    """
    b = req.batch
    block = req.batch * 0
    base = req.batch.to(tl.int64) * 0
    seen = u * 0
    chunk = req.batch * 0
    more = chunk < req.batch
    again = more
    while more:
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        # where rows need not be summed up, one that has no source row may count as if it had
        items = describe(i, i < req.batch, req, view, policy, C, C.FORM == TABLE).items
        left = blocks_left(i, items, req, view, policy, C) + seen * 0  # as wide as their sum
        if C.FORM == TABLE:
            upto = seen + tl.sum(left, 0)
        else:
            upto = total
            if chunk + C.BATCH_BLOCK < req.batch:
                upto = seen + tl.sum(left, 0)
        more = (u >= upto) & (chunk + C.BATCH_BLOCK < req.batch)
        again = (u + programs < upto) | (chunk + C.BATCH_BLOCK < req.batch)
        passed = left >= 0
        if u < upto:
            sums = seen + tl.cumsum(left, 0)
            passed = sums <= u
            b = chunk + tl.sum(passed.to(tl.int32), 0)
            block = (u - tl.max(tl.where(passed, sums, seen), 0)).to(tl.int32) + policy.direct
        if C.FORM != TABLE and not C.SUMS_GIVEN:
            base += tl.sum(tl.where(passed, items, 0).to(tl.int64), 0)
        seen = upto
        chunk += C.BATCH_BLOCK
    if C.SUMS_GIVEN:
        base = before(b, req, view, policy, C)
    return b, block, base, again
