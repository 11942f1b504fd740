"""Guards: whether tensors differ from those of an earlier call in sizes, row strides and data alone.

One call of torch's own guards, those of torch.compile, costs a third of asking each tensor for its dtype,
rank, strides and device in Python. They are no public part of torch: where they are not as expected, a guard
refuses everything, and calls are looked up by what Python says of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def make_guard(tensors: Sequence[Tensor], sizes: bool = False) -> Callable[..., bool]:
    """Returns a guard that checks type, dtype, rank, inner stride and device of as many other tensors.

    It keeps none of the tensors alive, and returns False for what is no tensor.

    Args:
        tensors: what others are compared with.
        sizes: also check their sizes and all strides.
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
        known = check(*tensors) is True
    except (AttributeError, ImportError, RuntimeError, TypeError):
        return refuse  # another torch's
    return check if known else refuse


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """The tensors' addresses; asked for before a guard is, which ends the process on a tensor without sizes.

    Raises:
        AttributeError: something is no tensor.
        RuntimeError: a tensor has no memory of its own (fake, batched), or no strides (sparse, nested).
    """
    for x in tensors:
        if x.is_nested:  # the others say so themselves
            raise RuntimeError("a nested tensor has no sizes")
    return [x.data_ptr() for x in tensors]


def run_untraced(function: Callable[..., Any]) -> None:
    """Has torch.compile run a function, and all that it calls, as they are, where a graph breaks for it.

    What `torch.compiler.disable` does, without a wrapper in every call and without importing its package.
    Where torch has no such switch, it traces the host code and says what it cannot.
    """
    try:
        frames: Any = importlib.import_module("torch._C._dynamo.eval_frame")
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(function.__code__, skip)
    except (AttributeError, ImportError, TypeError):
        return  # another torch's


def refuse(*_: Any) -> bool:
    """A guard that nothing passes."""
    return False
