"""The parts of a report: the command of each, run in a process of its own with a time limit."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..tune import results
from . import privacy

_PACKAGE = __name__.partition(".")[0]  # a copy under another name runs its own modules
# Not `python -m`, which would look in the working directory first: the same modules as in this process.
_RUN = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class Part(NamedTuple):
    """One command.

    Attributes:
        name: what its files are called.
        arguments: its command line after ``python -m``, given the report's own arguments.
        json: the name of the file that its ``--json`` is given; "": it has none.
        needs_extra: whether it needs what ``xkv[bench]`` brings.
    """

    name: str
    arguments: Callable[[argparse.Namespace], list[str]]
    json: str = ""
    needs_extra: bool = False


class Result(NamedTuple):
    """How a part ended; the archive has it as JSON.

    Attributes:
        name: the part's.
        command: what ran, after ``python -m``.
        status: the exit status, as `subprocess` has it: negative for a signal. None: the time was up.
        seconds: that it took.
        files: what it left, in the archive.
        last_line: of its output.
    """

    name: str
    command: str
    status: int | None
    seconds: float
    files: list[str]
    last_line: str

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status == 0

    @property
    def said(self) -> str:
        """For the reader."""
        if self.status is None:
            return "time limit"
        return "ok" if self.ok else f"status {self.status}"


def _bench(*suite: str) -> Callable[[argparse.Namespace], list[str]]:
    return lambda args: [_PACKAGE, "bench", *suite, *["--quick"] * (not args.full)]


PARTS = {
    part.name: part
    for part in (
        Part("info", lambda args: [_PACKAGE, "info"]),
        Part("check", lambda args: [_PACKAGE, "check", *["--quick"] * args.quick]),
        Part("hostile", lambda args: [_PACKAGE, "check", "--hostile", str(args.hostile)]),
        Part("bench", _bench(), "bench.json", needs_extra=True),
        Part("sparse", _bench("--suite", "sparse"), "sparse.json", needs_extra=True),
        Part("extend", _bench("--suite", "extend"), "extend.json", needs_extra=True),
        Part(
            "tune",
            lambda args: [
                f"{_PACKAGE}.cli.tune", "--minutes", str(args.tune_minutes), "--jobs", str(args.jobs)
            ],
            results.FILE, needs_extra=True,
        ),
    )
}  # fmt: skip
"""By name, in the order in which they run."""


def limit(part: Part, args: argparse.Namespace) -> float:
    """Seconds after which a part is ended; a sweep keeps to its own time, but for what it compiles."""
    minutes: float = args.minutes + (args.tune_minutes if part.name == "tune" else 0)
    return minutes * 60


def run(part: Part, args: argparse.Namespace, folder: Path) -> Result:
    """Runs a part. Its output, and its JSON if it wrote one, are in the folder afterwards.

    Args:
        part: the part.
        args: the report's arguments.
        folder: where its files are written.
    """
    module, *arguments = part.arguments(args)
    shown = [module, *arguments, *(["--json", part.json] if part.json else [])]
    if part.json:
        arguments += ["--json", str(folder / part.json)]
    command = [sys.executable, "-c", _RUN, json.dumps(list(map(str, sys.path))), module, *arguments]
    # No bars of progress in a file, and what a process that is ended has printed is there.
    env = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    text = folder / f"{part.name}.txt"
    start = time.perf_counter()
    with text.open("wb") as out:
        status = _ended(command, env, out.fileno(), limit(part, args))
    files = [name for name in (text.name, part.json) if name and (folder / name).is_file()]
    lines = text.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    seconds = round(time.perf_counter() - start, 1)
    return Result(part.name, " ".join(shown), status, seconds, files, privacy.cleaned(last))


def _ended(command: list[str], env: dict[str, str], out: int, seconds: float) -> int | None:
    """Runs a command to its end, or ends it and all that it started; its exit status, or None then."""
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also if this process is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
