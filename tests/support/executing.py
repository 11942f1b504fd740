"""Runs AMD machine code where there is no AMD GPU: the third kind of device, beside GPU and interpreter.

XKV_AMD_EXECUTOR names a Python file that can; nothing of it is part of xkv. It has a function

    run(fn, signature, constexprs, args, grid, arch, num_warps)

which compiles the Triton function for the arch, executes what came out over the numpy arrays among
``args`` in place, and returns Triton's CompiledKernel. ``signature`` maps every parameter to its type
("*i32", "i64", "constexpr"), ``args`` every parameter to its value.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import building
import emulator_gaps
import fences
import pytest
import torch
from compiling import specialized

from xkv import dispatch, reference
from xkv.chosen import ChosenTokens
from xkv.cli.check import memory
from xkv.cli.kernels.compiling import intercepted, plugged
from xkv.expanded import Expansion
from xkv.kernel.entry import xkv_build
from xkv.kernel.group import xkv_build_group
from xkv.launch import chosen, expanded, launch
from xkv.launch.group import GroupInputs, GroupKernel, GroupPart, fill, part_words
from xkv.launch.verify import WRITTEN
from xkv.metadata.parts import GroupLaunches
from xkv.params import Build, View
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import Tuning

PLACE = os.environ.get("XKV_AMD_EXECUTOR", "")
MACHINE_CODE = [
    pytest.mark.compile,
    pytest.mark.slow,
    pytest.mark.skipif(not PLACE, reason="needs XKV_AMD_EXECUTOR, a file that executes AMD machine code"),
]
"""The marks of tests that execute it."""


def machine_code(test: Any) -> Any:
    """Marks a test so, in a file that has others."""
    return functools.reduce(lambda marked, mark: mark(marked), MACHINE_CODE, test)


@functools.cache
def executor() -> Any:
    """What the file defines, imported once a process."""
    if not Path(PLACE).is_file():
        raise FileNotFoundError(f"XKV_AMD_EXECUTOR={PLACE!r} is no file")
    spec = importlib.util.spec_from_file_location("xkv_amd_executor", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    emulator_gaps.teach()
    return module


def execute(build: Build, row: Tuning, where: Platform) -> Any:
    """Launches a build of CPU tensors on such a GPU; returns the CompiledKernel that was executed.

    All that it reads ends where memory ends, on a GPU of one unit begins where memory begins.
    """
    build = fences.fence(build, behind=where.compute_units > 1)

    def run(*args: Any, grid: tuple[int, ...], **options: Any) -> Any:
        return _run(xkv_build, args, grid, where, **options)

    return intercepted(build, row, where, run)


def execute_group(parts: Sequence[GroupPart], inputs: GroupInputs, max_batch: int, where: Platform) -> Any:
    """The same of a group's launch."""

    def fenced(x: Any) -> Any:
        return fences.fenced(x, where.compute_units > 1) if isinstance(x, torch.Tensor) else x

    inputs = GroupInputs(*map(fenced, inputs))
    builds = [[fences.fence(x, where.compute_units > 1) if x else None for x in part[:2]] for part in parts]
    parts = [
        GroupPart(table, slots, part.is_window) for (table, slots), part in zip(builds, parts, strict=True)
    ]  # type: ignore[arg-type]
    for part in parts:
        fill(part, inputs)
    kernel = GroupKernel(parts, part_words(parts), max_batch, where)
    grid, _ = kernel.grid(inputs.seq_lens.shape[0])
    with plugged(xkv_build_group, where):
        return _run(
            xkv_build_group, [*kernel.arguments(inputs), kernel.config], grid, where, **kernel.options
        )


def execute_chosen(build: ChosenTokens, where: Platform) -> Any:
    """The same of a translation of chosen positions."""
    written = ("out", "counts", "status")
    return _execute_alone(
        chosen.chosen_kernel(), _fenced_inputs(build, written, where), where, chosen,
        dispatch.chosen_row(where, build.num_tokens, build.whole_rows),
    )  # fmt: skip


def execute_expanded(build: Expansion, where: Platform) -> Any:
    """The same of an expansion of requests into query tokens."""
    return _execute_alone(
        expanded.expanded_kernel(), _fenced_inputs(build, ("out", "status"), where), where, expanded
    )  # fmt: skip


def _fenced_inputs(build: Any, written: Sequence[str], where: Platform) -> Any:
    found = {field.name: getattr(build, field.name) for field in dataclasses.fields(build)}
    tensors = {name: x for name, x in found.items() if isinstance(x, torch.Tensor) and name not in written}
    behind = where.compute_units > 1
    return dataclasses.replace(build, **{name: fences.fenced(x, behind) for name, x in tensors.items()})


def _execute_alone(kernel: Any, build: Any, where: Platform, how: Any, *tuning: Any) -> Any:
    args = [*how.arguments(build), how.config(build, *tuning, where)]
    options = how.options(build, *tuning, where) if tuning else how.options(where)
    with plugged(kernel, where):
        return _run(kernel, args, how.grid(build, *tuning), where, **options)


def _run(kernel: Any, args: Sequence[Any], grid: tuple[int, ...], where: Platform, **options: Any) -> Any:
    found = specialized(*args, grid=grid, kernel=kernel, **options)
    unknown = {name: known for name, (kind, known) in found.items() if kind != "constexpr" and known}
    assert not unknown, "the executor compiles with nothing known of an argument, as launches do"
    signature = {name: kind for name, (kind, _) in found.items()}
    values = dict(zip(kernel.arg_names, args, strict=True))
    constexprs = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
    values = {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in values.items()}
    num_warps = options.pop("num_warps")
    assert not options, f"options that the executor does not know: {options}"
    return executor().run(kernel, signature, constexprs, values, grid, where.arch, num_warps)


def execute_launches(where: Platform, monkeypatch: pytest.MonkeyPatch) -> list[list[Build]]:
    """Executes, as on such a GPU, every launch that xkv makes from now on, and lists their builds."""
    found: list[list[Build]] = []

    def run(build: Build) -> None:
        build = dataclasses.replace(build)  # builders fill theirs again
        execute(build, launch.tuned(build, where), where)
        found.append([build])

    def run_group(self: GroupLaunches, known: Any, builds: list[Build], inputs: GroupInputs) -> None:
        execute_group(known.parts, inputs, self._max_batch_size, where)
        found.append(builds)

    monkeypatch.setenv("XKV_ARCH", where.arch)
    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(GroupLaunches, "_launch", run_group)
    return found


def check(build: Build, row: Tuning, where: Platform) -> Any:
    """Executes the build and holds all that it wrote, guard words included, to the oracle."""
    want = building.twin(build)
    kernel = execute(build, row, where)
    reference.run(want)
    building.assert_same(build, want)
    return kernel


def guard(build: Build) -> None:
    """Puts every output that the build has between guard words, in place of where it lies."""
    build.views = tuple(map(_guarded_view, build.views))
    if build.status is not None:
        build.status = _guarded(build.status)


def _guarded_view(view: View) -> View:
    return dataclasses.replace(
        view, **{name: _guarded(x) for name in WRITTEN if (x := getattr(view, name)) is not None}
    )


def _guarded(x: torch.Tensor) -> torch.Tensor:
    if x.dim() == 1:
        out = memory.guarded_1d(x.shape[0], x.dtype, "cpu")
    else:
        out = memory.guarded(x.shape[0], x.shape[1], x.stride(0), x.dtype, "cpu")
    return out.copy_(x)
