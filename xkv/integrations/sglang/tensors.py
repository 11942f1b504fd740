"""An engine's tensors as its kernels see them: an address, and rows so many elements apart.

An engine's kernel is given a pointer, a stride and a number of requests. These functions say what of the
tensor behind that pointer may be accessed, by the tensor's own sizes alone: a guard of its sizes covers it.
"""

from __future__ import annotations

from torch import Tensor

from ...params import INT32_MAX, ROW_MAX


def source_sizes(x: Tensor, stride: int, unit: int) -> tuple[int, int] | None:
    """Returns the rows of a `source` and the tokens in one; None where x has no rows ``stride`` apart.

    Args:
        x: the table, or all of its elements in one row.
        stride: elements from one row to the next.
        unit: tokens of one element.
    """
    if x.stride() == (stride, 1):
        rows, width = x.shape
    elif x.is_contiguous() and 0 < stride <= x.numel():
        rows, width = x.numel() // stride, stride
    else:
        return None
    tokens = width * unit
    return (rows, tokens) if 0 < rows <= INT32_MAX and tokens <= ROW_MAX else None


def source(x: Tensor, stride: int) -> Tensor:
    """Returns a table that has `source_sizes`, as ``[rows, width]``."""
    if x.dim() == 2 and x.stride() == (stride, 1):
        return x
    return x.as_strided((x.numel() // stride, stride), (stride, 1))


def table_width(x: Tensor, batch: int, stride: int) -> int | None:
    """Returns the entries in a row of a `table`; None where x has no ``batch`` rows ``stride`` apart."""
    if x.stride() == (stride, 1):
        rows, width = x.shape
        return width if rows >= batch and width <= stride else None
    return stride if 0 <= batch * stride <= x.numel() and x.is_contiguous() else None


def table(x: Tensor, batch: int, stride: int) -> Tensor:
    """Returns the first ``batch`` rows of a table that has a `table_width`."""
    return x.as_strided((batch, table_width(x, batch, stride) or 0), (stride, 1))


def long_enough(size: int, *vectors: Tensor | None) -> bool:
    """Whether each vector that is there has ``size`` contiguous elements."""
    for x in vectors:  # noqa: SIM110 (a generator costs more than what it would ask)
        if x is not None and (x.numel() < size or not x.is_contiguous()):
            return False
    return True


def vector(x: Tensor, size: int) -> Tensor:
    """Returns the first ``size`` elements of what is `long_enough`."""
    return x.as_strided((size,), (1,))


def vector_or_none(x: Tensor | None, size: int) -> Tensor | None:
    """The same for an argument that may be missing."""
    return None if x is None else vector(x, size)
