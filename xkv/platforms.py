"""What the machine has: vendor, arch, warp size, compute units. Detected on first use, per device."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VENDORS = {"sm": "cuda", "gfx": "hip"}


class UnsupportedPlatformError(RuntimeError):
    """The device or its software cannot run xkv; the message says what was found and what to do."""


@dataclass(frozen=True)
class Platform:
    """One device as xkv sees it.

    Attributes:
        vendor: "cuda", "hip" or "cpu": what Triton calls its back end, or "cpu" for none.
        arch: "sm90", "gfx942", ... or "cpu".
        warp_size: threads in a warp (CUDA) or lanes in a wavefront (ROCm); 1 on a CPU.
        compute_units: multiprocessors (CUDA) or compute units (ROCm); what the grid is sized by.
    """

    vendor: str
    arch: str
    warp_size: int
    compute_units: int

    def __str__(self) -> str:
        return f"{self.arch} ({self.vendor}, {self.compute_units} compute units)"


# 4: enough programs for the interpreter to show a grid's faults, few enough to be quick
CPU = Platform("cpu", "cpu", 1, 4)


def platform(device: torch.device | str | int | None = None) -> Platform:
    """Returns the platform of a device; detected once, then cached. Does not sync.

    The environment variable XKV_ARCH ("sm90", "gfx942", ...) overrides the arch that was found, for
    tuning rows only: the kernel is still compiled for the device at hand.

    Args:
        device: a torch device, or None for the current GPU, or the CPU where there is none.

    Returns:
        The device's `Platform`.

    Raises:
        UnsupportedPlatformError: the device is neither a CPU nor a GPU that Triton drives, or torch
            or Triton are missing or too old.
    """
    torch = _torch()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device) if not isinstance(device, int) else torch.device("cuda", device)
    if where.type == "cpu":
        return _override(CPU, os.environ.get("XKV_ARCH", ""))
    if where.type != "cuda":
        raise UnsupportedPlatformError(
            f"device {str(where)!r} is not supported: xkv runs on CUDA and ROCm GPUs (torch device"
            " 'cuda') and on the CPU; move the tensors there"
        )
    if not torch.cuda.is_available():
        raise UnsupportedPlatformError(
            f"device {str(where)!r} was asked for but torch {torch.__version__} finds no GPU: install"
            " a torch built for this node's GPU (see the README) and check its driver"
        )
    index = torch.cuda.current_device() if where.index is None else where.index
    return _override(_detect(index), os.environ.get("XKV_ARCH", ""))


def _torch() -> Any:
    from packaging.version import Version

    try:
        import torch
    except ImportError as error:
        raise UnsupportedPlatformError(
            "torch is not installed: pip install 'xkv[cuda]' on NVIDIA, AMD's torch and then"
            " 'xkv[rocm]' on AMD, or 'xkv[cpu]' without a GPU"
        ) from error
    if Version(torch.__version__).release < (2, 8):
        raise UnsupportedPlatformError(
            f"torch {torch.__version__} is too old: xkv needs 2.8 or newer; upgrade torch"
        )
    return torch


@functools.cache
def _detect(index: int) -> Platform:
    import torch
    from triton.runtime import driver

    with torch.cuda.device(index):
        target = driver.active.get_current_target()
    vendor, arch = target.backend, arch_id(target.backend, target.arch)
    if vendor not in VENDORS.values():
        raise UnsupportedPlatformError(
            f"Triton drives this GPU with its back end {vendor!r}: xkv supports 'cuda' and 'hip'"
        )
    units = torch.cuda.get_device_properties(index).multi_processor_count
    return Platform(vendor, arch, target.warp_size, units)


def arch_id(vendor: str, arch: int | str) -> str:
    """Triton's arch as xkv writes it: 90 -> "sm90", "gfx942:sramecc+:xnack-" -> "gfx942"."""
    return f"sm{arch}" if vendor == "cuda" else str(arch).split(":")[0]


@functools.cache
def _override(found: Platform, arch: str) -> Platform:
    if not arch or arch == found.arch:
        return found
    vendor = next((v for prefix, v in VENDORS.items() if arch.startswith(prefix)), None)
    if arch == "cpu" or vendor is None or (found.vendor != "cpu" and vendor != found.vendor):
        raise UnsupportedPlatformError(
            f"XKV_ARCH={arch!r} does not fit the device found, {found}: give an arch of its vendor,"
            " such as 'sm90' or 'gfx942', or unset it"
        )
    return Platform(found.vendor, arch, found.warp_size, found.compute_units)
