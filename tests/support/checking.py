"""What the tests of `xkv check` share: its table, read back, and faults to plant."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import xkv
from xkv import ops


def results(out: str) -> dict[str, tuple[int, str]]:
    """Group -> its cases and its result."""
    found = re.findall(r"^(\w[\w ]*?) +(\d+)  (pass|FAIL|no GPU) +[\d.]+$", out, re.MULTILINE)
    return {name: (int(cases), result) for name, cases, result in found}


def failed(out: str) -> set[str]:
    return {name for name, (_, result) in results(out).items() if result == "FAIL"} - {"total"}


def outputs(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, xkv.KVIndices) else [result]


def bump(x: torch.Tensor, offset: int) -> None:
    """Adds one to an element of x's storage, counted from x's first."""
    x.as_strided((1,), (1,), x.storage_offset() + offset).add_(1)


def plant(monkeypatch: pytest.MonkeyPatch, op: str, spoil: Callable[..., Any]) -> None:
    """Makes an op do ``spoil(build, arguments)``."""
    build = getattr(xkv, op)
    monkeypatch.setattr(ops, op, lambda **call: spoil(build, call))
