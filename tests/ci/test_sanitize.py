"""ci/sanitize.sh: what it makes of what the checkers say, and the slice that they are given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_ci import load, script

from xkv import dispatch

pytestmark = pytest.mark.repo

sanitized = load("sanitized")

# A compute-sanitizer that says of each run what SAID_<what> holds, by default the right thing.
SANITIZER = """#!/usr/bin/env bash
while [[ $1 != *python ]]; do [[ $1 == --tool ]] && tool=$2; shift; done
name=SAID_$3
case $3 in
    read | write) right="Invalid __global__ $3 of size 4 bytes" ;;
    unwritten) right="Uninitialized __global__ memory read of size 4 bytes" ;;
    barriers) right="Race reported between Write access and Read access" ;;
    slice) right="" ;;
esac
said=${!name-$right}
if [[ $3 == slice ]]; then echo "12 cases"; else echo "=== in xkv_build"; fi
[[ -z $said ]] || { echo "=== $said"; echo "=== SUMMARY: 1 errors"; exit 66; }
echo "=== SUMMARY: 0 errors"
"""


def sanitize(folder: Path, **said: str) -> subprocess.CompletedProcess[str]:
    """ci/sanitize.sh with stand-ins for the sanitizer and for Python."""
    for name, text in (
        ("sanitizer", SANITIZER),
        ("python", "#!/bin/sh\n[ $1 = -c ] && echo $0 || echo 12 cases\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return script(
        "ci/sanitize.sh", XKV_SANITIZER=str(folder / "sanitizer"), XKV_PYTHON=str(folder / "python"),
        XKV_OUT=str(folder / "out"), **said,
    )  # fmt: skip


def test_sanitize(tmp_path: Path) -> None:
    done = sanitize(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^(\w+): finds a planted fault: (\w+)", done.stdout, re.MULTILINE)
    assert set(found) == {
        ("memcheck", "read"), ("memcheck", "write"), ("initcheck", "unwritten"), ("racecheck", "barriers"),
    }  # fmt: skip
    assert set(re.findall(r"^(\w+): clean: 12 cases", done.stdout, re.MULTILINE)) == {
        "memcheck", "initcheck", "racecheck",
    }  # fmt: skip


@pytest.mark.parametrize("what", ["read", "write", "unwritten", "barriers"])
@pytest.mark.parametrize("said", ["", "Program hit cudaErrorMemoryAllocation"])
def test_sanitize_needs_its_planted_faults_found(what: str, said: str, tmp_path: Path) -> None:
    """A checker that is blind, or that stumbles over something else, passes nothing."""
    done = sanitize(tmp_path, **{f"SAID_{what}": said})
    assert done.returncode == 1
    assert f"does not find a planted fault: {what} " in done.stderr


def test_sanitize_fails_on_what_is_found(tmp_path: Path) -> None:
    done = sanitize(tmp_path, SAID_slice="Invalid __global__ read of size 4 bytes")
    assert done.returncode == 1
    assert done.stderr.count(": not clean (status 66): ") == 3


def test_sanitize_without_a_sanitizer(tmp_path: Path) -> None:
    done = script("ci/sanitize.sh", XKV_PYTHON=sys.executable, XKV_OUT=str(tmp_path), PATH="/usr/bin:/bin")
    if "no compute-sanitizer" not in done.stderr:
        pytest.skip("this machine has one")
    assert done.returncode == 1
    assert "set XKV_SANITIZER to the CUDA toolkit's" in done.stderr


def test_the_slice_that_is_sanitized(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: the cases that an NVIDIA GPU gets, and that no entry is needed that was never written."""
    every = sanitized.families
    monkeypatch.setattr(sanitized, "DEVICE", "cpu")
    monkeypatch.setattr(sanitized, "families", lambda _: every("cuda"))
    row = dispatch.tuning_row
    assert sanitized.slice_() > 100
    assert dispatch.tuning_row is row
    assert sanitized.main("nothing") == 2
