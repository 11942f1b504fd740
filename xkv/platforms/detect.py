"""Detects a device's vendor, arch, warp size and compute units, once per device, on first use."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_FIRST_PDL = 90  # sm: programmatic dependent launch
VENDORS = {"cuda": r"sm\d+", "hip": r"gfx[0-9a-f]+"}  # Triton's back end -> regex of its arch ids

# The oldest that compile xkv's kernel: Triton 3.4 fails on its loop, and torch 2.9 comes with 3.5. Every text
# that names them is compared with this line (tests/ci/test_oldest.py).
MIN_TORCH, MIN_TRITON = "2.9", "3.5"


class UnsupportedPlatformError(RuntimeError):
    """The device or its software cannot run xkv. The message says what was found and what to do.

    Examples:
        >>> import xkv
        >>> try:
        ...     xkv.platform("meta")
        ... except xkv.UnsupportedPlatformError as error:
        ...     print(str(error).split(":")[0])
        device 'meta' is not supported
    """


@dataclass(frozen=True)
class Platform:
    """The properties of a device that select and size launches.

    Attributes:
        vendor: "cuda" or "hip", the name of Triton's back end, or "cpu".
        arch: "sm90", "gfx942", ... or "cpu".
        warp_size: threads in a warp (CUDA) or lanes in a wavefront (ROCm); 1 on a CPU.
        compute_units: multiprocessors (CUDA) or compute units (ROCm); the grid is sized by it.
        device_arch: the arch that kernels are compiled for, if XKV_ARCH names another one; otherwise "".

    Examples:
        >>> import xkv
        >>> found = xkv.platform("cpu")
        >>> found.vendor, found.arch, found.warp_size
        ('cpu', 'cpu', 1)
        >>> print(found)
        cpu (cpu, 4 compute units)
    """

    vendor: str
    arch: str
    warp_size: int
    compute_units: int
    device_arch: str = ""

    def __hash__(self) -> int:  # computed in every launch; the dataclass's own hashes every field
        return hash(self.arch)

    @property
    def supports_pdl(self) -> bool:
        """Whether it has programmatic dependent launch: a kernel may start before the previous one ends."""
        return self.vendor == "cuda" and int((self.device_arch or self.arch)[2:]) >= _FIRST_PDL

    def __str__(self) -> str:
        return f"{self.arch} ({self.vendor}, {self.compute_units} compute units)"


# 4 compute units: enough programs to show errors of the grid in the interpreter, few enough to be quick
CPU = Platform("cpu", "cpu", 1, 4)


def platform(device: torch.device | str | int | None = None) -> Platform:
    """Returns the platform of a device; detected once, then cached. Does not sync.

    The environment variable XKV_ARCH ("sm90", "gfx942", ...) overrides the detected arch, for tuning rows
    and backends only: the kernel is still compiled for the actual device. On a CPU any arch may be named, to
    show or interpret what such a GPU would run.

    Args:
        device: a torch device. None: the current GPU, or the CPU if there is none.

    Returns:
        The device's `Platform`.

    Raises:
        UnsupportedPlatformError: the device is neither a CPU nor a GPU that Triton supports, or torch or
            Triton is missing or too old.

    Examples:
        >>> import xkv
        >>> xkv.platform("cpu").vendor
        'cpu'
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
    index = where.index
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return _override(_detect(index), os.environ.get("XKV_ARCH", ""))


@functools.cache
def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UnsupportedPlatformError(
            "torch is not installed, and xkv never installs it: on NVIDIA or without a GPU pip install"
            f" torch, on AMD install AMD's torch and triton; xkv needs torch {MIN_TORCH} or newer"
        ) from error
    _require("torch", torch.__version__, MIN_TORCH)
    return torch


def _require(name: str, found: str, oldest: str) -> None:
    from packaging.version import Version

    # the release segment alone: AMD's and NVIDIA's builds of 2.9 are versioned such as 2.9.0a0+git
    if Version(found).release < Version(oldest).release:
        raise UnsupportedPlatformError(
            f"{name} {found} is too old: xkv needs {oldest} or newer; upgrade torch, together with"
            " the triton that it was built with"
        )


@functools.cache
def _detect(index: int) -> Platform:
    torch = _torch()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise UnsupportedPlatformError(
            f"device 'cuda:{index}' was asked for but torch {torch.__version__} finds"
            f" {count or 'no'} GPU{'s'[: count != 1]}: install a torch built for this node's GPUs"
            " (see the README) and check their driver and the visible devices"
        )
    get_target = _triton_target(torch.__version__)
    with torch.cuda.device(index):
        target = get_target()
    vendor = target.backend
    if vendor not in VENDORS:
        raise UnsupportedPlatformError(
            f"Triton drives this GPU with its back end {vendor!r}: xkv supports 'cuda' and 'hip';"
            " use a GPU of NVIDIA or AMD, or tensors on the CPU"
        )
    units = torch.cuda.get_device_properties(index).multi_processor_count
    return Platform(vendor, arch_id(vendor, target.arch), target.warp_size, units)


def _triton_target(torch_version: str) -> Callable[[], Any]:
    """Returns the function that returns the current device's target."""
    try:
        import triton
        from triton.runtime import driver
    except ImportError as error:
        raise UnsupportedPlatformError(
            f"triton is not installed beside torch {torch_version}: install the one that this torch"
            " was built with, which on AMD comes from AMD"
        ) from error
    _require("triton", triton.__version__, MIN_TRITON)
    try:
        get_target: Callable[[], Any] = driver.active.get_current_target
    except RuntimeError as error:  # "0 active drivers"
        raise UnsupportedPlatformError(
            f"triton {triton.__version__} has no driver for the GPU that torch {torch_version}"
            " sees: the two were built for different vendors; install the triton that this torch"
            " was built with"
        ) from error
    return get_target


def arch_id(vendor: str, arch: int | str) -> str:
    """Converts Triton's arch to xkv's: 90 -> "sm90", "gfx942:sramecc+:xnack-" -> "gfx942"."""
    return f"sm{arch}" if vendor == "cuda" else str(arch).split(":")[0]


@functools.cache
def _override(found: Platform, wanted: str) -> Platform:
    arch = wanted.split(":")[0]
    if not wanted or arch == found.arch:
        return found
    vendor = next((v for v, ids in VENDORS.items() if re.fullmatch(ids, arch)), None)
    if vendor is None or (found.vendor != "cpu" and vendor != found.vendor):
        raise UnsupportedPlatformError(
            f"XKV_ARCH={wanted!r} does not fit the device found, {found}: give an arch of its"
            " vendor, such as 'sm90' or 'gfx942', or unset it"
        )
    if found.vendor != "cpu":
        return Platform(vendor, arch, found.warp_size, found.compute_units, found.arch)
    return Platform(vendor, arch, {"cuda": 32, "hip": 64}[vendor], found.compute_units)
