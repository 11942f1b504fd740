"""The status word: the first violation of a launch, the smallest (row, reason)."""

import triton
import triton.language as tl

from .args import INT32_MAX


@triton.jit
def report(policy, b, reason, mask, C: tl.constexpr):
    """Keeps the smallest (row, reason) in the status word; without errors it writes nothing."""
    if policy.status_ptr is not None:
        mask = mask & (reason > 0)
        word = b * 256 + reason  # less than 2**25, as batches are less than 2**17
        if C.REDUCE_STATUS:
            report_first(policy, tl.where(mask, word, INT32_MAX))
        else:
            tl.atomic_min(policy.status_ptr + word * 0, word.to(tl.int64), mask=mask, sem="relaxed")


@triton.jit
def report_first(policy, words):
    """One atomic for all lanes: given one per lane, AMD's back end generates a reduction of its own."""
    smallest = tl.min(words, 0)
    tl.atomic_min(policy.status_ptr, smallest.to(tl.int64), mask=smallest < INT32_MAX, sem="relaxed")
