"""A stand-in HIP node: a python3 whose torch has one GPU, the stand-in of `hip_standin`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import hip_standin
import standins

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent


def make(folder: Path) -> standins.Node:
    """A node with the running environment's packages, and the stand-in that its python3 begins with."""
    node = standins.Node(folder)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    shutil.copy(hip_standin.__file__, packages)
    (packages / "running.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (packages / "standin.pth").write_text("import hip_standin; hip_standin.install()\n")
    return node


def gpu_leg(node: standins.Node, wheel: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """ci/gpu.sh on that node, with this wheel; its output is in the node's folder out."""
    env = standins.environment(
        PATH=f"{node.python.parent}:{os.environ['PATH']}", XKV_OUT=str(node.folder / "out"),
        XKV_WHEEL=str(wheel), PIP_NO_INDEX="1", OMP_NUM_THREADS="1", **extra,
    )  # fmt: skip
    command = [ROOT / "ci" / "gpu.sh", hip_standin.ARCH]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)
