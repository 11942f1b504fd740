"""The host time of a launch on the GPU at hand, beside `kernel[grid](...)` of SGLang's page table kernel.

    PYTHONPATH=. python tests/support/host_times.py --peers FOLDER

FOLDER is as in `python -m xkv bench`, which measures the ops and the builds too, but over many workloads, and
no replay of a graph without xkv. Here all take turns in one run, on one workload: 256 requests of 4096 tokens
at page size 64. Each call is on a step's own rows and lengths, without a sync, as in `xkv bench`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from xkv import KVIndices, MetadataBuilder, build_kv_indices, build_page_table, build_slot_mapping
from xkv.cli.bench import machine, timing
from xkv.cli.bench.cases import KV_INDICES, Case
from xkv.cli.bench.inputs import Inputs, make_inputs, make_sources
from xkv.cli.bench.sglang import SGLang
from xkv.cli.bench.workloads import Workload
from xkv.launch import launch
from xkv.params import TABLE, Build, View

LOAD = Workload("256 x 4K in 128K", (4096,) * 256, 1 << 17)
CASE = Case("table", 64)
GRID, ADD, BARE, REPLAY = "kernel[grid]", "torch add_", "graph replay", "CapturedBuild.replay"
DRIVER = "driver's launcher"  # what no op or build can be below: a ready call, launched again
BACKENDS = ("flashmla", "flash_attention", "flashinfer_mla")


def calls(at: Inputs, sglang: SGLang) -> dict[str, Callable[[int], object]]:
    """By name, what makes the call of step n."""
    steps, source, size = at.steps, at.source, at.page_size
    out, x = at.ints(at.batch, at.width), at.ints(256)
    csr = KVIndices(at.ints(at.batch + 1), at.ints(at.batch * at.width), at.ints(at.batch))
    queries = torch.ones(at.batch, dtype=torch.int64, device=source.device)
    slots = queries.clone()
    kernel = sglang.page_table(at, out)
    builders = {
        name: MetadataBuilder(
            name, source, max_batch_size=at.batch, max_context_len=at.capacity, page_size=size
        )
        for name in BACKENDS
    }
    build = builders[BACKENDS[0]].build
    captured = [
        builders[BACKENDS[0]].capture(at.batch, req_pool_indices=step.rows, seq_lens=step.lens)
        for step in steps
    ]
    graphs = [timing.capture(lambda step: build(step.rows, step.lens), [step]) for step in steps]
    pages = View(out)
    first = Build(source, steps[0].rows, steps[0].lens, TABLE, size, 1, size, (pages,))
    compiled = launch.prepare(first)
    found: dict[str, Callable[[int], object]] = {
        GRID: lambda n: kernel(steps[n].rows, steps[n].lens),
        ADD: lambda n: x.add_(1),
        DRIVER: lambda n: compiled.launch(compiled.call),
        "build_page_table": lambda n: build_page_table(
            source, steps[n].rows, steps[n].lens, page_size=size, out=out
        ),
        "build_kv_indices": lambda n: build_kv_indices(
            source, steps[n].rows, steps[n].lens, page_size=size, out=csr
        ),
        "build_slot_mapping": lambda n: build_slot_mapping(
            source, steps[n].rows, steps[n].lens, queries, out=slots
        ),
    }
    for name, builder in builders.items():
        found[f"build, {name}"] = lambda n, builder=builder: builder.build(steps[n].rows, steps[n].lens)  # type: ignore[misc]
    return found | {REPLAY: lambda n: captured[n].replay(), BARE: lambda n: graphs[n].replay()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", metavar="DIR", type=Path, action="append", default=[], required=True)
    parser.add_argument("--rounds", type=int, default=200, help="of 100 calls each")
    args = parser.parse_args()
    sglang = SGLang(args.peers)
    if not sglang.has(KV_INDICES):
        print(f"no {KV_INDICES} in {', '.join(map(str, args.peers))}", file=sys.stderr)
        return 2
    at = make_inputs(CASE, LOAD, make_sources([LOAD], "cuda")[LOAD.capacity])
    made = calls(at, sglang)
    for call in made.values():  # compiles, then makes what later calls of the same sizes repeat
        for n in range(len(at.steps)):
            call(n)
    us = timing.host_rounds(made, range(len(at.steps)), args.rounds)
    median = {name: statistics.median(rounds) for name, rounds in us.items()}
    least = {name: min(rounds) for name, rounds in us.items()}
    rows = [
        (name, median[name], median[name] / median[GRID], least[name], least[name] / least[GRID])
        for name in made
    ]
    headers = ("host", "us, median", f"of {GRID}", "us, least", f"of {GRID}")
    print(*(f"{name} {what}" for name, what in machine.versions().items()), sep=", ")
    print(tabulate(rows, headers, "simple", floatfmt=".2f"))
    for what, found in (("median", median), ("least", least)):
        print(f"{REPLAY} less {BARE}, {what}: {found[REPLAY] - found[BARE]:+.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
