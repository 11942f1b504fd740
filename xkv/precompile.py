"""`xkv.warmup`: compiles and loads, before serving, the kernels that calls of an op can need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import ops
from .launch import chosen, compile, expanded, launch, op_calls

_OPS = (
    "build_page_table", "build_kv_indices", "build_slot_mapping", "expand_queries", "translate_positions",
)  # fmt: skip


def warmup(op: Callable[..., Any], *args: Any, **options: Any) -> int:
    """Compiles and loads every kernel that calls like this one can need, without a launch.

    After it, calls of that op with the same page sizes, and None for the same arguments, do not compile or
    load, whatever their batch size, widths, strides, lengths, and int dtypes of ``[batch]`` arguments. It
    takes about a second per kernel that is not in Triton's cache on disk, and does nothing on a CPU. Syncs
    if the op does; not for capture.

    Args:
        op: `xkv.build_page_table`, `xkv.build_kv_indices`, `xkv.build_slot_mapping`,
            `xkv.expand_queries` or `xkv.translate_positions`.
        *args: the op's positional arguments.
        **options: the op's keyword arguments. Nothing is written to ``out``.

    Returns:
        The number of kernels that were newly loaded.

    Raises:
        TypeError: ``op`` is not one of them, or as the op raises it.
        ValueError: as the op raises it.

    Examples:
        A CPU has nothing to compile:

        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> rows, lens = torch.tensor([1, 0]), torch.tensor([7, 3])
        >>> xkv.warmup(xkv.build_page_table, req_to_token, rows, lens, page_size=4)
        0
    """
    if not any(op is getattr(ops, name) for name in _OPS):
        got = getattr(op, "__name__", type(op).__name__)
        raise TypeError(f"op must be one of {', '.join(f'xkv.{name}' for name in _OPS)}, got {got}")
    op_calls.forget()  # a cached call would be launched
    chosen.CALLS.forget()
    expanded.CALLS.forget()
    with launch.compile_only() as builds:
        op(*args, **options)
    own: dict[Any, Callable[[Any], int]] = {
        ops.expand_queries: expanded.warm, ops.translate_positions: chosen.warm
    }  # fmt: skip
    warm = own.get(op, functools.partial(compile.warm, max_batch=None))
    return sum(warm(build) for build in builds)
