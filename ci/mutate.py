#!/usr/bin/env python3
"""Plants the faults of ci/mutations.py one by one, and says which of them no CPU tier sees.

    python ci/mutate.py                      all of them, in a table; exit status 1 if one survives
    python ci/mutate.py --only "id 0 lost"   one of them, or several
    python ci/mutate.py --jobs 4             so many at a time

Each is planted in a copy of the checkout. The tests that see it soonest come first, then all of the
kernel's: a fault has survived when they all pass. A test that fails is run once more without the fault; only
if it passes then has it seen the fault. If not it is flaky: it is named, and the others go on without it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutations import MUTATIONS, Mutation
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
# What sees a fault of each tier, from the soonest on: first what the mutation names of the first files.
TIERS: dict[str, list[list[str]]] = {
    "interpreter": [
        ["tests/kernel/test_kernel_edges.py", "tests/kernel/test_kernel.py"],
        ["tests", "-m", "not compile and not gpu and not repo"],
    ],
    "compile": [["tests/kernel/test_specialization.py", "tests/kernel/test_compile.py"]],
}
_FAILED, _NONE = 1, 5  # pytest's exit statuses: tests ran and one failed; every test is left out
_LIMIT = 600  # seconds a test: a fault may make a kernel run forever
_LEAST = _LIMIT // 10  # what a test that ran into the limit may take without the fault, if it has seen it
# It wrote or read where nothing is. What ends a process from outside has seen nothing.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
_SKIPPED = shutil.ignore_patterns(".*", "__pycache__", "out", "dist", "site")


class Result(NamedTuple):
    """What became of a fault: the test that saw it, "" where none did; tests that fail without it too."""

    mutation: Mutation
    seen_by: str
    seconds: float
    flaky: tuple[str, ...] = ()


class Failure(NamedTuple):
    """A test that failed.

    Attributes:
        test: as pytest takes it, "tests/x/test_y.py::test_z[0]"; "" where the process ended without a word.
        shown: what the table says.
        limit: whether it ran into the time limit.
    """

    test: str
    shown: str
    limit: bool = False


class MutationError(RuntimeError):
    """A fault that cannot be planted or tried."""


class NothingLeftError(MutationError):
    """No test is left to run."""


def plant(mutation: Mutation, root: Path) -> None:
    """Writes the fault into the checkout at ``root``.

    Raises:
        MutationError: its text is not found there exactly once, or the fault is none.
    """
    path = root / mutation.file
    text = path.read_text()
    found = text.count(mutation.old)
    if found != 1:
        raise MutationError(f"{mutation.name}: its text is {found} times in {mutation.file}, not once")
    if mutation.old == mutation.new:
        raise MutationError(f"{mutation.name}: nothing is changed")
    path.write_text(text.replace(mutation.old, mutation.new))


def run(root: Path, tier: str, arguments: list[str], limit: int = _LIMIT) -> Failure | None:
    """Runs tests of a tier until one fails; returns that one, or None.

    Raises:
        MutationError: pytest could not run them.
    """
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("TRITON_INTERPRET", None)
    if tier == "interpreter":
        env["TRITON_INTERPRET"] = "1"
    log = root.parent / "started"  # the test at hand, for where the process ends without a word
    env["XKV_MUTATE_LOG"] = str(log)
    log.write_text("")
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-n", "0", "-p", "no:cacheprovider",
        "-p", "mutate_log", "-o", f"timeout={limit}", *arguments,
    ]  # fmt: skip
    env["PYTHONPATH"] += os.pathsep + str(Path(__file__).resolve().parent)
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    started = log.read_text()
    if done.returncode == _FAILED and started:
        failed = re.search(r"^(?:FAILED|ERROR) [^:]*::(.*?)(?: - |$)", done.stdout, re.MULTILINE)
        return Failure(started, str(failed[1]) if failed else "(a test)", "Failed: Timeout" in done.stdout)
    if -done.returncode in _CRASHES:
        return Failure(started, f"(signal {-done.returncode})")
    kind = NothingLeftError if done.returncode == _NONE else MutationError
    raise kind(f"pytest {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout[-2000:]}")


def attempt(mutation: Mutation, checkout: Path = ROOT) -> Result:
    """Plants one fault in a copy of the checkout and runs its tiers' tests until one sees it."""
    begin = time.perf_counter()
    seen_by, flaky = "", list[Failure]()
    with tempfile.TemporaryDirectory(prefix="xkv-mutate-") as folder:
        right, wrong = Path(folder) / "right" / "xkv", Path(folder) / "wrong" / "xkv"
        for root in (right, wrong):
            shutil.copytree(checkout, root, ignore=_SKIPPED)
        plant(mutation, wrong)
        stages = [list(arguments) for arguments in TIERS[mutation.tier]]
        stages.insert(0, [*([mutation.where] if mutation.where else stages[0]), "-k", mutation.first])
        while stages and not seen_by:
            left_out = [option for failure in flaky for option in ("--deselect", failure.test)]
            try:
                failure = run(wrong, mutation.tier, [*stages[0], *left_out])
            except NothingLeftError:
                if not left_out:
                    raise
                failure = None
            if failure is None:
                stages.pop(0)
            elif sees(failure, right, mutation.tier):
                seen_by = failure.shown
            else:
                flaky.append(failure)
    shown = tuple(failure.shown for failure in flaky)
    return Result(mutation, seen_by, time.perf_counter() - begin, shown)


def sees(failure: Failure, right: Path, tier: str) -> bool:
    """Whether the test passes without the fault, on this machine and now."""
    limit = _LEAST if failure.limit else _LIMIT
    return run(right, tier, [failure.test], limit) is None


def table(results: Sequence[Result]) -> str:
    """All faults, and what saw them."""
    lines = [[r.mutation.name, r.mutation.file, r.seen_by or "SURVIVED", f"{r.seconds:.0f}"] for r in results]
    return str(tabulate(lines, ["fault", "file", "seen by", "s"], disable_numparse=True))


def main(argv: Sequence[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS) -> int:
    """Plants what is asked for and prints what became of it.

    Returns:
        The exit status: 0; 1 if a fault survived, 2 if one could not be planted or tried.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [m.name for m in mutations]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name them, and what each would do to a user")
    args = parser.parse_args(argv)
    chosen = [m for m in mutations if m.name in args.only]
    if args.list:
        print(tabulate([(m.name, m.file, m.why) for m in chosen], ["fault", "file", "what would go wrong"]))
        return 0
    results: list[Result] = []
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            for result in pool.map(attempt, chosen):
                results.append(result)
                print(table([result]).splitlines()[-1], file=sys.stderr, flush=True)
    except MutationError as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    survived = [r.mutation.name for r in results if not r.seen_by]
    print(table(results))
    for name in sorted({name for r in results for name in r.flaky}):
        print(f"flaky: {name}")
    named = f": {', '.join(survived)}" if survived else ""
    print(f"{len(results)} faults, {len(results) - len(survived)} seen, {len(survived)} survived{named}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
