"""`python -m xkv check`: the self-test of an installed package, with no checkout and no pytest.

Every op, page size and dtype on the device at hand against an oracle, a Python loop; with
--hostile, every op and backend on hostile device data instead.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from typing import TYPE_CHECKING

from ... import __version__
from ...platforms import detect
from .. import backend_option

if TYPE_CHECKING:
    from .selftest import Checks

_SHOWN = 3  # failures of a group that are printed
_COLUMNS = "{:>6}  {:<6}  {:>7}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `check`.

    Args:
        parser: the parser of the `check` command.
    """
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--quick", action="store_true", help="a few page sizes instead of all from 1 to 1024")
    add("--hostile", type=int, metavar="N", help="N cases of hostile device data instead")
    add("--seed", type=int, default=0, help="of the hostile cases (default: %(default)s)")
    add(
        "--backend",
        metavar="NAME",
        help="the hostile cases of this backend alone: a name, or MODULE:NAME of a BackendSpec of your own",
    )
    parser.epilog = "The first run on a GPU compiles every kernel that it tries: some minutes."


def run(args: argparse.Namespace) -> int:
    """Runs all groups and prints a line for each, and what differed where one fails.

    Args:
        args: what add_arguments defines.

    Returns:
        The exit status: 0, 1 if a check failed, or 2 for a number of cases or a backend that is none.

    Raises:
        xkv.UnsupportedPlatformError: there is nothing here to check on.
    """
    if args.hostile is not None and args.hostile < 1:
        print(f"xkv check: --hostile must be at least 1, not {args.hostile}", file=sys.stderr)
        return 2
    if args.backend is not None and args.hostile is None:
        print("xkv check: --backend needs --hostile", file=sys.stderr)
        return 2
    vendor = detect.platform(None if args.device == "auto" else args.device).vendor
    try:
        spec = None if args.backend is None else backend_option.load(args.backend, vendor)
    except ValueError as error:
        print(f"xkv check: --backend: {error}", file=sys.stderr)
        return 2
    # Not before: torch may be missing, and --help does not need it.
    from ..demo.replay import single_thread
    from . import hostile, selftest

    bench = selftest.bench(args.device, args.quick)
    print(f"xkv {__version__} on {bench}\n")
    if args.hostile is None:
        groups = [(title, group(bench)) for title, group in selftest.GROUPS.items()]
    else:
        groups = hostile.groups(args.hostile, args.seed, bench.device, bench.interpreted, spec)
    width = max(len(title) for title, _ in groups)
    print("group".ljust(width), _COLUMNS.format("cases", "result", "seconds"))
    begin, total, wrong = time.perf_counter(), 0, 0
    with single_thread():
        for title, checks in groups:
            print(title.ljust(width), end=" ", flush=True)  # a compile may take its time
            start = time.perf_counter()
            cases, failures = _tried(checks)
            seconds = f"{time.perf_counter() - start:.2f}"
            result = "FAIL" if failures else "pass" if cases else "no GPU"
            print(_COLUMNS.format(cases, result, seconds))
            for failure in failures[:_SHOWN]:
                print(failure)
            if len(failures) > _SHOWN:
                print(f"  and {len(failures) - _SHOWN} more")
            total += cases
            wrong += len(failures)
    result = "FAIL" if wrong else "pass"
    seconds = f"{time.perf_counter() - begin:.2f}"
    print("total".ljust(width), _COLUMNS.format(total, result, seconds))
    return 1 if wrong else 0


def _tried(checks: Checks) -> tuple[int, list[str]]:
    """How many checks there were, and what failed."""
    from .case import MismatchError

    cases, failures = 0, []
    for what, check in checks:
        cases += 1
        try:
            check()
        except MismatchError as error:
            failures.append(f"  {what}:\n    {error}")
        except Exception:
            # whatever an op raises on arguments that are in order is a failure, not the end
            said = traceback.format_exc(limit=-4).rstrip().replace("\n", "\n    ")
            failures.append(f"  {what}:\n    {said}")
    return cases, failures
