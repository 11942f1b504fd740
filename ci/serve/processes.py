"""Starting engines: each in a session of its own, with xkv's plugin where its loader looks."""

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
    """A process that has ended: its result as far as it came, how it ended, and its log."""

    result: dict[str, Any] | None
    status: str
    seconds: float
    log: str


def environment(sites: list[Path], work: Path, way: str) -> dict[str, str]:
    """What an engine's process sees.

    Args:
        sites: folders of packages, in front of what is installed.
        work: where plugins' entry points and Triton's cache go.
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
    """Whether xkv is a distribution of this environment; else the checkout is what is tested."""
    found = importlib.metadata.distributions(name="xkv", path=[*map(str, sites), *sys.path])
    return any(True for _ in found)


def _plugins() -> dict[str, dict[str, str]]:
    from serve.pack import project

    found: dict[str, dict[str, str]] = project()["project"]["entry-points"]
    return found


def _entry_points(links: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """The entry points of a distribution without its files."""
    info = links / f"{name}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in one.items()) for group, one in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def run(arguments: list[str], env: dict[str, str], folder: Path, seconds: float) -> Ended:
    """Runs ``serve.child`` and ends whatever it leaves behind.

    Args:
        arguments: of `serve.child.parser`, the folder left out.
        env: its environment.
        folder: for its result and its log; emptied first.
        seconds: it is ended after these.
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
        with contextlib.suppress(ProcessLookupError):  # it left nothing behind
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else's processes are in it
        process.wait()
    written = folder / "result.json"
    result = json.loads(written.read_text()) if written.exists() else None
    return Ended(result, status, time.monotonic() - start, log.read_text(errors="replace"))


def side_by_side(commands: dict[str, list[str]], env: dict[str, str], folder: Path) -> dict[str, str]:
    """Runs Python programs at the same time.

    Returns:
        Of those that failed, the end of what they said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = {}
    for name, command in commands.items():
        with (folder / f"{name}.log").open("w") as out:
            running[name] = subprocess.Popen([sys.executable, *command], env=env, stdout=out, stderr=out)
    failed = [name for name, process in running.items() if process.wait()]
    return {name: (folder / f"{name}.log").read_text(errors="replace")[-2000:] for name in failed}
