"""CI: the matrix, the workflows that read it, and the scripts that they call."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import conftest
import pytest
import standins
import yaml

from xkv import cuda, rocm

ROOT = Path(__file__).resolve().parents[2]
ROWS: list[dict[str, Any]] = json.loads((ROOT / "ci" / "matrix.json").read_text())
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
GPU_ROWS = [row for row in ROWS if row["arch"] != "cpu"]

pytestmark = pytest.mark.repo
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["arch"])


def load(name: str) -> Any:
    """A script of ci/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


matrix = load("matrix")


def workflow(name: str) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(WORKFLOWS[name].read_text())
    return loaded


def script(*command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = standins.environment(**extra)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


# The matrix


def test_a_row_for_each_arch() -> None:
    assert [row["arch"] for row in ROWS] == ["cpu", "sm90", "sm100", "gfx942", "gfx950"]
    assert {row["arch"] for row in GPU_ROWS} <= {*cuda.TUNING, *rocm.TUNING}


@every_row
def test_row(row: dict[str, Any]) -> None:
    for key in ("torch", "image", "options"):
        assert row[key].strip(), key
    assert row["runner"]
    assert all(label.strip() for label in row["runner"])
    assert ":" in row["image"], "an image without a tag is another one tomorrow"
    assert type(row["enabled"]) is bool
    assert bool(row["reason"]) is not row["enabled"]


@every_row
def test_the_arch_required_is_the_rows(row: dict[str, Any]) -> None:
    arch = row["arch"]
    assert row["run"] == ("ci/run.sh test" if arch == "cpu" else f"ci/gpu.sh {arch}")
    assert ("self-hosted" in row["runner"]) is (arch != "cpu")
    assert (f"xkv-{arch}" in row["runner"]) is (arch != "cpu")
    assert ("--gpus" in row["options"]) is (arch in cuda.TUNING)
    assert ("/dev/kfd" in row["options"]) is (arch in rocm.TUNING)


def test_a_disabled_leg_is_not_among_those_that_run() -> None:
    on = {line.partition("=")[0] for line in matrix.outputs(ROWS, fork=False)}
    assert on == {row["arch"] for row in ROWS if row["enabled"]}
    off = [{**row, "enabled": False, "reason": "no runner"} for row in ROWS]
    assert matrix.outputs(off, fork=False) == []
    for row, line in zip(off, matrix.table(off, fork=False)[2:], strict=True):
        assert line.startswith(f"| {row['arch']} | skipped (disabled: no runner) | ")


def test_a_forks_pull_request_reaches_no_runner_of_ours() -> None:
    every = [{**row, "enabled": True, "reason": ""} for row in ROWS]
    assert [line.partition("=")[0] for line in matrix.outputs(every, fork=False)] == [r["arch"] for r in ROWS]
    assert [line.partition("=")[0] for line in matrix.outputs(every, fork=True)] == ["cpu"]
    assert "skipped (not for a fork's pull request)" in matrix.table(every, fork=True)[-1]


@pytest.mark.parametrize("fork", ["true", "false"])
def test_outputs_are_what_a_job_takes(fork: str) -> None:
    done = script("ci/matrix.py", "outputs", XKV_FORK=fork)
    assert done.returncode == 0, done.stderr
    pairs = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert [json.loads(row) for row in pairs.values()] == [r for r in ROWS if f"{r['arch']}=" in done.stdout]
    assert "cpu" in pairs


# The workflows


def test_a_job_for_each_row() -> None:
    jobs = workflow("test")["jobs"]
    legs = jobs.pop("legs")
    archs = [row["arch"] for row in ROWS]
    assert legs["outputs"] == {arch: f"${{{{ steps.matrix.outputs.{arch} }}}}" for arch in archs}
    assert list(jobs) == archs
    for arch, job in jobs.items():
        assert arch in job.pop("name", arch)
        output = f"needs.legs.outputs.{arch}"
        assert job == {
            "needs": "legs",
            "if": output,  # empty where the leg does not run: the job is skipped, never green
            "uses": "./.github/workflows/leg.yml",
            "with": {"row": f"${{{{ {output} }}}}"},
        }


def test_forks_are_told_apart_where_the_legs_are_chosen() -> None:
    (step,) = (s for s in workflow("test")["jobs"]["legs"]["steps"] if s.get("id") == "matrix")
    assert " ".join(step["env"]["XKV_FORK"].split()) == (
        "${{ github.event_name == 'pull_request'"
        " && github.event.pull_request.head.repo.full_name != github.repository }}"
    )


def steps() -> list[dict[str, Any]]:
    jobs = [job for name in WORKFLOWS for job in workflow(name)["jobs"].values()]
    return [step for job in jobs for step in job.get("steps", ())]


def test_what_is_called_exists_and_can_be_run() -> None:
    runs = [step["run"] for step in steps() if "run" in step] + [row["run"] for row in ROWS]
    called = set(re.findall(r"\bci/[\w.]+", "\n".join(runs)))
    assert called == {"ci/matrix.py", "ci/run.sh", "ci/gpu.sh", "ci/release.sh", "ci/support.sh"}
    for path in (*called, ".ci/run"):
        assert os.access(ROOT / path, os.X_OK), path
    # thin: what CI does stands in the scripts
    assert all(re.match(r"ci/|\$RUN$", line) for run in runs for line in run.splitlines()), runs


def test_actions_are_pinned() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert len(used) >= 5
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used), used


