"""Guards check that tensors have the dtypes, ranks, inner strides and devices of an earlier call's.

They are torch.compile's own. One call of such a guard takes a third of the time of reading each tensor's
dtype, rank, strides and device in Python. They are not public in torch: if they are not as expected, a guard
refuses everything, and calls are looked up by the tensors' Python attributes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

LOWEST = 1 << 32


def make_guard(tensors: Sequence[Tensor], sizes: bool = False) -> Callable[..., bool]:
    """Returns a guard that checks type, dtype, rank, inner stride and device of the same number of tensors.

    It keeps no tensor alive, and returns False for anything that is not a tensor.

    Args:
        tensors: the tensors that others are compared with.
        sizes: also check sizes and all strides.
    """
    try:
        guards: Any = importlib.import_module("torch._C._dynamo.guards")
        check: Callable[..., Any] = guards.TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(x.shape) if sizes else [None] * x.dim() for x in tensors],
            dynamic_dims_strides=[
                list(x.stride()) if sizes else [None] * (x.dim() - 1) + [1] for x in tensors
            ],
        ).check
        accepts_its_own = check(*tensors) is True
    except (AttributeError, ImportError, RuntimeError, TypeError):
        return refuse  # this torch's guards are different
    return check if accepts_its_own else refuse


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Returns the tensors' addresses. To be called before a guard, which crashes on a tensor without sizes.

    Raises:
        AttributeError: an argument is not a tensor.
        RuntimeError: a tensor has no memory of its own (fake, batched), or no strides (sparse, nested).
    """
    found = []
    for x in tensors:
        if x.is_nested:  # data_ptr() raises for the others
            raise RuntimeError("a nested tensor has no sizes")
        found.append(x.data_ptr())
    return found


def have_memory(pointers: Sequence[int], tensors: Iterable[Any]) -> bool:
    """Returns whether tensors at these addresses have memory.

    A tensor without elements, or whose memory was freed, has the address 0, a view of it one of its offset:
    below 4 GiB, where a GPU's allocations do not lie. Only there the tensors' storages are asked, which takes
    longer.

    Args:
        pointers: the tensors' addresses.
        tensors: the tensors; what is no tensor is passed over.
    """
    if not pointers or min(pointers) >= LOWEST:
        return True
    return all(x.untyped_storage().data_ptr() for x in tensors if isinstance(x, Tensor))


def run_untraced(function: Callable[..., Any]) -> None:
    """Excludes a function, and all that it calls, from torch.compile's tracing: the graph breaks there.

    Like `torch.compiler.disable`, but without a wrapper around every call and without importing
    torch._dynamo. If torch has no such switch, it traces the host code and reports what it cannot trace.
    """
    try:
        frames: Any = importlib.import_module("torch._C._dynamo.eval_frame")
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(function.__code__, skip)
    except (AttributeError, ImportError, TypeError):
        return  # this torch has no such switch


def refuse(*_: Any) -> bool:
    """A guard that nothing passes."""
    return False
