"""Where a tensor's memory really lies: pinned host memory can pass for a GPU's, as in vLLM's UVA tensors."""

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
        return None  # a machine without NVIDIA's driver


def memory(address: int) -> str:
    """What the driver says of an address: device, host, managed, or that it does not know."""
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
    """One argument of a launch; None where it is no tensor.

    A tensor of addresses (uint64) also says where each of them points: this waits for the GPU.
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
