"""xdist's workers spread over the GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gpus
import pytest
import standins

pytestmark = pytest.mark.repo


def seen(worker: int, offered: dict[str, str]) -> dict[str, str]:
    """A worker's environment, which it inherits from the controller."""
    environ = {**offered, "PYTEST_XDIST_WORKER": f"gw{worker}"}
    gpus.take(environ)
    return {k: v for k, v in environ.items() if k.endswith("_DEVICES")}


@pytest.mark.parametrize(
    ("environ", "hip", "name", "ids"),
    [
        ({}, False, "CUDA_VISIBLE_DEVICES", "012"),
        ({"CUDA_VISIBLE_DEVICES": "5,7,6,-1,2"}, False, "CUDA_VISIBLE_DEVICES", "576"),
        ({}, True, "HIP_VISIBLE_DEVICES", "012"),
        ({"HIP_VISIBLE_DEVICES": "4,2,3"}, True, "HIP_VISIBLE_DEVICES", "423"),
        ({"CUDA_VISIBLE_DEVICES": "4,2,3"}, True, "CUDA_VISIBLE_DEVICES", "423"),
    ],
)
def test_each_worker_sees_all_gpus_its_own_first(
    environ: dict[str, str], hip: bool, name: str, ids: str
) -> None:
    environ = dict(environ)
    gpus.offer(environ, 3, hip)
    for worker in range(8):
        order = ids[worker % 3 :] + ids[: worker % 3]
        assert seen(worker, environ) == {name: ",".join(order)}


def test_one_gpu() -> None:
    environ: dict[str, str] = {}
    gpus.offer(environ, 1, hip=False)
    assert seen(5, environ) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_without_gpus_and_without_workers_nothing_changes() -> None:
    assert seen(3, {}) == {}
    environ: dict[str, str] = {}
    gpus.offer(environ, 2, hip=False)
    before = dict(environ)
    gpus.take(environ)
    assert environ == before


CONFTEST = """
import os, gpus
gpus.take(os.environ)
at_import = os.environ.get("HIP_VISIBLE_DEVICES")

def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        gpus.offer(os.environ, 2, True)
"""
TEST = """
import conftest, os, pytest

@pytest.mark.parametrize("n", range(8))
def test(n):
    worker = int(os.environ["PYTEST_XDIST_WORKER"][2:])
    assert conftest.at_import == ("0,1", "1,0")[worker % 2]
"""


def test_a_conftests_offer_reaches_real_workers_before_they_import(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    env = standins.environment(PYTHONPATH=str(Path(gpus.__file__).parent))
    for name in ("PYTEST_XDIST_WORKER", gpus.OFFER, "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
