"""examples/context_parallel.py: two ranks on the CPU have a dense cache's tokens; wrong slots are noticed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = [pytest.mark.repo, pytest.mark.slow]


def two_ranks(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*run, *command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("source", "page_size"), [("global", "64"), ("local", "16")])
def test_the_same_tokens(source: str, page_size: str) -> None:
    options = ["--source", source, "--interleave", "1", page_size, "--page-size", page_size, "--steps", "4"]
    done = two_ranks(str(EXAMPLES / "context_parallel.py"), *options)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"runs of (\d+), .* (\d+) of (\d+) tokens differ", done.stdout) == [
        ("1", "0", "48"), (page_size, "0", "48"),
    ]  # fmt: skip


SPOILT = """
import sys, context_parallel
write = context_parallel.Rank.write
context_parallel.Rank.write = lambda self, tokens, slots: write(self, tokens, slots - 1)
sys.exit(context_parallel.main(["--steps", "4"]))
"""


def test_wrong_slots_are_noticed(tmp_path: Path) -> None:
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    done = two_ranks(str(script))
    assert done.returncode == 1
    (wrong,) = re.findall(r"(\d+) of 48 tokens differ", done.stdout)
    assert int(wrong) > 0
