"""Triton kernels of other packages, from a checkout or an unpacked wheel, on whatever this process has.

Their modules import the whole package, which needs its compiled code or a server: `imported` runs a module's
own file and those that it imports, with empty packages around them and stand-ins for what is named. `prepare`
then lets their kernels run here: on a GPU of either vendor, in Triton's interpreter, or as gfx942 machine
code in the program that XKV_AMD_EXECUTOR names (executing.py).
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import executing
import numpy as np
import pytest
import torch
import triton
from triton.backends.amd.compiler import HIPBackend
from triton.runtime.jit import KernelInterface

from xkv.params import Build
from xkv.platforms.detect import Platform

GPU, INTERPRETER, EMULATED = "gpu", "interpreter", "emulated"
ARCH = "gfx942"
# What Triton's AMD back end alone takes.
AMD_OPTIONS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")
OPTIONS = (*AMD_OPTIONS, "num_warps", "num_stages", "launch_pdl")
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int8: "i8",
    torch.bool: "i1",
}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[list[Build]]:
    """What xkv launches, which is executed as gfx942 machine code: that of an MI300X."""
    return executing.execute_launches(Platform("hip", ARCH, 64, 304), monkeypatch)


def imported(name: str, folders: Mapping[str, Path], standins: Mapping[str, Mapping[str, Any]]) -> ModuleType:
    """Imports a module anew, from the folders of its packages, whose own ``__init__`` is not run."""
    with _beside(name.split(".")[0]):
        for package, folder in folders.items():
            sys.modules[package] = shell = ModuleType(package)
            shell.__path__ = [str(folder)]
        for module, names in standins.items():
            sys.modules[module] = standin = ModuleType(module)
            standin.__dict__.update(names)
        for module in (*folders, *standins):
            parent, _, child = module.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, sys.modules[module])
        return importlib.import_module(name)


@contextmanager
def _beside(package: str) -> Iterator[None]:
    """Takes away what is imported meanwhile: tests of the installed package must not find these modules."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]

    kept, finders = {name: sys.modules.pop(name) for name in ours()}, list(sys.meta_path)
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(kept)
        sys.meta_path[:] = finders


def prepare(module: ModuleType, place: str) -> ModuleType:
    """Lets the kernels that a module names run at this place."""
    for kernel in module.__dict__.values():
        if isinstance(kernel, KernelInterface):
            kernel.run = _runner(kernel, place)
    return module


def _runner(kernel: Any, place: str) -> Any:
    plain = kernel.run
    # an option may be a parameter of the kernel, too
    foreign = [name for name in AMD_OPTIONS if name not in kernel.arg_names]

    def on_gpu(*args: Any, **options: Any) -> Any:
        if torch.version.hip is None:
            options = {name: x for name, x in options.items() if name not in foreign}
        return plain(*args, **options)

    def interpreted(*args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        # the interpreter drops num_warps and num_stages also where the kernel has such parameters
        found = _bound(kernel, args, options)
        # lanes that are masked divide by 0, as they do on a GPU, and a maximum may be of NaN alone
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return plain(*found.values(), grid=grid, warmup=warmup)

    def emulated(*args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return _emulate(kernel, _bound(kernel, args, options), grid, options)

    return {GPU: on_gpu, INTERPRETER: interpreted, EMULATED: emulated}[place]


def _bound(kernel: Any, args: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter."""
    given = {name: x for name, x in options.items() if name in kernel.arg_names or name not in OPTIONS}
    found = inspect.signature(kernel.fn).bind(*args, **given)
    found.apply_defaults()
    return dict(found.arguments)


def _emulate(
    kernel: Any, values: Mapping[str, Any], grid: tuple[int, ...], options: Mapping[str, Any]
) -> None:  # fmt: skip
    """Compiles with the launch's options, but with nothing known of an argument's value, and executes."""
    signature = {param.name: _type(param, values[param.name]) for param in kernel.params}
    constexprs = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
    arrays = {name: _array(x) if isinstance(x, torch.Tensor) else x for name, x in values.items()}
    executor = executing.executor()
    # the emulator has the results of 32x32 matrix instructions in other registers than a GPU
    given = {name: options[name] for name in (*AMD_OPTIONS, "num_stages") if name in options}
    with _compiling(given | {"matrix_instr_nonkdim": 16}):
        executor.run(kernel, signature, constexprs, arrays, grid, ARCH, options.get("num_warps", 4))


@contextmanager
def _compiling(given: Mapping[str, Any]) -> Iterator[None]:
    """Adds options to what Triton compiles meanwhile: executors know num_warps alone.

    Without buffer instructions, of which the emulator moves whole words only.
    """
    plain, has_buffers = HIPBackend.parse_options, triton.knobs.amd.use_buffer_ops
    HIPBackend.parse_options = lambda self, options: plain(self, options | given)
    triton.knobs.amd.use_buffer_ops = False
    try:
        yield
    finally:
        HIPBackend.parse_options = plain
        triton.knobs.amd.use_buffer_ops = has_buffers


def _type(param: Any, value: Any) -> str:
    if param.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return str(param.annotation_type or ("i32" if -(2**31) <= value < 2**31 else "i64"))


def _array(x: torch.Tensor) -> Any:
    """The same memory: numpy has no bfloat16."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
