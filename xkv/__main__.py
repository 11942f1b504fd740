"""`python -m xkv` and the console script `xkv`: info, demo, check, bench and report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __doc__ as about
from . import __version__
from .cli import bench, check, demo, info, report  # none of them imports torch before it runs
from .platforms import detect

_COMMANDS = {
    "info": (info, "what xkv finds on this machine: GPUs, versions, backends, tuning rows"),
    "demo": (demo, "a serving trace through a paged engine, every step built and checked"),
    "check": (check, "the self-test of an installed package, on the available device"),
    "bench": (bench, "the cost of single ops and whole metadata steps: SGLang's kernels and xkv's"),
    "report": (report, "info, check, bench and tuning rows of this machine, in one archive to send"),
}
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; None: those of the process.

    Returns:
        The exit status: 0; 1 if an error was found; 2 if the installed software does not allow a run (one
        line on stderr says why); 130 if interrupted; 141 if the reader of its output closed the pipe.
    """
    try:
        try:
            return _run(argv)
        finally:
            print(end="", flush=True)  # here, where a broken pipe can be handled
    except KeyboardInterrupt:
        print("xkv: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # the interpreter flushes stdout again at exit, and would print a traceback
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        return _BROKEN_PIPE


def _run(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    try:
        status: int = _COMMANDS[args.command][0].run(args)
    except detect.UnsupportedPlatformError as error:
        print(f"xkv {args.command}: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xkv", description=(about or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=f"xkv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (tool, summary) in _COMMANDS.items():
        tool.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser


if __name__ == "__main__":
    sys.exit(main())
