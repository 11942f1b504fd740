"""Registering one of our launches with vLLM, and what vLLM's stand-in for a kernel lacks.

``register_kernels`` puts a KernelOverride in a kernel's place, wherever it is referred to. That drops the
grid, which for `_gather_block_tables_kernel` alone says how many rows there are, has no ``warmup``, which
vLLM's start asserts that the V1 slot mapping's kernel has, and cannot send a call back to the kernel.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from xkv.integrations.codes import is_kernel
from xkv.integrations.vllm.known import Known

_log = logging.getLogger("vllm.xkv")


def register(kernel: Known) -> None:
    """Replaces a kernel whose module was imported; leaves it alone, with a warning, where it is none."""
    from vllm.triton_utils import dispatcher

    name = f"{kernel.module}.{kernel.name}"
    host = _host(kernel)
    attribute = kernel.name.rsplit(".", 1)[-1]
    original = getattr(host, attribute)
    if hasattr(original, "xkv_original"):
        return
    if not is_kernel(original):
        _log.warning("xkv leaves %s alone: it is no Triton kernel but a %s", name, type(original).__name__)
        return
    launch = _function(kernel.launch)
    dispatcher.register_kernels({name: launch})
    override = getattr(host, attribute)
    override.xkv_original = original
    override.xkv_launch = launch
    override.xkv_warmup = _function(kernel.warmup) if kernel.warmup else None
    override.__class__ = _class(type(override))


def _host(kernel: Known) -> Any:
    """The module or class that has the kernel as an attribute."""
    host: Any = importlib.import_module(kernel.module)
    for part in kernel.name.split(".")[:-1]:
        host = getattr(host, part)
    return host


def _function(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _class(base: type) -> type:
    """VLLM's stand-in, with the grid kept, the kernel's own ``warmup``, and a way back to the kernel."""

    class XkvOverride(base):  # type: ignore[misc]
        def __getitem__(self, grid: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> None:
                if callable(grid) or not self.xkv_launch(grid, *args, **kwargs):
                    self.xkv_original[grid](*args, **kwargs)

            return call

        def warmup(self, *args: Any, grid: Any, **kwargs: Any) -> Any:
            """Compiles what a call like this launches."""
            if self.xkv_warmup is None:
                return self.xkv_original.warmup(*args, grid=grid, **kwargs)
            return self.xkv_warmup(*args, **kwargs)

    return XkvOverride
