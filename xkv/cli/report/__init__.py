"""`python -m xkv report`: info, check, bench and a sweep of tuning rows, in one archive to send."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import zipfile
from datetime import datetime, timezone
from pathlib import Path

from ... import __version__
from . import parts, privacy
from .parts import PARTS, Part

SUMMARY = "report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `report`.

    Args:
        parser: the parser of the `report` command.
    """
    add = parser.add_argument
    add("--out", metavar="FILE", type=Path, required=True, help="the archive, such as report.zip")
    add("--parts", nargs="+", choices=PARTS, default=tuple(PARTS), help="these alone (default: all)")
    add(
        "--minutes", type=float, default=10,
        help="ends a part that takes longer, the sweep --tune-minutes later (default: %(default)s)",
    )  # fmt: skip
    add("--tune-minutes", type=float, default=12, help="of the sweep, about (default: %(default)s)")
    add(
        "--jobs", type=int, default=min(len(os.sched_getaffinity(0)), 16),
        help="processes that compile for the sweep (default: %(default)s, of this machine's cores)",
    )  # fmt: skip
    add("--hostile", type=int, default=1000, help="cases of hostile device data (default: %(default)s)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="few page sizes in check")
    amount.add_argument("--full", action="store_true", help="bench without its --quick")
    parser.epilog = (
        "Each part is a process of its own. One that fails or takes too long does not end the others: its"
        " output and its exit status are in the archive too, and it is named at the end. Parts that need a"
        " GPU fail where there is none. Of file names in the output only what follows the folder of the"
        " installed packages is kept, and user and host names are left out."
    )


def run(args: argparse.Namespace) -> int:
    """Runs the parts one after the other and writes the archive.

    Args:
        args: what add_arguments defines.

    Returns:
        The exit status: 0; 1 if a part failed, which is then named; 2 for arguments that cannot be served,
        or where a package that a part needs is missing.
    """
    chosen = [part for name, part in PARTS.items() if name in args.parts]
    if problem := _problem(args, chosen):
        print(f"xkv report: {problem}", file=sys.stderr)
        return 2
    names, most = [part.name for part in chosen], sum(parts.limit(part, args) for part in chosen)
    print(
        f"xkv {__version__}: {', '.join(names)}; at most {most / 60:.0f} minutes, see --minutes,"
        " --tune-minutes and --quick",
        flush=True,
    )
    done: list[parts.Result] = []
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(args.out, "w", zipfile.ZIP_DEFLATED) as out:
        try:
            for part in chosen:
                print(f"{part.name:<8}", end=" ", flush=True)
                result = parts.run(part, args, Path(folder))
                done.append(result)
                for file in result.files:
                    text = (Path(folder) / file).read_text(errors="replace")
                    out.writestr(file, privacy.cleaned(text, is_json=file.endswith(".json")))
                print(f"{result.said:<12} {result.seconds:7.1f} s", flush=True)
        finally:  # also if interrupted
            out.writestr(SUMMARY, json.dumps(_summary(args, done), indent=1) + "\n")
    print(f"written to {args.out}")
    failed = [result for result in done if not result.ok]
    if failed:
        lines = [f"  {result.name}: {result.said}: {result.last_line}" for result in failed]
        print("xkv report: without success, and in the archive:", *lines, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _problem(args: argparse.Namespace, chosen: list[Part]) -> str:
    """What can be said before anything has run; "" if nothing."""
    for name in ("minutes", "tune_minutes", "hostile", "jobs"):
        value = getattr(args, name)
        if not 0 < value < float("inf"):
            return f"--{name.replace('_', '-')} must be more than 0, not {value}"
    if not args.out.absolute().parent.is_dir():
        return f"--out: there is no folder {args.out.absolute().parent}"
    needing = [part.name for part in chosen if part.needs_extra]
    for module in ("tabulate", "tqdm") if needing else ():
        try:
            importlib.import_module(module)
        except ImportError as error:
            rest = " ".join(name for name, part in PARTS.items() if not part.needs_extra)
            return (
                f"{error.name} is missing, which {', '.join(needing)} need; pip install 'xkv[bench]', or"
                f" --parts {rest}"
            )
    return ""


def _summary(args: argparse.Namespace, done: list[parts.Result]) -> dict[str, object]:
    return {
        "xkv": __version__, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "minutes": args.minutes, "asked_for": list(args.parts),
        "parts": [result._asdict() for result in done],
    }  # fmt: skip
