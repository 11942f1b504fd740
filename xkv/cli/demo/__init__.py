"""`python -m xkv demo`: a serving trace through a paged allocator, every step built and checked."""

from __future__ import annotations

import argparse
import importlib
import sys

from ...platforms import detect
from .traces import HASH_BLOCK, Request, TraceError, read_trace, synthetic_trace

_MAX_ENTRIES = 2**28  # batch * max_context: req_to_token and kv_indices take a GiB each


class _UsageError(ValueError):
    """Arguments that cannot be served; the message is for the user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's flags to a parser.

    Args:
        parser: The parser of the `demo` command.
    """
    add = parser.add_argument
    add("--trace", metavar="FILE", help="Mooncake's jsonl or Azure's csv (default: synthetic)")
    add("--steps", type=int, default=200, help="decode steps (default: %(default)s)")
    add("--batch", type=int, default=32, help="most requests at once (default: %(default)s)")
    add("--page-size", type=int, default=64, help="tokens a page (default: %(default)s)")
    add("--max-context", type=int, default=131072, help="tokens a request (default: %(default)s)")
    add("--seed", type=int, default=0, help="of load, pages and rows (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Replays the trace, prints the table of results to stdout and the progress to stderr.

    Args:
        args: What add_arguments defines.

    Returns:
        The exit status: 0, 1 if any entry differs from the oracle's, 2 if the arguments, the trace
        or what is installed do not allow a run (one line on stderr says why).
    """
    try:
        tqdm = importlib.import_module("tqdm").tqdm
        tabulate = importlib.import_module("tabulate").tabulate
    except ImportError as error:
        return _fail(f"{error.name} is missing; pip install 'xkv[bench]'")
    try:
        _check(args)
        requests, skipped = _load(args)
        detect.platform(None if args.device == "auto" else args.device)
    except (_UsageError, TraceError, detect.UnsupportedPlatformError) as error:
        return _fail(str(error))
    # Not before: torch may be missing, a wrong argument is answered at once, --help needs neither.
    from .replay import replay, single_thread

    bar = tqdm(total=args.steps, unit="step", desc="xkv demo", file=sys.stderr)
    with bar, single_thread():
        result = replay(
            requests,
            steps=args.steps,
            batch=args.batch,
            page_size=args.page_size,
            max_context=args.max_context,
            seed=args.seed,
            device=args.device,
            progress=bar,
        )
    source = args.trace or f"synthetic, seed {args.seed}"
    skips = f"{skipped} skipped (over {args.max_context} tokens)"
    print(tabulate(result.rows(source, skips), tablefmt="simple"))
    return 1 if result.mismatches else 0


def _fail(message: str) -> int:
    print(f"xkv demo: {message}", file=sys.stderr)
    return 2


def _check(args: argparse.Namespace) -> None:
    """Raises _UsageError for a number out of its range."""
    for flag, value in (("--steps", args.steps), ("--batch", args.batch)):
        if value < 1:
            raise _UsageError(f"{flag} must be at least 1, not {value}")
    if args.page_size not in [1 << k for k in range(11)]:
        raise _UsageError(f"--page-size must be a power of two in 1..1024, not {args.page_size}")
    if args.max_context < HASH_BLOCK:
        raise _UsageError(f"--max-context must be at least {HASH_BLOCK}, not {args.max_context}")
    if args.batch * args.max_context > _MAX_ENTRIES:
        raise _UsageError(f"--batch times --max-context must be at most {_MAX_ENTRIES}")
    if not 0 <= args.seed < 2**63:
        raise _UsageError(f"--seed must be in 0..2**63-1, not {args.seed}")


def _load(args: argparse.Namespace) -> tuple[list[Request], int]:
    """Returns the requests that fit --max-context and how many do not."""
    if args.trace is not None:
        try:
            requests = read_trace(args.trace)
        except OSError as error:
            raise _UsageError(f"{args.trace}: {error.strerror or error}") from error
    else:
        requests = synthetic_trace(args.batch + 2 * args.steps, args.seed)
    fitting = [r for r in requests if r.input_len + r.output_len <= args.max_context]
    if not any(r.output_len > 1 for r in fitting):
        raise _UsageError(f"no request of the trace decodes within {args.max_context} tokens")
    return fitting, len(requests) - len(fitting)