def test_only_publishing_may_do_more_than_read() -> None:
    assert set(WORKFLOWS) == {"test", "leg", "release", "engines"}
    for name in WORKFLOWS:
        assert workflow(name)["permissions"] == {"contents": "read"}
        assert "secrets." not in WORKFLOWS[name].read_text()
        for job, settings in workflow(name)["jobs"].items():
            allowed = {"id-token": "write"} if job == "publish" else None
            assert settings.get("permissions") == allowed
    publish = workflow("release")["jobs"]["publish"]
    assert publish["environment"] == "pypi"
    assert publish["needs"] == "wheel"


# The scripts


@pytest.mark.parametrize("tag", ["v0.0.1", "0.1.0", "v0.1.0rc1", "vv0.1.0"])
def test_a_tag_that_is_not_the_version(tag: str) -> None:
    done = script("ci/release.sh", tag)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ci/release.sh: tag {tag}, but the package is ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command", [("gpu.sh",), ("gpu.sh", "cpu"), ("gpu.sh", "hopper"), ("run.sh",), ("run.sh", "tests")]
)
def test_usage(command: tuple[str, ...]) -> None:
    done = script(f"ci/{command[0]}", *command[1:])
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: ci/{command[0]} ")


CHANGES = {
    "nothing": ("true", 0),
    "triton's version": ("echo '__version__ = \"3.7.0\"' >triton.py", 1),
    "torch's vendor": ("sed -i 's/hip=.7.0./hip=None/' torch.py", 1),
    "torch's version": ("sed -i 's/2.11.0/2.12.0/' torch.py", 1),
    "triton's place": ("mkdir triton && mv triton.py triton/__init__.py", 1),
    "triton, for another in the path": ("rm triton.py", 1),
    "a second owner": ("mkdir b-1.dist-info && echo triton >b-1.dist-info/top_level.txt &&"
                       " printf 'Name: b\\nVersion: 1\\n' >b-1.dist-info/METADATA", 1),
    "nothing, but fails": ("exit 3", 3),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_unchanged(change: str, tmp_path: Path) -> None:
    """What ci/gpu.sh wraps around each pip install, with stand-ins for torch, triton and pip."""
    command, status = CHANGES[change]
    (tmp_path / "torch.py").write_text(standins.TORCH.format(version="2.11.0", cuda=None, hip="7.0"))
    (tmp_path / "triton.py").write_text('__version__ = "3.6.0"\n')
    code = '. ci/lib.sh; unchanged "$0" sh -c "$1"'
    done = script(
        "bash", "-c", code, sys.executable, f"cd {tmp_path}; {command}",
        PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert ("\nchanged\n" in done.stderr) is (status == 1)


@pytest.mark.parametrize(
    ("arch", "said"), [(None, "XKV_REQUIRE_ARCH=sm1, but this machine has "), ("sm1", "unset XKV_ARCH")]
)
def test_a_required_arch_that_is_missing(
    arch: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU tier fails there; all of it skipped would be green."""
    monkeypatch.setattr(conftest, "GPUS", 0)
    monkeypatch.setattr(conftest, "INTERPRETED", False)
    monkeypatch.setenv("XKV_REQUIRE_ARCH", "sm1")
    monkeypatch.delenv("XKV_ARCH", raising=False)
    if arch:
        monkeypatch.setenv("XKV_ARCH", arch)
    tier = {"markexpr": "not compile and not interpret and not repo"}
    with pytest.raises(pytest.UsageError, match=said):
        conftest.pytest_configure(types.SimpleNamespace(getoption=tier.get))
    tier["markexpr"] = "not gpu and not kernel and not interpret"
    conftest.pytest_configure(types.SimpleNamespace(getoption=tier.get))
