"""What slots and further groups add to a step's one launch, on the GPU at hand.

    PYTHONPATH=. python tests/support/group_times.py [FILE.json]

Every step decodes one token a request. The table, lengths and prefix sums alone are one build of
`MetadataBuilder`; beside it are the same with slots, and a `MetadataGroup` of two such builders with slots,
as a hybrid model has them. Device times are in place, as in `xkv bench`; host times are without a sync.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

import xkv
from xkv.cli.bench import machine, timing
from xkv.cli.bench.cases import Case
from xkv.cli.bench.inputs import Inputs, make_inputs, make_sources
from xkv.cli.bench.predecessor import PREDECESSORS
from xkv.cli.bench.workloads import Workload

ROUNDS = 41
K = 1 << 10
LOADS = (
    Workload("1 x 64K in 128K", (64 * K,), 128 * K),
    Workload("64 x 16K in 128K", (16 * K,) * 64, 128 * K),
    Workload("256 x ~4K in 128K", (4 * K,) * 256, 128 * K, spread=True),
)


class Shape(NamedTuple):
    """How an engine holds its KV cache: the backend, tokens of an id of its table and of a page."""

    backend: str
    source_page_size: int
    page_size: int


SHAPES = (
    Shape("flash_attention", 16, 16), Shape("flash_attention", 1, 64), Shape("flashinfer_mla", 1, 64)
)  # fmt: skip


def calls(shape: Shape, at: Inputs) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """By name, what builds a step."""
    first = at.source
    if shape.source_page_size > 1:
        first = first[:, : at.capacity // shape.source_page_size].contiguous()
    second = first.flip(0).contiguous()
    sizes = {
        "max_batch_size": at.batch, "max_context_len": at.capacity, "page_size": shape.page_size,
        "source_page_size": shape.source_page_size,
    }  # fmt: skip
    slots = xkv.SlotMapping(max(at.batch, 16))
    starts = at.query_starts()
    positions = {id(step): step.lens - 1 for step in at.steps}

    def builder(source: torch.Tensor, **more: Any) -> xkv.MetadataBuilder:
        return xkv.MetadataBuilder(shape.backend, source, **sizes, **more)  # type: ignore[arg-type]

    alone, both = builder(first), builder(first, slot_mapping=slots)
    group = xkv.MetadataGroup([builder(x, slot_mapping=slots) for x in (first, second)])
    tables = xkv.MetadataGroup([builder(x) for x in (first, second)])
    single = xkv.MetadataGroup([builder(first)])
    yield "table", lambda step: alone.build(step.rows, step.lens)
    yield "the same as a group", lambda step: single.build(step.rows, step.lens)
    yield "with slots", lambda step: both.build(step.rows, step.lens)
    yield "two tables", lambda step: tables.build(step.rows, step.lens)
    yield "two groups with slots", lambda step: group.build(step.rows, step.lens)
    yield (
        "the same at positions",
        lambda step: group.build(step.rows, step.lens, positions=positions[id(step)], query_start_loc=starts),
    )


def _before(step: Any) -> None:
    PREDECESSORS["add"](step.lens)


def main() -> int:
    sources, rows, record = make_sources(LOADS, "cuda"), [], []
    for shape in SHAPES:
        for load in LOADS:
            at = make_inputs(Case("table", shape.page_size), load, sources[load.capacity])
            made = dict(calls(shape, at))
            for call in made.values():
                call(at.steps[0])
            warm = [at.index, at.lens]
            device = timing.in_place(made, _before, at.launches, warm, ROUNDS)
            host = timing.host_rounds(made, at.steps, ROUNDS)
            base = 0.0
            for name in made:
                us, host_us = statistics.median(device[name]), statistics.median(host[name])
                base = us if name == "table" else base
                point = f"{shape.backend}, page {shape.page_size} of {shape.source_page_size}"
                rows.append([point, load.name, name, us, us / base, host_us])
                record.append({"shape": shape, "load": load.name, "what": name, "us": us, "host_us": host_us})
    print(machine.versions())
    headers = ["backend", "workload", "what", "device us", "of the table", "host us"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
