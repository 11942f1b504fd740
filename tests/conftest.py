"""What tier a test belongs to, which device it runs on, and what a missing one means."""

from __future__ import annotations

import os

# before torch is imported: two OpenMP threads on two busy cores are ten times slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
GPUS = 0 if INTERPRETED else torch.cuda.device_count()


def pytest_configure(config: pytest.Config) -> None:
    """Spreads xdist's workers over the GPUs; fails where a required arch is missing."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    if GPUS:
        torch.cuda.set_device(int(worker.removeprefix("gw")) % GPUS)
    required = os.environ.get("XKV_REQUIRE_ARCH")
    marks = config.getoption("markexpr") or ""
    gpu_tier = not INTERPRETED and "not gpu" not in marks
    if required and gpu_tier:
        import xkv

        found = xkv.platform().arch
        if found != required:
            raise pytest.UsageError(f"XKV_REQUIRE_ARCH={required}, but this machine has {found}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this process cannot run."""
    for item in items:
        if item.get_closest_marker("compile") and INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="compiles: not under TRITON_INTERPRET=1"))
        if item.get_closest_marker("gpu") and not GPUS:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("interpret") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1"))
        if item.get_closest_marker("kernel") and not (INTERPRETED or GPUS):
            item.add_marker(pytest.mark.skip(reason="needs a GPU or TRITON_INTERPRET=1"))


@pytest.fixture
def device() -> str:
    """Where tensors go: the GPU if there is one, else the CPU (reference or interpreter)."""
    return "cuda" if GPUS else "cpu"
