"""Runs cases and writes the report; ``ci/serve.sh`` documents the command."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serve import processes
from serve.cases import ENGINES, Case
from serve.report import report
from serve.shown import text

_LEAST_S = 60.0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    made = argparse.ArgumentParser(prog="ci/serve.sh", description="Compares an engine with and without xkv.")
    made.add_argument("engine", choices=sorted(ENGINES))
    made.add_argument("cases", nargs="*", metavar="CASE", help="cases to run (default: all of the engine)")
    made.add_argument(
        "--site", type=Path, action="append", default=[], help="folder of packages, before the installed ones"
    )
    made.add_argument("--pairs", type=int, default=5, help="number of pairs of steady rounds, xkv off and on")
    made.add_argument("--plain", choices=("first", "all", "none"), default="first",
                      help="cases that also run in a process with XKV_DISABLE=1")  # fmt: skip
    made.add_argument("--seconds", type=float, default=540.0, help="no case starts that would end later")
    made.add_argument("--child-seconds", type=float, default=240.0, help="time limit of a process")
    made.add_argument("--no-spoil", action="store_true", help="skip the control round")
    made.add_argument("--no-profile", action="store_true", help="do not measure device times")
    made.add_argument("--work", type=Path, help="folder of logs, models, Triton's cache (default: new)")
    return made


def chosen(given: argparse.Namespace) -> dict[str, Case]:
    """Returns the named cases, or all; an unknown name ends the program."""
    known = ENGINES[given.engine]
    unknown = [name for name in given.cases if name not in known]
    if unknown:
        parser().error(f"{given.engine} has no case {', '.join(unknown)}; it has: {', '.join(known)}")
    return {name: known[name] for name in given.cases or known}


class Session:
    """Runs the cases of one command."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._work = given.work or Path(tempfile.mkdtemp(prefix="xkv-serve-"))
        self._out = Path(os.environ.get("OUT", "out"))
        self._until = time.monotonic() + given.seconds
        self._reports: dict[str, Any] = {}
        self._logs: list[str] = []

    def run(self) -> int:
        """Runs the cases; returns 0 if at least one ran and all of them passed."""
        self._out.mkdir(parents=True, exist_ok=True)
        cases = chosen(self._given)
        failed = self._prepare(cases)
        for number, (name, case) in enumerate(cases.items()):
            left = self._until - time.monotonic()
            if left < _LEAST_S:
                print(f"== {name}: not run, {left:.0f} s are left", flush=True)
                continue
            if case.needs and not self._there(case.needs):
                print(f"== {name}: not run, there is no {case.needs}", flush=True)
                continue
            failed += not self._case(name, case, first=number == 0)
            self._write()
        print(
            f"{len(self._reports)} cases ran, {failed} failures; {self._out}; logs in {self._work}",
            flush=True,
        )
        return int(failed > 0 or not self._reports)

    def _prepare(self, cases: dict[str, Case]) -> int:
        """Creates the models and, for SGLang, compiles its own CUDA kernels, in parallel."""
        kinds = sorted({kind for case in cases.values() for kind in (case.model, case.draft) if kind})
        code = "import sys; from pathlib import Path; from serve.models import make; "
        code += "make(sys.argv[1], Path(sys.argv[2]))"
        commands = {kind: ["-c", code, kind, str(self._work / "models")] for kind in kinds}
        if self._given.engine == "sglang":
            from serve.sglang_child import WARM

            warm = "import sys; from serve.sglang_child import warm; warm(sys.argv[1])"
            commands |= {f"warm_{name}": ["-c", warm, name] for name in WARM}
        start = time.monotonic()
        failed = processes.side_by_side(commands, self._environment("off"), self._work / "logs")
        for name, said in failed.items():
            print(f"{name} failed:\n{said}", flush=True)
        print(f"prepared in {time.monotonic() - start:.0f} s", flush=True)
        return len([name for name in failed if not name.startswith("warm_")])

    def _environment(self, way: str) -> dict[str, str]:
        return processes.environment(self._given.site, self._work, way)

    def _there(self, module: str) -> bool:
        """Whether the file of a module exists; imports nothing."""
        path = module.replace(".", "/")
        places = [*self._given.site, *(Path(p) for p in sys.path if p)]
        return any(next(place.glob(path + "*"), None) for place in places)

    def _case(self, name: str, case: Case, first: bool) -> bool:
        given = self._given
        more = ["--models", str(self._work / "models"), "--pairs", str(given.pairs)]
        more += ["--no-profile"] * given.no_profile
        on = self._child(name, "on", [*more, *["--spoil"] * (first and not given.no_spoil)])
        if on is None or "mixed" not in on or "about" not in on:
            return False
        captured = any(calls.get("captured") for calls in on["about"]["start"]["calls"].values())
        wanted = given.plain == "all" or (given.plain == "first" and (first or captured))
        plain = self._child(name, "off", more) if wanted else None
        found = self._reports[name] = report(case, on, plain)
        print("\n".join(text(f"{given.engine} {name}", found)), flush=True)
        return bool(found["passed"]) and (plain is not None or not wanted)

    def _child(self, name: str, way: str, more: list[str]) -> dict[str, Any] | None:
        seconds = max(min(self._given.child_seconds, self._until - time.monotonic()), 20.0)
        folder = self._work / f"{name}-{way}"
        ended = processes.run([self._given.engine, name, way, *more], self._environment(way), folder, seconds)
        print(f"   {name}, {way}: {ended.status}, {ended.seconds:.0f} s", flush=True)
        lines = ended.log.splitlines()
        self._logs += [f"==== {name}, {way}: {ended.status}", *lines[-400:]]
        if ended.result and "about" in ended.result:
            ended.result["about"]["said"] = [line for line in lines if "xkv " in line and " replaces" in line]
        if not (ended.result or {}).get("complete"):
            print("\n".join(f"   | {line[:300]}" for line in lines[-40:]), flush=True)
        return ended.result

    def _write(self) -> None:
        name = f"serve-{self._given.engine}"
        (self._out / f"{name}.json").write_text(json.dumps(self._reports, indent=1))
        (self._out / f"{name}.log").write_text("\n".join(self._logs))


if __name__ == "__main__":
    sys.exit(Session(parser().parse_intermixed_args()).run())
