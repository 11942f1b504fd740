"""The record of a sweep, alone or in a report's archive: read anew, and refused where it is none."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xkv.cli.tune import command, results
from xkv.platforms.tuning import Tuning

ROOT = Path(__file__).resolve().parents[2]
A = Tuning("strided_far", 16, 64, 4, 8, 2, 8, 64, 1, 2, 16, False, "swept")
C = dataclasses.replace(A, num_warps=2)


def recorded(**changes: Any) -> dict[str, Any]:
    """A record of one class, of made-up times."""
    times = {A: {"x": 2.0, "y": 8.0}, C: {"x": 2.0, "y": 5.0}}
    setting = {
        "gpu": "AMD Instinct MI300X",
        "torch": "2.11.0+rocm7.0",
        "triton": "3.6.0",
        "date": "2026-11-29",
    }
    found = results.entry("strided_far, batch <= 16", A, (times, times))
    return {**setting, "rows": [], "left_out": ["one"], "wrong": [], "classes": [found], **changes}


def test_a_record_is_read_without_torch(tmp_path: Path) -> None:
    """By the script, as whoever gets the archive of a user runs it."""
    file = tmp_path / "tune.json"
    results.write(recorded(), file)
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"  # noqa: E501
    command = [sys.executable, "-c", code, str(ROOT / "ci" / "tune.py"), "--from", str(file)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = eval("[" + done.stdout[done.stdout.index("    Tuning(") : done.stdout.index("left out")] + "]")
    text = (
        "AMD Instinct MI300X, 2026-11-29, torch 2.11.0+rocm7.0, Triton 3.6.0: ci/tune.py, 1.000 of the best"
    )
    assert dataclasses.replace(row, provenance="swept") == C
    assert row.provenance.startswith(text)
    assert done.stdout.endswith("left out: one\n")


def test_what_was_wrong_is_said_again(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "tune.json"
    results.write(recorded(wrong=["a row"]), file)
    assert command.main(["--from", str(file)]) == 1
    assert capsys.readouterr().err == "tune: wrong, and out:\na row\n"


def zipped(file: Path, name: str, text: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, text)


def damaged(file: Path) -> None:
    zipped(file, results.FILE, json.dumps(recorded()))
    data = file.read_bytes()
    file.write_bytes(data[:60] + bytes(b ^ 1 for b in data[60:90]) + data[90:])


NOT_RECORDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda file: None, "No such file"),
    "text": (lambda file: file.write_text("tune"), "not a sweep's record"),
    "another JSON": (lambda file: file.write_text('{"setting": {}}'), "there is no 'classes'"),
    "a list": (lambda file: file.write_text("[]"), "not a sweep's record"),
    "no date": (lambda file: file.write_text('{"classes": [' + json.dumps(recorded()["classes"][0]) + "]}"),
                "there is no 'date'"),
    "a row that cannot be": (
        lambda file: file.write_text(json.dumps(recorded()).replace('"num_warps": 2', '"num_warps": 3')),
        "num_warps must be a power of two"),
    "no time": (lambda file: file.write_text(json.dumps(recorded()).replace("5.0", "0.0")),
                "not a sweep's record"),
    "a report without a sweep": (lambda file: zipped(file, "info.txt", ""), "there is no"),
    "a damaged archive": (damaged, "a damaged archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_RECORDS)
def test_what_is_no_record(what: str, tmp_path: Path, capsys: Any) -> None:
    make, said = NOT_RECORDS[what]
    file = tmp_path / "file"
    make(file)
    assert command.main(["--from", str(file)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("tune: ")
    assert str(file) in err
    assert said in err
