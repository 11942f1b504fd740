"""The quickstarts: complete programs, which print what their pages show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"sglang": "sglang", "vllm": "vllm", "own": "own-engine"}  # program -> page


def ran(name: str, **environment: str) -> str:
    """What a program prints, run as a user runs it."""
    env = (
        os.environ
        | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
        | environment
    )
    command = [sys.executable, str(ROOT / "examples" / f"quickstart_{name}.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PAGES)
def test_the_page_shows_the_program_and_its_output(name: str) -> None:
    page = (ROOT / "docs" / "quickstart" / f"{PAGES[name]}.md").read_text()
    program = (ROOT / "examples" / f"quickstart_{name}.py").read_text()
    assert f"```python\n{program}```\n" in page
    shown = re.search(r"```text\n(.*?)```", page, re.S)
    assert shown is not None
    assert ran(name, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="") == shown[1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PAGES)
def test_on_a_gpu(name: str) -> None:
    assert ran(name)


def test_every_quickstart_has_a_page() -> None:
    programs = {path.stem.removeprefix("quickstart_") for path in (ROOT / "examples").glob("quickstart_*.py")}
    assert programs == set(PAGES)
