"""`xkv bench --suite extend`: steps that only extend a page table, beside builds of the same steps.

And beside the least: the fastest of a few kernels that do no more than such a step, and check nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...metadata.builder import MetadataBuilder
from ...platforms.specs import BackendSpec
from . import kernels, machine, timing

PAGES, QUICK_PAGES = (1, 16, 64, 128), (1, 64)
BATCHES, QUICK_BATCHES = (1, 16, 64, 256, 512), (1, 64, 256, 512)
CONTEXTS, QUICK_CONTEXTS = (2048, 32 << 10, 128 << 10, 1_000_000), (2048, 128 << 10)
_LEAST_ROWS, _LEAST_WARPS = (1, 4, 32), (1, 4)  # of the kernels that are tried
_BYTES = 24 << 30  # of all sources and tables of a point
_MOST_INPUTS = 24
_SPARE = 64  # tokens that a source has room for, beside those of the replays


class Point(NamedTuple):
    """So many requests of so many tokens each, in pages of a size."""

    batch: int
    context: int
    page: int

    def bytes(self, added: int = 0) -> int:
        """Of a source and a table with room for so many tokens more in each request."""
        width = self.context + added
        return self.batch * (width + -(-width // self.page)) * 4

    def __str__(self) -> str:
        return f"{self.batch} x {self.context}, page {self.page}"


class Inputs(NamedTuple):
    """A builder of its own for each call, whose table no other call has in a cache.

    Attributes:
        builder: it.
        table: its page table of this batch.
        rows: [batch] int64, rows of the source.
        lens: [batch] int64, in tokens; each replay adds one.
        newest: of the source's entries that an engine writes in all replays, a word of each 32 bytes.
        others: int32, what the least writes beside the table: records, lengths, sums of these and of queries.
    """

    builder: MetadataBuilder
    table: Tensor
    rows: Tensor
    lens: Tensor
    newest: Tensor
    others: tuple[Tensor, ...]


def drawn(point: Point, added: int, device: Any = "cuda") -> list[Inputs]:
    """Builders of one point, that built it, with room for so many tokens more in each request.

    And for as many again, as often as a host that is held up may replay a graph. These are not among the
    newest: reads of those would take half of an H200's L2, and steps were 7 % slower.
    """
    spec = BackendSpec(
        "bench", "table", (point.page,), point.page, ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q")
    )
    # whole pages of any size: else no row but the first begins at a multiple of 16 bytes, as an engine's do
    most = point.context + added * timing.MOST_REPLAYS + _SPARE
    width, found = -(-most // PAGES[-1]) * PAGES[-1], list[Inputs]()
    for _ in range(max(min(_MOST_INPUTS, _BYTES // point.bytes(most - point.context)), 2)):
        source = torch.arange(point.batch * width, dtype=torch.int32, device=device).view(point.batch, width)
        builder = MetadataBuilder(
            spec, source, max_batch_size=point.batch, max_context_len=width, page_size=point.page
        )
        rows = torch.randperm(point.batch, device=device)
        lens = point.context - torch.arange(point.batch, device=device) % point.page
        table = builder.build(rows, lens).page_table
        assert table is not None
        newest = source[:, point.context - point.page - 8 : point.context + added : 8]
        sizes = 4 * point.batch, point.batch, point.batch + 1, point.batch + 1
        others = tuple(torch.zeros(size, dtype=torch.int32, device=device) for size in sizes)
        found.append(Inputs(builder, table, rows, lens, newest, others))
    return found


def _least(point: Point, rows: int, warps: int, one: Inputs) -> None:
    """A step by the benchmark's own kernel, whose programs have so many rows and warps."""
    source, (record, *sums) = one.builder.req_to_token, one.others
    kernels.extension[(1 + -(-point.batch // rows),)](
        source, source.stride(0), one.rows, one.lens, record, one.table, one.table.stride(0), *sums,
        point.batch, PAGE=point.page, ROWS=rows, BATCH_BLOCK=1 << (point.batch - 1).bit_length(),
        num_warps=warps,
    )  # fmt: skip


def measured(point: Point, rounds: int) -> dict[str, Any]:
    """Microseconds of an extension, a build and the least, on the device and the host, and what is wrong."""
    shapes = [shape for shape in itertools.product(_LEAST_ROWS, _LEAST_WARPS) if shape[0] <= point.batch]
    least = {str(shape): functools.partial(_least, point, *shape) for shape in shapes}
    calls: dict[str, Callable[[Inputs], Any]] = {
        "extend": lambda one: one.builder.extend(one.rows, one.lens),
        "build": lambda one: one.builder.build(one.rows, one.lens),
    }
    # a replay of each call and of the add alone in each round, and one before the first
    inputs = drawn(point, (rounds + 1) * (len(calls) + len(least) + 2))
    every: list[Callable[[Inputs], Any]] = [*calls.values(), *least.values()]
    for one, call in itertools.product(inputs[:2], every):
        call(one)
        call(one)
    warm = [x for one in inputs for x in (one.rows, one.lens, one.newest)]
    device = timing.in_place(calls, _add_token, inputs, warm, rounds)
    bound = timing.in_place(least, _add_token, inputs, warm, rounds)
    host = timing.host_rounds(calls, inputs, rounds)
    wrong = [
        name for name, call in zip([*calls, *least], every, strict=True)
        if not all(_is_right(one, call) for one in inputs)
    ]  # fmt: skip
    return {
        "point": str(point), **point._asdict(), "wrong": wrong,
        "device_us": {name: statistics.median(device[name]) for name in calls}
        | {"least": min(map(statistics.median, bound.values()))},
        "host_us": {name: statistics.median(host[name]) for name in calls},
    }  # fmt: skip


def _add_token(one: Inputs) -> None:
    one.lens.add_(1)


def _is_right(one: Inputs, call: Callable[[Inputs], Any]) -> bool:
    """Whether a step leaves what a build would."""
    one.builder.build(one.rows, one.lens)
    one.lens.add_(1)
    call(one)
    kept = one.table.clone()
    one.builder.build(one.rows, one.lens)
    return torch.equal(kept, one.table)


def points(quick: bool) -> list[Point]:
    """What is timed; all that fits in memory twice."""
    pages, batches, contexts = (
        (QUICK_PAGES, QUICK_BATCHES, QUICK_CONTEXTS) if quick else (PAGES, BATCHES, CONTEXTS)
    )
    found = [Point(b, c, p) for p in pages for b in batches for c in contexts]
    return [point for point in found if 2 * point.bytes() <= _BYTES]


def run(rounds: int, quick: bool, out: Path | None) -> list[str]:
    """Measures and prints the table; returns what is wrong."""
    from tabulate import tabulate

    record = [measured(point, rounds) for point in points(quick)]
    rows = [
        [each["point"], *each["device_us"].values(), each["device_us"]["build"] / each["device_us"]["extend"],
         each["device_us"]["extend"] / each["device_us"]["least"], *each["host_us"].values()]
        for each in record
    ]  # fmt: skip
    print(machine.versions())
    head = [
        "requests x tokens", "extend us", "build us", "least us", "build/extend", "extend/least",
        "extend host", "build host",
    ]  # fmt: skip
    print(tabulate(rows, head, tablefmt="github", floatfmt=".2f"))
    if out is not None:
        out.write_text(json.dumps({"versions": machine.versions(), "points": record}, indent=1) + "\n")
    return [f"{each['point']}: {name}" for each in record for name in each["wrong"]]
