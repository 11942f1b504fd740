"""The least that a launch costs: nothing at all, and one id found and written by one program."""

import triton
import triton.language as tl


@triton.jit
def empty(out_ptr):
    """No work: what a launch costs in a graph."""


@triton.jit
def chain(src_ptr, src_stride, rows_ptr, lens_ptr, out_ptr):
    """The last id of the first row: two loads, the second by what the first one gave, and a store."""
    row = tl.load(rows_ptr)
    last = tl.load(lens_ptr) - 1
    tl.store(out_ptr, tl.load(src_ptr + row * src_stride + last))
