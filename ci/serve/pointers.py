"""The kind of a tensor's memory: pinned host memory can look like a GPU's, as in vLLM's UVA tensors."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_MEMORY_TYPE, _IS_MANAGED = 2, 8  # CUpointer_attribute
_KINDS = {1: "host", 2: "device", 3: "array", 4: "unified"}


@functools.cache
def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None  # no NVIDIA driver


def memory(address: int) -> str:
    """Returns what the driver reports for an address: device, host, managed or unknown."""
    driver = _driver()
    if driver is None:
        return "no driver"
    kind, managed = ctypes.c_uint(0), ctypes.c_uint(0)
    pointer = ctypes.c_uint64(address)
    code = driver.cuPointerGetAttribute(ctypes.byref(kind), _MEMORY_TYPE, pointer)
    if code:
        return f"unknown ({code})"
    code = driver.cuPointerGetAttribute(ctypes.byref(managed), _IS_MANAGED, pointer)
    return "managed" if code == 0 and managed.value else _KINDS.get(kind.value, str(kind.value))


def described(value: Any) -> dict[str, Any] | None:
    """Describes one argument of a launch; None if it is not a tensor.

    For a tensor of addresses (uint64), also describes the memory of each address, which syncs.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    row = {
        "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape),
        "torch": str(value.device), "memory": memory(value.data_ptr()),
    }  # fmt: skip
    if value.dtype is torch.uint64:
        row["points to"] = sorted({memory(int(x)) for x in value.cpu().numpy()})
    return row
