"""`python -m xkv steps`: what a metadata step costs, SGLang's sequence of ops beside one build."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import dispatch
from ...platforms import detect
from ..loading import PeerError

if TYPE_CHECKING:
    from torch import Tensor

    from ..timing import Figures
    from .compared import Row
    from .peers import Peers, Step

_HEADERS = [
    "backend", "page", "mode",
    "launches\ntheirs", "\nours", "device us\ntheirs", "\nours", "host us\ntheirs", "\nours",
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `steps`.

    Args:
        parser: the parser of the `steps` command.
    """
    add = parser.add_argument
    add("--peers", metavar="DIR", type=Path, help="SGLang 0.5.23's kernels (default: xkv's ops)")
    add("--drop-in", action="store_true", help="ours: those calls, of the plugin's kernels")
    add("--json", metavar="FILE", type=Path, help="writes the numbers there")


def run(args: argparse.Namespace) -> int:
    """Compares every backend's results, then times them and prints a table for each workload.

    Args:
        args: what add_arguments defines.

    Returns:
        The exit status: 0; 1 if a result of theirs differs from ours, which is then named, and
        nothing timed; 2 if the arguments or the machine do not allow a run (one line on stderr says
        why).

    Raises:
        xkv.UnsupportedPlatformError: what is installed or plugged in cannot run xkv.
    """
    try:
        tabulate = importlib.import_module("tabulate").tabulate
    except ImportError as error:
        return _fail(f"{error.name} is missing; pip install 'xkv[bench]'")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        return _fail(f"--json: there is no folder {args.json.absolute().parent}")
    if args.drop_in and args.peers is None:
        return _fail("--drop-in needs --peers")
    where = detect.platform()  # first of all that needs torch: says so where it is missing
    from .. import timing
    from . import compared, peers

    if args.peers is not None and peers.find(args.peers, peers.INDEX_KERNELS) is None:
        return _fail(f"--peers: there is no {peers.INDEX_KERNELS} in {args.peers}")
    import torch

    if not torch.cuda.is_available():
        return _fail("steps are timed on a GPU, and there is none")

    try:
        theirs: Peers = peers.StandIn() if args.peers is None else peers.SGLang(args.peers)
        drop_in = peers.DropIn(args.peers) if args.drop_in else None
    except PeerError as error:
        return _fail(f"--peers: {error}")
    here = {spec.name for spec in dispatch.backends()}
    rows = [
        row for row in compared.ROWS
        if row.backend in here and (drop_in is None or drop_in.has(row.file))
    ]  # fmt: skip
    loads = compared.WORKLOADS
    count = compared.STEPS * max(load.batch for load in loads)
    source = compared.make_source(count, max(load.context for load in loads), "cuda")
    batches = {load: compared.make_steps(load, "cuda") for load in loads}

    found = [
        f"{load}: {row.name}: {what}"
        for load, steps in batches.items()
        for row in rows
        for what in compared.differences(row, theirs, source, load.context, steps, drop_in)
    ]
    if found:
        print("xkv steps: theirs and ours differ:", *found, sep="\n", file=sys.stderr)
        return 1
    ours = "" if drop_in is None else f"; ours: {drop_in.title}"
    print(f"{where}; theirs: {theirs.title}{ours}; launches and microseconds a step")
    tables = []
    for load, steps in batches.items():
        measured = [(row, *_measure(row, theirs, source, load.context, steps, drop_in)) for row in rows]
        add = timing.add_us()
        print(f"\n{load}; a torch add_ takes the host {add:.1f} us")
        lines = [_cells(*line) for line in measured]
        print(tabulate(lines, _HEADERS, "simple", floatfmt=".1f", missingval="-"))
        tables.append({"workload": load._asdict(), "add_us": add, "rows": _record(measured)})
    print()
    for row in rows:
        lacks = "" if theirs.has(row.file) else f"theirs needs --peers with {row.file}"
        for note in filter(None, (row.note, lacks)):
            print(f"{row.name}: {note}")
    if args.json is not None:
        titles = {"theirs": theirs.title} | ({} if drop_in is None else {"ours": drop_in.title})
        setting = {"platform": str(where), **titles, **timing.versions()}
        args.json.write_text(json.dumps({**setting, "tables": tables}, indent=1) + "\n")
    return 0


def _fail(message: str) -> int:
    print(f"xkv steps: {message}", file=sys.stderr)
    return 2


def _measure(
    row: Row, peers: Peers, source: Tensor, context: int, steps: Sequence[Step], drop_in: Peers | None
) -> tuple[Figures | None, Figures]:
    """Theirs, or None where nothing here can stand for it, and ours."""
    from .. import timing
    from . import compared

    theirs, ours = compared.both(row, peers, source, len(steps[0].lens), context, drop_in)
    told = timing.measure(theirs, steps) if peers.has(row.file) else None
    return told, timing.measure(ours, steps)


def _cells(row: Row, theirs: Figures | None, ours: Figures) -> list[Any]:
    pairs = zip(theirs or (None,) * len(ours), ours, strict=True)
    return [row.backend, row.page_size, row.mode, *(value for pair in pairs for value in pair)]


def _record(measured: list[tuple[Row, Figures | None, Figures]]) -> list[dict[str, Any]]:
    return [
        {
            "backend": row.backend, "page_size": row.page_size, "mode": row.mode, "note": row.note,
            "theirs": theirs and theirs._asdict(), "ours": ours._asdict(),
        }
        for row, theirs, ours in measured
    ]  # fmt: skip
