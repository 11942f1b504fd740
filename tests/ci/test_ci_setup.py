"""What ci/run.sh and ci/release.sh have pip install: a torch where there is none, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import standins
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.repo

# An environment's python: it has torch or not, notes what pip is asked for, and does nothing else that lasts.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-c import torch, triton") exit {status} ;;
    "-m pip") shift 3; printf '%s\\n' "$@" >"{asked}" ;;
    "-m xkv" | "-m mkdocs") ;;
    *) exec {python} "$@" ;;
esac
"""


def asked_for(tmp_path: Path, has_torch: bool, command: str = "demo") -> list[str]:
    """What `ci/run.sh demo` asks pip for, in an environment that is there already; or another command."""
    venv = tmp_path / "venv"
    place = tmp_path / "venv-docs" if command == "docs" else venv
    python, asked = place / "bin" / "python", tmp_path / "asked"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(status=int(not has_torch), asked=asked, python=sys.executable))
    python.chmod(0o755)
    env = standins.environment(XKV_VENV=str(venv))
    done = subprocess.run(
        [ROOT / "ci" / "run.sh", command], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return asked.read_text().splitlines()


PACKAGE = ["-qq", "-e", f"{ROOT}[test,lint,plot]"]


def test_beside_a_nodes_packages(tmp_path: Path) -> None:
    """Nothing of what the engines there have in a version of their own."""
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    (site / "node.pth").touch()
    assert asked_for(tmp_path, has_torch=True) == PACKAGE


def test_beside_a_torch(tmp_path: Path) -> None:
    asked = asked_for(tmp_path, has_torch=True)
    assert asked[: len(PACKAGE)] == PACKAGE
    assert {Requirement(line).name for line in asked[len(PACKAGE) :]} == {"kernels"}


@pytest.mark.skipif(Path("/dev/kfd").exists(), reason="an AMD GPU: ci/run.sh asks for AMD's torch")
def test_without_a_torch(tmp_path: Path) -> None:
    asked = asked_for(tmp_path, has_torch=False)
    assert asked[: len(PACKAGE)] == PACKAGE
    requirements = [Requirement(line) for line in asked[len(PACKAGE) :]]
    assert {requirement.name for requirement in requirements} == {"torch", "triton", "numpy", "kernels"}
    # pinned, in pyproject.toml alone
    assert all([each.operator for each in requirement.specifier] == ["=="] for requirement in requirements)
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in text for line in asked[len(PACKAGE) :])


def test_the_documentations_tools(tmp_path: Path) -> None:
    """They are pinned, have an environment of their own, and none of them is a torch."""
    requirements = [Requirement(line) for line in asked_for(tmp_path, has_torch=True, command="docs")[1:]]
    assert {requirement.name for requirement in requirements} >= {"mkdocs", "mkdocs-material", "mkdocstrings"}
    assert not {requirement.name for requirement in requirements} & {"torch", "triton", "numpy", "xkv"}
    assert all([each.operator for each in requirement.specifier] == ["=="] for requirement in requirements)


def test_a_group_that_is_not_there() -> None:
    """A script stops there, and installs no half of its environment."""
    code = 'set -e; . ci/lib.sh; found=$(dependency_group "$0" tensorflow); echo "found $found"'
    command = ["bash", "-c", code, sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "KeyError: 'tensorflow'" in done.stderr
    assert done.stdout == ""
