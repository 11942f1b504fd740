#!/usr/bin/env python3
"""Plants the faults of ci/mutations.py one by one, and says which of them no CPU tier sees.

    python ci/mutate.py                      all of them, in a table; exit status 1 if one survives
    python ci/mutate.py --only "id 0 lost"   one of them, or several
    python ci/mutate.py --jobs 4             so many at a time

Each is planted in a copy of the checkout. The tests that see it soonest come first, then all of the
kernel's: a fault has survived when they all pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
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
        ["tests/test_kernel_edges.py", "tests/test_kernel.py"],
        ["tests", "-m", "not compile and not gpu and not repo"],
    ],
    "compile": [["tests/test_specialization.py", "tests/test_compile.py"]],
}
_FAILED = 1  # pytest's exit status where tests ran and one failed
_SKIPPED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "out", "dist")


class Result(NamedTuple):
    """What became of a fault: the test that saw it, or "" where none did."""

    mutation: Mutation
    seen_by: str
    seconds: float


class MutationError(RuntimeError):
    """A fault that cannot be planted or tried."""


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


def run(root: Path, tier: str, arguments: list[str]) -> str:
    """Runs tests of a tier until one fails; returns that one, or "".

    Raises:
        MutationError: pytest could not run them.
    """
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("TRITON_INTERPRET", None)
    if tier == "interpreter":
        env["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-rf", "-n", "0", "-p", "no:cacheprovider",
        "-o", "timeout=120", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    if done.returncode == _FAILED:
        failed = re.search(r"^FAILED [^:]*::(.*?)(?: - |$)", done.stdout, re.MULTILINE)
        return str(failed[1]) if failed else "(a test)"
    if done.returncode < 0:  # a signal: it wrote or read where nothing is
        return f"(signal {-done.returncode})"
    raise MutationError(f"pytest {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout[-2000:]}")


def attempt(mutation: Mutation, checkout: Path = ROOT) -> Result:
    """Plants one fault in a copy of the checkout and runs its tiers' tests until one fails."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="xkv-mutate-") as folder:
        root = Path(folder) / "xkv"
        shutil.copytree(checkout, root, ignore=_SKIPPED)
        plant(mutation, root)
        stages = TIERS[mutation.tier]
        for arguments in ([*stages[0], "-k", mutation.first], *stages):
            seen_by = run(root, mutation.tier, arguments)
            if seen_by:
                break
    return Result(mutation, seen_by, time.perf_counter() - begin)


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
    named = f": {', '.join(survived)}" if survived else ""
    print(f"{len(results)} faults, {len(results) - len(survived)} seen, {len(survived)} survived{named}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
