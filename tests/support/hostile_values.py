"""Values that nobody should pass, by name: what the host's checks are fuzzed with."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Four(enum.IntEnum):
    """An int, though no plain one."""

    FOUR = 4


class Sub(torch.Tensor):
    """A tensor, though no plain one."""


# In the place of any argument.
SCALARS: dict[str, Any] = {
    "None": None, "True": True, "0": 0, "-1": -1, "1": 1, "2": 2, "3": 3, "16": 16, "64": 64, "1024": 1024,
    "2**28": 2**28, "2**31 - 1": 2**31 - 1, "2**31": 2**31, "-2**31": -(2**31), "2**63": 2**63,
    "10**30": 10**30, "-10**30": -(10**30), "1.0": 1.0, "nan": float("nan"), "1j": 1j, "'16'": "16",
    "b''": b"", "[]": [], "()": (), "(1, 2)": (1, 2), "{}": {}, "object": object(), "IntEnum": Four.FOUR,
    "np.int64": np.int64(4), "np array": np.zeros(2, np.int64), "int": int, "lambda": lambda: 0,
    "torch.int32": torch.int32, "torch.int64": torch.int64, "torch.float16": torch.float16,
    "torch scalar": torch.tensor(4), "cpu": torch.device("cpu"),
}  # fmt: skip


def freed(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose memory was given back."""
    y = x.clone()
    y.untyped_storage().resize_(0)
    return y


def inference(x: torch.Tensor) -> torch.Tensor:
    """A tensor made in inference mode."""
    with torch.inference_mode():
        return x.clone()


# What is made of a good tensor.
VARIANTS: dict[str, Callable[[torch.Tensor], Any]] = {
    **{
        f"as {dtype}": lambda x, dtype=dtype: x.to(dtype)
        for dtype in (
            torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint64, torch.bool,
            torch.float16, torch.float64, torch.complex64,
        )
    },
    "as a float that requires grad": lambda x: x.float().requires_grad_(),
    "with a dimension more": lambda x: x[None],
    "with a dimension more behind": lambda x: x[..., None],
    "flat": lambda x: x.reshape(-1),
    "0-d": lambda x: x.reshape(-1)[0],
    "empty": lambda x: x[:0],
    "without a column": lambda x: x[..., :0],
    "one": lambda x: x[:1],
    "one less": lambda x: x[:-1],
    "one more": lambda x: torch.cat([x, x[-1:]]),
    "twice": lambda x: torch.cat([x, x]),
    "every other": lambda x: torch.repeat_interleave(x, 2, -1)[..., ::2],
    "backwards": lambda x: x.flip(-1),
    "transposed": lambda x: x.mT if x.dim() > 1 else x,
    "one entry, expanded": lambda x: x[..., :1].expand(x.shape),
    "one row, expanded": lambda x: x[:1].expand(x.shape),
    "expanded beyond 31 bits": lambda x: x[:1].expand(2**31 + 8, *x.shape[1:]),
    "on its own": torch.clone,
    "meta": lambda x: x.to("meta"),
    "on the CPU": lambda x: x.cpu(),
    "sparse": lambda x: x.to_sparse(),
    "numpy": lambda x: x.cpu().numpy(),
    "a list": lambda x: x.tolist(),
    "a subclass": lambda x: x.clone().as_subclass(Sub),
    "a parameter": lambda x: torch.nn.Parameter(x.clone(), requires_grad=False),
    "of inference mode": inference,
    "freed": freed,
    "a storage": lambda x: x.untyped_storage(),
}  # fmt: skip
