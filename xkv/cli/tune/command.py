"""The command line of the sweep: its flags, the order of its work, and what it prints."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import get_args

from ...platforms import detect
from ...platforms.tuning import AccessPattern
from . import chosen_rows, classes, results, rows
from .chosen_rows import CHOSEN_CLASSES
from .classes import CLASSES, SWEPT, AnyClass, Class

_FLAGS = tuple(dict.fromkeys([*SWEPT, *chosen_rows.SWEPT]))


def parser() -> argparse.ArgumentParser:
    """The flags: those of the search, and one for each field of a row."""
    made = argparse.ArgumentParser(
        prog="tune", description="Sweeps tuning rows on the GPU at hand and prints the best as source."
    )
    add = made.add_argument
    patterns = (*get_args(AccessPattern), chosen_rows.PATTERN)
    add("--access-patterns", nargs="+", choices=patterns, default=patterns)
    add("--minutes", type=float, default=12, help="of all classes together, about (default: %(default)s)")
    add("--keep", type=int, default=8, help="rows of the second stage (default: %(default)s)")
    add("--rounds", type=int, default=25, help="replays in the second stage (default: %(default)s)")
    add("--jobs", type=int, default=0, help="processes that compile beforehand (default: none)")
    add("--predecessor", choices=("add", "early"), default="add", help="the kernel before each launch")
    add("--stream", action="store_true", help="launches on a stream, not from a graph")
    add("--json", metavar="FILE", type=Path, help="writes every time there")
    add(
        "--from", metavar="FILE", type=Path, dest="record",
        help="measures nothing: prints the rows of this JSON, or of the archive of python -m xkv report",
    )  # fmt: skip
    for field in _FLAGS:
        flag = "--" + field.replace("_", "-")
        add(flag, metavar="N,N", type=classes.values, help="in place of each class's own values")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Sweeps, and prints the rows; or prints those of a record.

    Returns:
        The exit status: 0; 1 if a row's result was wrong, which is then named; 2 without a GPU, without a
        package that it needs, or where the file is no record.
    """
    args = parser().parse_args(argv)
    try:
        for module in ("tabulate", "tqdm"):
            importlib.import_module(module)
        return _read(args.record) if args.record is not None else _measure(args)
    except ModuleNotFoundError as error:
        if error.name not in ("tabulate", "tqdm"):
            raise
        return _fail(f"{error.name} is missing; pip install 'xkv[bench]'")
    except (detect.UnsupportedPlatformError, MemoryError, results.RecordError) as error:
        return _fail(str(error))


def _read(file: Path) -> int:
    try:
        record, tables = results.read(file)
    except OSError as error:
        return _fail(f"--from: {file}: {error.strerror or error}")
    print(*tables, sep="\n")
    return _finish(record)


def _with_flags(each: AnyClass, args: argparse.Namespace) -> AnyClass:
    """The class with the values that the command line has for fields of its rows."""
    fields = SWEPT if isinstance(each, Class) else chosen_rows.SWEPT
    flags = {name: value for name in fields if (value := getattr(args, name)) is not None}
    return each._replace(grid=each.grid | flags)


def _measure(args: argparse.Namespace) -> int:
    where = detect.platform()  # says so where torch is missing
    import torch

    from ..bench import machine
    from . import compiling, sweep

    if not torch.cuda.is_available():
        return _fail("rows are measured on a GPU, and there is none")
    every: tuple[AnyClass, ...] = (*CLASSES, *CHOSEN_CLASSES)
    asked = [
        _with_flags(classes.widened(each, where.warp_size), args)
        for each in every
        if each.access_pattern in args.access_patterns
    ]
    work = [
        (rows.candidates(sweep.in_use(each, where), each.grid, where.warp_size), sweep.fine(each))
        for each in asked
    ]
    compiling.precompile(work, args.jobs)
    rig = sweep.Sweep(asked, where, args.predecessor, args.stream)
    record: results.Record = {
        **machine.versions(), "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "platform": str(where), "command": shlex.join(sys.argv), "rows": [], "left_out": rig.left_out,
        "wrong": rig.wrong, "classes": [],
    }  # fmt: skip
    end = time.perf_counter() + args.minutes * 60
    for n, each in enumerate(asked):
        base = sweep.in_use(each, where)
        stages = sweep.sweep(each, rig, base, args, (end - time.perf_counter()) / (len(asked) - n))
        if stages[-1]:  # else all of them are wrong, and named below
            found = results.entry(each.name, base, stages)
            record["classes"].append(found)
            record["rows"].append(asdict(results.best(found, record)))
            print(results.table(found), flush=True)
        if args.json is not None:  # now, so that a sweep that is cut off has not lost it
            results.write(record, args.json)
    return _finish(record)


def _finish(record: results.Record) -> int:
    """Prints the rows, and says what was wrong."""
    print(*results.end(record), sep="\n")
    if record["wrong"]:
        print("tune: wrong, and out:", *record["wrong"], sep="\n", file=sys.stderr)
    return 1 if record["wrong"] else 0


def _fail(message: str) -> int:
    print(f"tune: {message}", file=sys.stderr)
    return 2
