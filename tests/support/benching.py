"""What the tests of `python -m xkv bench` share: small workloads, and a trace."""

from __future__ import annotations

import json
from pathlib import Path

from xkv.cli.bench.records import BLOCKS, READ_TABLE, SEED, SERIAL, TOKENS
from xkv.cli.bench.workloads import Workload

TINY = (Workload("skewed", (700, 1, 64, 65, 127), 800), Workload("one", (190,), 200))
HOST = Workload("host", (60, 130), 200)
FOUND = (SEED, SERIAL, READ_TABLE, TOKENS, BLOCKS)


def write_trace(file: Path, *requests: tuple[int, int]) -> Path:
    """Input and output lengths -> Mooncake's format."""
    rows = [
        {"timestamp": n, "input_length": a, "output_length": b, "hash_ids": [0] * -(-a // 512)}
        for n, (a, b) in enumerate(requests)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
