#!/usr/bin/env python3
"""What CI runs where: reads ci/matrix.json for the workflows, and for whoever asks.

    ci/matrix.py            a table of the legs, and why those that do not run do not
    ci/matrix.py outputs    ARCH=ROW, a line for each leg that runs: a job's outputs on GitHub

With XKV_FORK=true, as for a fork's pull request, no leg runs on a runner of ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def why_not(row: dict[str, Any], fork: bool) -> str:
    """Why a leg does not run, or ""."""
    if not row["enabled"]:
        return f"disabled: {row['reason']}"
    if fork and "self-hosted" in row["runner"]:
        return "not for a fork's pull request"
    return ""


def outputs(rows: list[dict[str, Any]], fork: bool) -> list[str]:
    """The rows of the legs that run. A job without its row is skipped, and shown as skipped."""
    return [f"{row['arch']}={json.dumps(row)}" for row in rows if not why_not(row, fork)]


def table(rows: list[dict[str, Any]], fork: bool) -> list[str]:
    """The legs in Markdown."""
    lines = ["| leg | state | image |", "|---|---|---|"]
    for row in rows:
        reason = why_not(row, fork)
        state = f"skipped ({reason})" if reason else f"runs `{row['run']}`"
        lines.append(f"| {row['arch']} | {state} | {row['image']} |")
    return lines


def main(argv: list[str]) -> int:
    """Prints what is asked for."""
    rows = json.loads(Path(__file__).with_name("matrix.json").read_text())
    if argv not in ([], ["outputs"]):
        print("usage: ci/matrix.py [outputs]", file=sys.stderr)
        return 2
    show = outputs if argv else table
    print("\n".join(show(rows, os.environ.get("XKV_FORK") == "true")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
