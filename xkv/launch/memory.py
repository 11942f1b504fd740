"""Detects inputs in pinned host memory, which a GPU reads over PCIe (vLLM's UVA tensors).

Such a tensor reports a CUDA device. Each program that reads a word of it waits a microsecond or two, so
launches with such inputs have few programs.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ..params import Build

_MEMORY_TYPE, _HOST = 2, 1  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_MEMORYTYPE_HOST; HIP has the same numbers


def inputs_on_host(build: Build) -> bool:
    """Whether anything that a build reads per request is in host memory."""
    vectors = (
        build.req_to_token, build.req_pool_indices, build.seq_lens, build.seq_lens_delta_rows,
        build.query_lens, build.positions, *(view.kv_start for view in build.views),
        *(view.kv_indptr for view in build.views if build.indptr_is_input),
    )  # fmt: skip
    return any(on_host(x) for x in vectors if x is not None)


def on_host(x: Tensor) -> bool:
    """Whether a tensor on a GPU is in host memory."""
    if not x.is_cuda or not x.numel() or is_dynamo_compiling():  # it cannot trace the call of the driver
        return False
    ask = _driver()
    if ask is None:
        return False
    found = ctypes.c_uint(0)
    status: int = ask(ctypes.byref(found), _MEMORY_TYPE, ctypes.c_uint64(x.data_ptr()))
    return status == 0 and found.value == _HOST


@functools.cache
def _driver() -> Any:
    """The driver's `cuPointerGetAttribute`; None on ROCm, whose counterpart is untested."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuPointerGetAttribute
    except (AttributeError, OSError):
        return None
