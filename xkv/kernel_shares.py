"""The kernel's shares: which blocks of other rows a program writes once it is done with its own."""

import triton
import triton.language as tl

from xkv.kernel_args import TABLE
from xkv.kernel_rows import before, blocks_left, describe


@triton.jit
def survey(b, zero, req, view, policy, C: tl.constexpr):
    """The blocks that the direct pass leaves of the whole batch, as wide as ``zero``, and `before`."""
    total = zero
    base = req.batch.to(tl.int64) * 0
    for chunk in range(0, req.batch, C.BATCH_BLOCK):
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        # where rows need not be summed up, one that has no source row may count as if it had
        _, _, _, items, _, _, _ = describe(i, i < req.batch, req, view, policy, C, C.FORM == TABLE)
        total += tl.sum(blocks_left(i, items, req, view, policy, C) + zero, 0)
        if C.FORM != TABLE and not C.SUMS_GIVEN:
            base += tl.sum(tl.where(i < b, items, 0).to(tl.int64), 0)
    if C.SUMS_GIVEN:
        base = before(b, req, view, policy, C)
    return total, base


@triton.jit
def share(p, programs, total, C: tl.constexpr):
    """Program p's blocks among the ``total``: the first, the end, and how far the next is from one.

    Of tables every program takes one after the other in turn: what they write at one time lies side by side.
    Of streams each takes neighbours, so that few have to be sought, which costs more there.
    """
    u = p + total * 0
    end = total
    step = programs
    if C.FORM != TABLE:
        each = total // programs
        odd = total - each * programs
        u = p * each + tl.minimum(p, odd)
        end = u + each + (p < odd).to(tl.int32)
        step = 1
    return u, end, step


@triton.jit
def seek(u, total, req, view, policy, C: tl.constexpr):
    """Block u of the ``total`` that the direct pass leaves: its row, its number there, and `before`."""
    b = req.batch
    block = req.batch * 0
    base = req.batch.to(tl.int64) * 0
    seen = u * 0
    chunk = req.batch * 0
    more = chunk < req.batch
    while more:
        i = chunk + tl.arange(0, C.BATCH_BLOCK)
        _, _, _, items, _, _, _ = describe(i, i < req.batch, req, view, policy, C, C.FORM == TABLE)
        left = blocks_left(i, items, req, view, policy, C) + seen * 0  # as wide as their sum
        upto = total
        if chunk + C.BATCH_BLOCK < req.batch:
            upto = seen + tl.sum(left, 0)
        more = (u >= upto) & (chunk + C.BATCH_BLOCK < req.batch)
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
    return b, block, base
