"""What a record of timings names of the machine that they were measured on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import torch

from ... import __version__

_AMD_DRIVER = Path("/sys/module/amdgpu/version")


def versions() -> dict[str, str]:
    """What a record of timings names: the GPU, its driver, and the versions of what ran."""
    import triton

    toolkit = torch.version.cuda or torch.version.hip or "none"
    return {
        "gpu": torch.cuda.get_device_name(), "driver": _driver(), "toolkit": toolkit,
        "xkv": __version__, "torch": torch.__version__, "triton": triton.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def _driver() -> str:
    if torch.version.hip:  # a kernel's own amdgpu has no version, AMD's package has
        return _AMD_DRIVER.read_text().strip() if _AMD_DRIVER.is_file() else "unknown"
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return (said.splitlines() or ["unknown"])[0]
