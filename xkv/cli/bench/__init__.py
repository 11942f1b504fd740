"""`python -m xkv bench`: xkv beside SGLang's kernels, single ops and whole metadata steps."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...platforms import detect
from ..demo.traces import TraceError
from . import records, table, workloads
from .cases import SECTIONS, SUITES, Case, cases
from .loading import PeerError

if TYPE_CHECKING:
    from .records import Record
    from .workloads import Workload

_ROUNDS, _QUICK_ROUNDS = 25, 7
_WIDTHS, _QUICK_WIDTHS = 64, 8
_STEPS, _QUICK_STEPS = 5000, 200
_PAGES, _QUICK_PAGES = "64,32,16,1", "64,1"
SPARSE, EXTEND = "sparse", "extend"


class _UsageError(ValueError):
    """Arguments that cannot be served; the message is for the user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench`.

    Args:
        parser: the parser of the `bench` command.
    """
    add = parser.add_argument
    many: dict[str, Any] = {"type": Path, "action": "append", "default": []}
    suites = (*SUITES, SPARSE, EXTEND)
    add(
        "--suite", choices=suites,
        help="single ops, metadata steps (default: both), chosen positions, or steps that only extend",
    )  # fmt: skip
    add("--peers", metavar="DIR", **many, help="an unpacked SGLang wheel, or its kernel files; repeatable")
    add("--trace", metavar="FILE", **many, help="adds decode batches of Mooncake's jsonl or Azure's csv")
    add("--pages", metavar="N,N", help=f"page sizes of single ops in tokens (default: {_PAGES})")
    add("--only", metavar="NAME", nargs="+", help="these workloads, of those in the tables")
    add("--rounds", type=int, help=f"timed replays of each graph (default: {_ROUNDS})")
    add("--warm", action="store_true", help="does not overwrite L2 between replays; see below")
    add("--predecessor", choices=("add", "early"), default="add", help="the kernel before; see below")
    add("--stream", action="store_true", help="issues calls on a stream instead of replaying graphs")
    add("--quick", action="store_true", help="few workloads, two page sizes, few rounds: a minute or two")
    add("--json", metavar="FILE", type=Path, help="writes the record there")
    add("--plot", metavar="FILE", type=Path, help="draws the tables there, such as bench.png")
    add("--from", metavar="JSON", type=Path, dest="record", help="measures nothing: shows this record again")
    parser.epilog = (
        "Device times are in place: a CUDA graph of 24 pairs, an in-place add on the lengths and the call,"
        " less a graph of the 24 adds; each pair on source rows of its own. Back to back is a graph of the"
        " calls alone. With --predecessor early the add is a Triton kernel that lets the next one start at"
        " once. Before each replay L2 is overwritten, and the row indices and lengths are read again, as an"
        " engine has just written them. The replays take turns. Host times are of calls without a sync."
        " Every result is compared with plain torch before it is timed. With --warm small batches find"
        " their rows in L2. 'least' is the fastest of a few kernels that do just this point, unchecked."
    )


def run(args: argparse.Namespace) -> int:
    """Compares and times all providers, and prints the tables.

    Args:
        args: what add_arguments defines.

    Returns:
        The exit status: 0; 1 if a result is wrong, which is then named and not timed; 2 if the
        arguments or the machine do not allow a run (one line on stderr says why).

    Raises:
        xkv.UnsupportedPlatformError: what is installed or plugged in cannot run xkv.
    """
    try:
        _check(args)
        if args.record is not None:
            record = _read(args.record)
            print(*table.text(record), sep="\n")
            return _finish(args, record)
        points = [] if args.suite in (SPARSE, EXTEND) else _points(args)
    except _UsageError as error:
        return _fail(str(error))
    detect.platform()  # first of all that needs torch: says so where it is missing
    import torch

    if not torch.cuda.is_available():
        return _fail("kernels are timed on a GPU, and there is none")
    where = detect.platform()
    if args.predecessor == "early" and not where.supports_pdl:
        return _fail(f"--predecessor early needs programmatic dependent launch, which {where} has not")
    if args.suite in (SPARSE, EXTEND):
        return _measure_alone(args)
    return _measure(args, points)


def _measure_alone(args: argparse.Namespace) -> int:
    """The suites that have tables of their own."""
    from . import extend, sparse

    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS)
    try:
        if args.suite == EXTEND:
            wrong = extend.run(rounds, args.quick, args.json)
        else:
            wrong = sparse.run(args.peers, rounds, args.quick, args.json)
    except PeerError as error:
        return _fail(f"--peers: {error}")
    if wrong:
        print("xkv bench: wrong, and not timed:", *wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def _measure(args: argparse.Namespace, points: list[tuple[Case, Workload]]) -> int:
    from .session import Plan, Session
    from .sglang import Plugin, SGLang

    rounds, widths, steps = (
        (_QUICK_ROUNDS, _QUICK_WIDTHS, _QUICK_STEPS) if args.quick else (_ROUNDS, _WIDTHS, _STEPS)
    )
    if args.suite == "steps":
        widths = 0
    try:
        kernels = SGLang(args.peers), Plugin(args.peers)
        plan = Plan(
            points, *kernels, args.rounds or rounds, widths, steps, cold=not args.warm,
            predecessor=args.predecessor, stream=args.stream,
        )  # fmt: skip
        session = Session(plan, shlex.join(sys.argv))
    except PeerError as error:
        return _fail(f"--peers: {error}")
    except MemoryError as error:
        return _fail(str(error))
    record = session.record
    print(table.setting(record), flush=True)
    tqdm = importlib.import_module("tqdm").tqdm
    with tqdm(total=len(session.points), unit="point", desc="xkv bench", file=sys.stderr) as bar:
        for part in session.run(bar):
            lines = table.section_text(record, part) if part in SECTIONS else table.compiles_text(record)
            print(*lines, sep="\n", flush=True)
    if args.json is not None:
        records.write(record, args.json)
    return _finish(args, record)


def _finish(args: argparse.Namespace, record: Record) -> int:
    """Draws the figure, and says what is wrong."""
    if args.plot is not None and record.points:
        from .plot import figure

        figure(record).savefig(args.plot)
    if record.wrong:
        print("xkv bench: wrong, and not timed:", *record.wrong, sep="\n", file=sys.stderr)
    return 1 if record.wrong else 0


def _fail(message: str) -> int:
    print(f"xkv bench: {message}", file=sys.stderr)
    return 2


def _check(args: argparse.Namespace) -> None:
    """Raises _UsageError for what can be said without torch."""
    needs = {"tabulate": True, "tqdm": True, "matplotlib": args.plot, "msgspec": args.record}
    for module in (name for name, needed in needs.items() if needed):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise _UsageError(f"{error.name} is missing; pip install 'xkv[bench]'") from error
    for flag, file in (("--json", args.json), ("--plot", args.plot)):
        if file is not None and not file.absolute().parent.is_dir():
            raise _UsageError(f"{flag}: there is no folder {file.absolute().parent}")
    if args.plot is not None and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise _UsageError(f"--plot must end in .png, .svg or .pdf, not {args.plot.suffix!r}")
    for folder in args.peers:
        if not folder.is_dir():
            raise _UsageError(f"--peers: there is no folder {folder}")
    if args.stream and args.warm:
        raise _UsageError("--stream queues calls while L2 is being overwritten: it does not go with --warm")
    if args.rounds is not None and args.rounds < 1:
        raise _UsageError(f"--rounds must be at least 1, not {args.rounds}")


def _points(args: argparse.Namespace) -> list[tuple[Case, Workload]]:
    """What is built, for which workload; suite by suite."""
    suites, sizes, loads = [args.suite] if args.suite else SUITES, _sizes(args), _loads(args)
    names = [load.name for load in loads if set(suites) & set(load.suites)]
    if wrong := [name for name in args.only or () if name not in names]:
        raise _UsageError(f"--only: there is no {wrong[0]!r} among {', '.join(map(repr, names))}")
    return [
        (case, load)
        for suite in suites
        for case in cases(suite, sizes)
        for load in loads
        if suite in load.suites and load.name in (args.only or names)
    ]


def _sizes(args: argparse.Namespace) -> list[int]:
    usual = _QUICK_PAGES if args.quick else _PAGES
    text: str = usual if args.pages is None else args.pages
    allowed = [str(1 << k) for k in range(8)]  # whole pages of the source's pieces
    if wrong := [each for each in text.split(",") if each not in allowed]:
        raise _UsageError(f"--pages takes {', '.join(allowed)}, not {wrong[0]!r}")
    return [int(each) for each in dict.fromkeys(text.split(","))]


def _loads(args: argparse.Namespace) -> list[Workload]:
    loads = [each for each in workloads.WORKLOADS if each.quick or not args.quick]
    for file in args.trace:
        try:
            loads += workloads.from_trace(file)
        except OSError as error:
            raise _UsageError(f"--trace: {file}: {error.strerror or error}") from error
        except (TraceError, ValueError) as error:
            raise _UsageError(f"--trace: {error}") from error
    return loads


def _read(file: Path) -> Record:
    try:
        return records.read(file)
    except OSError as error:
        raise _UsageError(f"--from: {file}: {error.strerror or error}") from error
    except records.RecordError as error:
        raise _UsageError(f"--from: {error}") from error
