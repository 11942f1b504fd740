"""`xkv bench --suite extend`: steps that only extend a page table, beside builds of the same steps."""

from __future__ import annotations

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
from . import timing

PAGES, QUICK_PAGES = (1, 16, 64, 128), (1, 64)
BATCHES, QUICK_BATCHES = (1, 16, 64, 256, 512), (1, 256)
CONTEXTS, QUICK_CONTEXTS = (2048, 32 << 10, 128 << 10, 1_000_000), (2048, 128 << 10)
_ROOM = 1024  # tokens: each replay adds one
_BYTES = 24 << 30  # of all sources and tables of a point
_MOST_INPUTS = 24


class Point(NamedTuple):
    """So many requests of so many tokens each, in pages of a size."""

    batch: int
    context: int
    page: int

    @property
    def bytes(self) -> int:
        """Of a source and a table."""
        width = self.context + _ROOM
        return self.batch * (width + -(-width // self.page)) * 4

    def __str__(self) -> str:
        return f"{self.batch} x {self.context}, page {self.page}"


class Inputs(NamedTuple):
    """A builder of its own for each call, whose table no other call has in a cache."""

    builder: MetadataBuilder
    rows: Tensor
    lens: Tensor
    newest: Tensor


def drawn(point: Point, device: Any = "cuda") -> list[Inputs]:
    """Builders of one point, that built it."""
    spec = BackendSpec(
        "bench", "table", (point.page,), point.page, ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q")
    )
    width, found = point.context + _ROOM, list[Inputs]()
    for _ in range(max(min(_MOST_INPUTS, _BYTES // point.bytes), 2)):
        source = torch.arange(point.batch * width, dtype=torch.int32, device=device).view(point.batch, width)
        builder = MetadataBuilder(
            spec, source, max_batch_size=point.batch, max_context_len=width, page_size=point.page
        )
        rows = torch.randperm(point.batch, device=device)
        lens = point.context - torch.arange(point.batch, device=device) % point.page
        builder.build(rows, lens)
        # of the entries that an engine has just written, a word of each 32 bytes
        newest = source[:, point.context - point.page - 8 : point.context + 64 : 8]
        found.append(Inputs(builder, rows, lens, newest))
    return found


def measured(point: Point, rounds: int) -> dict[str, Any]:
    """Microseconds of an extension and of a build, on the device and the host, and whether one is wrong."""
    inputs = drawn(point)
    calls: dict[str, Callable[[Inputs], Any]] = {
        "extend": lambda one: one.builder.extend(one.rows, one.lens),
        "build": lambda one: one.builder.build(one.rows, one.lens),
    }
    for one, call in itertools.product(inputs[:2], calls.values()):
        call(one)
        call(one)
    warm = [x for one in inputs for x in (one.rows, one.lens, one.newest)]
    device = timing.in_place(calls, lambda one: one.lens.add_(1), inputs, warm, rounds)
    host = timing.host_rounds(calls, inputs, rounds)
    return {
        "point": str(point), **point._asdict(), "wrong": not all(map(_is_right, inputs)),
        "device_us": {name: statistics.median(device[name]) for name in calls},
        "host_us": {name: statistics.median(host[name]) for name in calls},
    }  # fmt: skip


def _is_right(one: Inputs) -> bool:
    """Whether the last of many extensions left what a build would."""
    one.lens.add_(1)
    table = one.builder.extend(one.rows, one.lens).page_table
    assert table is not None
    kept = table.clone()
    one.builder.build(one.rows, one.lens)
    return torch.equal(kept, table)


def points(quick: bool) -> list[Point]:
    """What is timed; all that fits in memory twice."""
    pages, batches, contexts = (
        (QUICK_PAGES, QUICK_BATCHES, QUICK_CONTEXTS) if quick else (PAGES, BATCHES, CONTEXTS)
    )
    found = [Point(b, c, p) for p in pages for b in batches for c in contexts]
    return [point for point in found if 2 * point.bytes <= _BYTES]


def run(rounds: int, quick: bool, out: Path | None) -> list[str]:
    """Measures and prints the table; returns what is wrong."""
    from tabulate import tabulate

    record = [measured(point, rounds) for point in points(quick)]
    rows = [
        [each["point"], *each["device_us"].values(), each["device_us"]["build"] / each["device_us"]["extend"],
         *each["host_us"].values()]
        for each in record
    ]  # fmt: skip
    print(timing.versions())
    head = ["requests x tokens", "extend us", "build us", "build/extend", "extend host", "build host"]
    print(tabulate(rows, head, tablefmt="github", floatfmt=".2f"))
    if out is not None:
        out.write_text(json.dumps({"versions": timing.versions(), "points": record}, indent=1) + "\n")
    return [each["point"] for each in record if each["wrong"]]
