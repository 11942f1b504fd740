"""What the tests of `python -m xkv bench` share: small workloads, their inputs, a trace, a run."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from xkv.cli import bench
from xkv.cli.bench import inputs
from xkv.cli.bench.cases import (
    AGAIN,
    LEAST,
    OURS,
    READ_TABLE,
    SGLANG,
    SGLANG_512,
    SUITES,
    TOKEN_BLOCKS,
    Case,
)  # fmt: skip
from xkv.cli.bench.inputs import Inputs
from xkv.cli.bench.workloads import Workload

TINY = (
    Workload("skewed", (700, 1, 64, 65, 127), 800, suites=SUITES),
    Workload("one", (190,), 200, suites=SUITES, quick=True),
)
# what the fixture `small_gpu` times
US = {SGLANG: 8.0, AGAIN: 8.1, SGLANG_512: 6.0, READ_TABLE: 4.0, TOKEN_BLOCKS: 7.0, OURS: 2.0, LEAST: 1.6,
      "slow": 1.75, "quick": 1.5, "lost": -0.1}  # fmt: skip
LEASTS = ["slow", "quick", "lost"]
PEERS = os.environ.get("XKV_PEERS")  # where kernels of SGLang lie, for those who have them
needs_peers = pytest.mark.skipif(not PEERS, reason="XKV_PEERS names no folder with SGLang's kernels")


def make_inputs(case: Case, load: Workload, device: str) -> Inputs:
    return inputs.make_inputs(case, load, inputs.make_sources([load], device)[load.capacity])


def write_trace(file: Path, *requests: tuple[int, int]) -> Path:
    """Input and output lengths -> Mooncake's format."""
    rows = [
        {"timestamp": n, "input_length": a, "output_length": b, "hash_ids": [0] * -(-a // 512)}
        for n, (a, b) in enumerate(requests)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(argv))


def timed(seen: dict[str, Any]) -> list[list[str]]:
    """Who was timed in place at each point; before the first one, and of least's, who was tried."""
    first, *rest = seen["device"]
    assert OURS in first
    assert LEAST not in first
    return [names for names in rest if names != LEASTS]
