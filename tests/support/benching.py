"""What the tests of `python -m xkv bench` share: small workloads, a record, a trace, a GPU made up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from xkv.cli.bench import inputs
from xkv.cli.bench.cases import SUITES, Case
from xkv.cli.bench.inputs import Inputs
from xkv.cli.bench.workloads import Workload

TINY = (
    Workload("skewed", (700, 1, 64, 65, 127), 800, suites=SUITES),
    Workload("one", (190,), 200, suites=SUITES, quick=True),
)
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
