"""Installing the wheel changes nothing that a node has: AMD's torch and triton, or an engine's image."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import packaging
import pytest
import rocm_builds
import standins
from standins import Node

import xkv

ROOT = Path(__file__).resolve().parents[2]
OURS = {f"xkv=={xkv.__version__}"}
PACKAGING = {f"packaging=={packaging.__version__}"}

pytestmark = [pytest.mark.repo, pytest.mark.slow]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """What pip could fetch: ours and packaging; newer torches and tritons, were anybody to ask for them."""
    folder = tmp_path_factory.mktemp("index")
    shutil.copy(wheel, folder)
    standins.packaging_wheel(folder)
    standins.torch(folder, "2.99.0", ["triton==3.99.0"], cuda="13.0")
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm"):
        standins.triton(folder, "3.99.0", name)
    return folder


def amd(tmp_path: Path, triton: str) -> Node:
    """A node with AMD's build, whose triton goes by this name."""
    node = Node(tmp_path / "node")
    parts = tmp_path / "parts"
    node.install(
        standins.torch(parts, "2.11.0+rocm7.0", [f"{triton}==3.6.0"], hip="7.0"),
        standins.triton(parts, "3.6.0", triton),
    )
    return node


def added(node: Node, *arguments: object) -> set[str]:
    """What an install adds to `pip list`, having checked that it changes nothing that was there."""
    files, listed = node.files(), node.listed()
    node.install(*arguments)
    after = node.files()
    assert {path: after.get(path) for path in files} == files
    parts = {path.partition("site-packages/")[2].partition("/")[0] for path in after.keys() - files.keys()}
    # "" for the console script, which lies in bin
    known = {"xkv", "packaging", f"xkv-{xkv.__version__}.dist-info", ""}
    assert parts <= known | {f"packaging-{packaging.__version__}.dist-info"}
    now = node.listed()
    assert listed <= now
    return now - listed


@pytest.mark.parametrize("triton", rocm_builds.NAMES)
def test_beside_amds_torch(triton: str, tmp_path: Path, index: Path) -> None:
    node = amd(tmp_path, triton)
    assert added(node, "--find-links", index, "xkv") == OURS | PACKAGING
    done = node.run("-m", "xkv", "info")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "torch 2.11.0+rocm7.0 (HIP 7.0)" in lines
    assert "triton 3.6.0" in lines
    assert "warning" not in done.stdout


def test_the_index_would_be_used(tmp_path: Path, index: Path) -> None:
    """Else the test above could not fail: asked for a triton, pip lays it over AMD's."""
    node = amd(tmp_path, "triton-rocm")
    before = node.files()
    node.install("--find-links", index, "triton")
    assert {path: node.files()[path] for path in before} != before
    # and xkv, there at last, says so
    node.install("--find-links", index, "xkv")
    done = node.run("-m", "xkv", "info")
    assert "warning: triton 3.99.0 and triton-rocm 3.6.0 lie over one another" in done.stdout
    assert "torch requires triton-rocm: pip uninstall triton, then reinstall triton-rocm" in done.stdout


def test_in_an_engines_image(tmp_path: Path, wheel: Path) -> None:
    node = Node(tmp_path / "node")
    parts = tmp_path / "parts"
    node.install(
        standins.torch(parts, "2.11.0", ["triton==3.6.0"], cuda="13.0"),
        standins.triton(parts, "3.6.0"),
        standins.wheel(parts, "sglang", "0.5.23", {"sglang/__init__.py": ""}, ["torch==2.11.0", "packaging"]),
        standins.packaging_wheel(parts),
    )
    assert added(node, "--no-deps", wheel) == OURS
    assert node.run("-m", "xkv", "--version").stdout == f"xkv {xkv.__version__}\n"


def gpu_leg(node: Node, arch: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """ci/gpu.sh where python3 is the node's."""
    path = f"{node.python.parent}:{os.environ['PATH']}"
    command = [ROOT / "ci" / "gpu.sh", arch]
    env = standins.environment(PATH=path, XKV_OUT=str(node.folder / "out"), **extra)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_gpu_leg_needs_its_vendors_torch(tmp_path: Path) -> None:
    done = gpu_leg(amd(tmp_path, "triton-rocm"), "sm90")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ci/gpu.sh: sm90 needs a torch built for cuda, and python3 has one for hip"
    ]


def test_gpu_leg_fails_where_the_install_brings_a_triton(tmp_path: Path) -> None:
    node = amd(tmp_path, "triton-rocm")
    parts = tmp_path / "parts"
    bad = standins.wheel(parts, "xkv", "6.6.6", {"triton/__init__.py": '__version__ = "3.99.0"\n'})
    done = gpu_leg(node, "gfx942", XKV_WHEEL=str(bad))
    assert done.returncode == 1
    assert "\nchanged\nhip 7.0 torch 2.11.0+rocm7.0 " in done.stderr
    assert "\ntriton 3.6.0 " in done.stderr
    assert "\ntriton 3.99.0 " in done.stderr
    assert "GPU tier" not in done.stdout
