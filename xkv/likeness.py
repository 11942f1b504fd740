"""Whether tensors are like those of an earlier call in all but their data.

One call of torch's guards, those of torch.compile, costs a third of asking each tensor for its dtype, shape,
strides and device in Python. They are no public part of torch: where they are not as expected, nothing is
like anything, and calls are looked up by what Python says of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def like(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """What tells whether as many others have the same type, dtype, shape, strides and device.

    It keeps none of the tensors alive, and says False to what is no tensor.
    """
    try:
        guards: Any = importlib.import_module("torch._C._dynamo.guards")
        check: Callable[..., Any] = guards.TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(x.shape) for x in tensors],
            dynamic_dims_strides=[list(x.stride()) for x in tensors],
        ).check
        known = check(*tensors) is True
    except (AttributeError, ImportError, RuntimeError, TypeError):
        return unlike  # another torch's
    return check if known else unlike


def unlike(*_: Any) -> bool:
    """Nothing is."""
    return False
