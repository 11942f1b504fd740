"""Starts engines, each in its own session, with xkv's plugin where the engine's loader finds it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """A process that has ended: its (partial) result, its exit status and its log."""

    result: dict[str, Any] | None
    status: str
    seconds: float
    log: str


def environment(sites: list[Path], work: Path, way: str) -> dict[str, str]:
    """Returns the environment of an engine's process.

    Args:
        sites: folders of packages, before the installed ones.
        work: folder for the plugins' entry points and Triton's cache.
        way: on or off.
    """
    links = work / "links"
    _entry_points(links, "xkv_serve", {"sglang.srt.plugins": {"xkv_serve": "serve.sglang_inside:load"}})
    paths = [*sites, links]
    if not _installed(sites):
        _entry_points(links, "xkv", _plugins())
        paths.append(ROOT)
    env = dict(os.environ)
    old = [x for x in env.get("PYTHONPATH", "").split(os.pathsep) if x]
    env["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *old, str(ROOT / "ci")])
    env["TRITON_CACHE_DIR"] = str(work / "triton")
    env.pop("XKV_DISABLE", None)
    if way == "off":
        env["XKV_DISABLE"] = "1"
    return env


def _installed(sites: list[Path]) -> bool:
    """Whether xkv is installed in this environment; otherwise the checkout is tested."""
    found = importlib.metadata.distributions(name="xkv", path=[*map(str, sites), *sys.path])
    return any(True for _ in found)


def _plugins() -> dict[str, dict[str, str]]:
    from serve.pack import project

    found: dict[str, dict[str, str]] = project()["project"]["entry-points"]
    return found


def _entry_points(links: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """Writes a distribution that consists of entry points only."""
    info = links / f"{name}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in one.items()) for group, one in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def run(arguments: list[str], env: dict[str, str], folder: Path, seconds: float) -> Ended:
    """Runs ``serve.child`` and ends the processes that it leaves behind.

    Args:
        arguments: those of `serve.child.parser`, without the folder.
        env: its environment.
        folder: for its result and its log; cleared first.
        seconds: time limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    log, start = folder / "log", time.monotonic()
    command = [sys.executable, "-u", "-m", "serve.child", *arguments[:3], str(folder), *arguments[3:]]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            status = f"exit status {process.wait(timeout=seconds)}"
        except subprocess.TimeoutExpired:
            status = f"ended after {seconds:.0f} s"
        with contextlib.suppress(ProcessLookupError):  # no process is left
            os.killpg(process.pid, signal.SIGKILL)  # its own session: it contains no other processes
        process.wait()
    written = folder / "result.json"
    result = json.loads(written.read_text()) if written.exists() else None
    return Ended(result, status, time.monotonic() - start, log.read_text(errors="replace"))


def side_by_side(commands: dict[str, list[str]], env: dict[str, str], folder: Path) -> dict[str, str]:
    """Runs Python programs in parallel.

    Returns:
        The ends of the output of the programs that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = {}
    for name, command in commands.items():
        with (folder / f"{name}.log").open("w") as out:
            running[name] = subprocess.Popen([sys.executable, *command], env=env, stdout=out, stderr=out)
    failed = [name for name, process in running.items() if process.wait()]
    return {name: (folder / f"{name}.log").read_text(errors="replace")[-2000:] for name in failed}
