"""What lies beside a fenced tensor ends the process that touches it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import fences
import pytest
import torch

SUPPORT = Path(fences.__file__).parent
TOUCH = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import fences, torch
x = torch.arange(1030).view(2, 515)[:, :513]
y = fences.fenced(x, behind=sys.argv[2] == "behind", readable=sys.argv[2] != "unreadable")
assert sys.argv[2] == "unreadable" or torch.equal(x, y)
ctypes.string_at(y.data_ptr() + int(sys.argv[3]), 1)
"""
BYTES = (515 + 513) * 8


def touch(side: str, byte: int) -> int:
    """Has another process touch a byte, counted from a tensor's first; returns its exit status."""
    command = [sys.executable, "-W", "error", "-c", TOUCH, str(SUPPORT), side, str(byte)]
    return subprocess.run(command, capture_output=True, text=True, check=False).returncode


@pytest.mark.parametrize("byte", [-1, 0, BYTES // 2, BYTES - 1])
def test_what_nobody_reads(byte: int) -> None:
    assert touch("unreadable", byte) == -signal.SIGSEGV


@pytest.mark.parametrize(("side", "byte"), [("behind", BYTES), ("before", -1)])
def test_a_byte_beside(side: str, byte: int) -> None:
    assert touch(side, byte) == -signal.SIGSEGV


@pytest.mark.parametrize("side", ["behind", "before"])
def test_the_first_and_the_last_byte(side: str) -> None:
    assert [touch(side, byte) for byte in (0, BYTES - 1)] == [0, 0]


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(0,), (1,), (1024,), (1025,), (0, 7), (3, 0), (5, 700)])
def test_any_shape(shape: tuple[int, ...], dtype: torch.dtype, behind: bool) -> None:
    x = torch.randint(1 << 30, shape, dtype=dtype)
    y = fences.fenced(x, behind)
    assert torch.equal(x, y)
    assert (x.stride(), x.dtype) == (y.stride(), y.dtype)
