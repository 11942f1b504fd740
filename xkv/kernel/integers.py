"""Integer arithmetic that Triton has no function for, or only a slower one."""

import triton
import triton.language as tl


@triton.jit
def clip(x, low, high):
    """Clips x to [low, high]."""
    return tl.minimum(tl.maximum(x, low), high)


@triton.constexpr_function
def _power_of_two(n):
    """Returns k of n = 2 ** k; -1 of others."""
    return n.bit_length() - 1 if n & (n - 1) == 0 else -1


@triton.jit
def quotient(x, DIVISOR: tl.constexpr):
    """Returns ``x // DIVISOR`` of what is not negative.

    A shift is one instruction, not three, and most stand between a length and the loads that wait for it. It
    is signed: of what it knows not to be negative, Triton 3.8 makes 32-bit offsets for AMD, in bytes, which
    entries of a large map exceed.
    """
    POWER: tl.constexpr = _power_of_two(DIVISOR)
    if POWER >= 0:
        found = x >> POWER
    else:
        found = x // DIVISOR
    return found


@triton.jit
def quotient_of(x, divisor):
    """The same with a divisor that is known at run time, greater than 0, and no wider than ``x``."""
    if x.dtype == tl.int64:
        found = (x.to(tl.uint64, bitcast=True) // divisor.to(tl.uint64)).to(tl.int64, bitcast=True)
    else:
        found = (x.to(tl.uint32, bitcast=True) // divisor.to(tl.uint32)).to(tl.int32, bitcast=True)
    return found


@triton.jit
def is_index(x, length):
    """Returns whether ``0 <= x < length``: one compare, as what is negative is past every length."""
    if x.dtype == tl.int64 or length.dtype == tl.int64:
        found = x.to(tl.int64).to(tl.uint64, bitcast=True) < length.to(tl.uint64)
    else:
        found = x.to(tl.uint32, bitcast=True) < length.to(tl.uint32)
    return found


@triton.jit
def remainder(x, DIVISOR: tl.constexpr):
    """Returns ``x % DIVISOR`` of what is not negative."""
    return x - quotient(x, DIVISOR) * DIVISOR
