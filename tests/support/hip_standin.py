"""A stand-in for a HIP GPU, so that ci/gpu.sh itself can be run without one; nothing of it is part of xkv.

It is a module of a stand-in node (`hip_node`), whose python3 imports it at its start. torch then says that it
is built for HIP and has one GPU, and tensors asked for on it lie in the CPU's memory. What xkv computes there
is computed by its torch reference, as for any tensors of the CPU; where STANDIN_LOG names a file, the first
launches of each process are compiled for the arch instead, and their machine code is executed by
XKV_AMD_EXECUTOR (`executing`), which is noted in that file. All times are made up, and the GPU's name says
that it is none.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

ARCH, UNITS, WARP = "gfx942", 304, 64
NAME = f"stand-in for {ARCH}, no GPU"
EMULATED = 60  # launches of a process: a sample
_MEMORY = 1 << 29  # bytes: little, so that batches of little memory are made
_LARGEST = 1 << 24  # elements of bytes that only keep a memory busy; there is none


class Patcher(importlib.abc.MetaPathFinder):
    """Changes modules once they are imported."""

    def __init__(self, patches: dict[str, Any]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        patch = self._patches.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = exec_module
        return spec


def patch_torch(torch: Any) -> None:
    """One GPU, of HIP."""
    torch.version.hip, torch.version.cuda = "7.0.0-stand-in", None
    cuda = torch.cuda
    properties = SimpleNamespace(
        name=NAME, multi_processor_count=UNITS, warp_size=WARP, total_memory=_MEMORY,
        gcnArchName=f"{ARCH}:sramecc+:xnack-",
    )  # fmt: skip
    cuda.is_available, cuda.is_initialized = lambda: True, lambda: True
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda.get_device_name, cuda.get_device_properties = (
        lambda device=None: NAME,
        lambda device=None: properties,
    )
    cuda.mem_get_info = lambda device=None: (_MEMORY, _MEMORY)
    cuda.synchronize, cuda.is_current_stream_capturing = lambda device=None: None, lambda: False
    cuda.Event, cuda.CUDAGraph, cuda.graph = Event, Graph, captured
    cuda.device = lambda device: contextlib.nullcontext()
    profile, only = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]
    torch.profiler.profile = lambda activities: profile(activities=only)
    device = torch.device

    class OnTheCpu(torch.overrides.TorchFunctionMode):
        """Tensors that are asked for on the GPU are made on the CPU; large buffers of bytes are small."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is device:  # a name of the GPU, not a tensor there
                return func(*args, **(kwargs or {}))
            kwargs = {key: _on_the_cpu(value, device) for key, value in (kwargs or {}).items()}
            if kwargs.get("dtype") is torch.uint8 and args and args[0].__class__ is int:
                args = (min(args[0], _LARGEST), *args[1:])
            return func(*(_on_the_cpu(each, device) for each in args), **kwargs)

    OnTheCpu().__enter__()  # to the process's end


def _on_the_cpu(value: Any, device: type) -> Any:
    if isinstance(value, device):
        return device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class Event:
    """One that has passed at once; any two are as far apart."""

    def __init__(self, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: Any) -> float:
        """Milliseconds, made up."""
        return 1.0


class Graph:
    """What is captured has been executed then; a replay does nothing."""

    def replay(self) -> None:
        pass


@contextlib.contextmanager
def captured(graph: Graph, **options: Any) -> Iterator[None]:
    yield


def patch_triton(runtime: Any) -> None:
    """Triton finds the GPU's driver, which launches nothing: xkv's kernels are executed elsewhere."""
    target = importlib.import_module("triton.backends.compiler").GPUTarget("hip", ARCH, WARP)
    runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target, get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )  # fmt: skip
    run = runtime.jit.JITFunction.run

    def launch(self: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        """Compiles, if that is asked for; executes nothing."""
        return run(self, *args, warmup=True, **options) if warmup else None

    runtime.jit.JITFunction.run = launch


def patch_reference(reference: Any) -> None:
    """A sample of the launches is compiled for the arch and executed by the emulator."""
    sys.path.append(os.environ["STANDIN_SUPPORT"])
    run, counter = reference.run, itertools.count()

    def emulated(build: Any) -> None:
        if next(counter) >= EMULATED:
            run(build)
            return
        executing = importlib.import_module("executing")
        detect, dispatch = map(importlib.import_module, ("xkv.platforms.detect", "xkv.dispatch"))
        where = detect.Platform("hip", ARCH, WARP, UNITS)
        row = dispatch.tuning_row(where, build.access_pattern, build.batch)
        kernel = executing.execute(build, row, where)
        with open(os.environ["STANDIN_LOG"], "a") as log:
            log.write(f"{kernel.metadata.target.arch}\n")

    reference.run = emulated


def install() -> None:
    """In the node's python3, before anything is imported."""
    patches = {"torch": patch_torch, "triton.runtime": patch_triton}
    if "STANDIN_LOG" in os.environ:
        patches["xkv.reference"] = patch_reference
    sys.meta_path.insert(0, Patcher(patches))
