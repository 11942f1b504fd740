#!/usr/bin/env python3
"""Prints which CI legs run, from ci/matrix.json.

    ci/matrix.py            a table of all legs, with the reason for those that do not run
    ci/matrix.py outputs    one line ARCH=ROW for each leg that runs: the outputs of a job on GitHub

With XKV_FORK=true, as for a pull request from a fork, no leg runs on a self-hosted runner.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def why_not(row: dict[str, Any], fork: bool) -> str:
    """Returns why a leg does not run, or an empty string."""
    if not row["enabled"]:
        return f"disabled: {row['reason']}"
    if fork and "self-hosted" in row["runner"]:
        return "not for a fork's pull request"
    return ""


def outputs(rows: list[dict[str, Any]], fork: bool) -> list[str]:
    """Returns the rows of the legs that run. GitHub shows a job without its row as skipped."""
    return [f"{row['arch']}={json.dumps(row)}" for row in rows if not why_not(row, fork)]


def table(rows: list[dict[str, Any]], fork: bool) -> list[str]:
    """Returns a Markdown table of the legs."""
    lines = ["| leg | state | image |", "|---|---|---|"]
    for row in rows:
        reason = why_not(row, fork)
        state = f"skipped ({reason})" if reason else f"runs `{row['run']}`"
        lines.append(f"| {row['arch']} | {state} | {row['image']} |")
    return lines


def main(argv: list[str]) -> int:
    """Prints the table or the outputs."""
    rows = json.loads(Path(__file__).with_name("matrix.json").read_text())
    if argv not in ([], ["outputs"]):
        print("usage: ci/matrix.py [outputs]", file=sys.stderr)
        return 2
    show = outputs if argv else table
    print("\n".join(show(rows, os.environ.get("XKV_FORK") == "true")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
