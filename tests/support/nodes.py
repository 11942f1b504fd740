"""Nodes with GPUs that are not there: torch and Triton's driver, faked as far as xkv asks them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton.runtime

Gpu = tuple[str, "int | str", int, int]  # back end, arch, warp size, compute units


class Machine:
    """GPUs as torch and Triton show them: a list of (back end, arch, warp size, compute units)."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = gpus
        self.current = 0
        self.asked: list[int] = []  # devices whose target Triton was asked for

    @property
    def active(self) -> Machine:
        return self

    def get_current_target(self) -> types.SimpleNamespace:
        self.asked.append(self.current)
        backend, arch, warp_size, _ = self.gpus[self.current]
        return types.SimpleNamespace(backend=backend, arch=arch, warp_size=warp_size)

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        try:
            yield
        finally:
            self.current = before

    def properties(self, index: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(multi_processor_count=self.gpus[index][3])


class NoDriver:
    """Triton's driver where it was built for another vendor."""

    @property
    def active(self) -> Any:
        raise RuntimeError("0 active drivers ([]). There should only be one.")


def plug(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> Machine:
    """Puts a `Machine` behind torch.cuda and Triton's driver."""
    machine = Machine(*gpus)
    monkeypatch.setattr(triton.runtime, "driver", machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: machine.current)
    monkeypatch.setattr(torch.cuda, "device", machine.device)
    monkeypatch.setattr(torch.cuda, "get_device_properties", machine.properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {gpus[index][1]}")
    return machine


def forget(*modules: types.ModuleType) -> None:
    """Empties the caches of these modules."""
    for value in (value for module in modules for value in vars(module).values()):
        if hasattr(value, "cache_clear"):
            value.cache_clear()
