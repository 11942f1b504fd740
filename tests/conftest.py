"""What tier a test belongs to, which device it runs on, and what a missing one means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# before torch is imported: two OpenMP threads on two busy cores are ten times slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gpus
import hypothesis
import peer_stubs
import pytest

gpus.take(os.environ)

import torch  # noqa: E402

# A verdict may hang on neither how long an example takes, nor what an earlier run found and kept.
hypothesis.settings.register_profile(
    "xkv", deadline=None, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
hypothesis.settings.load_profile("xkv")

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
GPUS = 0 if INTERPRETED else torch.cuda.device_count()

if INTERPRETED:
    import interpreter_speed
    import shadow

    interpreter_speed.install()
    shadow.install()


def pytest_configure(config: pytest.Config) -> None:
    """Offers the GPUs to xdist's workers; fails where a required arch is missing."""
    if GPUS and "PYTEST_XDIST_WORKER" not in os.environ:
        gpus.offer(os.environ, GPUS, torch.version.hip is not None)
    required = os.environ.get("XKV_REQUIRE_ARCH")
    marks = config.getoption("markexpr") or ""
    gpu_tier = not INTERPRETED and "not gpu" not in marks
    if required and gpu_tier:
        import xkv

        if os.environ.get("XKV_ARCH"):
            raise pytest.UsageError("XKV_REQUIRE_ARCH asks for what the GPU is: unset XKV_ARCH")
        found = xkv.platform().arch
        if found != required:
            raise pytest.UsageError(f"XKV_REQUIRE_ARCH={required}, but this machine has {found}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Names what fails at once in the file of XKV_FAILED, so that a run that is cut off has not lost it."""
    file = os.environ.get("XKV_FAILED")
    if report.failed and file and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(file).open("a") as failed:
            failed.write(f"{report.nodeid} ({report.when}): {report.longreprtext[-300:]!r}\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this process cannot run; begins with what takes longest."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
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


@pytest.fixture
def every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both vendors' specs on whatever is present: building them needs no vendor."""
    from xkv.metadata import config
    from xkv.platforms import detect

    monkeypatch.setattr(config, "platform", lambda device: detect.CPU)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as users install it."""
    out = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for the peers' kernel files."""
    folder = tmp_path_factory.mktemp("peers")
    peer_stubs.write(folder)
    return folder
