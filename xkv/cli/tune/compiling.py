"""Compiles a sweep's kernels beforehand, in processes of their own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...launch.grid import make_schedule
from ...params import RECORD_WORDS, SLOTS
from ...platforms import detect
from ...platforms.detect import Platform
from ...platforms.tuning import ChosenTuning
from ..bench.inputs import POOL, Inputs, Step
from . import chosen, sweep
from .chosen import ChosenPoint
from .points import Point, build_of, source_of
from .rows import Row, swept

Work = Sequence[tuple[Sequence[Row], Sequence[Point | ChosenPoint]]]


def precompile(work: Work, jobs: int) -> None:
    """Fills Triton's cache on disk in processes of their own: compiling is most of a sweep's time.

    Args:
        work: tuning rows, and what they will be timed on.
        jobs: processes; 0: nothing is done.
    """
    context = multiprocessing.get_context("spawn")  # a forked process has no CUDA
    processes = [context.Process(target=_compile_share, args=(work, n, jobs)) for n in range(jobs)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    if failed := [each.exitcode for each in processes if each.exitcode]:
        print(f"tune: of {jobs} processes that compile {len(failed)} failed: {failed}", file=sys.stderr)


def _compile_share(work: Work, number: int, jobs: int) -> None:
    where, seen = detect.platform(), set()
    for rows, those in work:
        for point in those:
            build = build_for(point)
            for row in rows:
                key = _key(point, build, row, where)
                if key not in seen:
                    seen.add(key)
                    if len(seen) % jobs == number:
                        sweep.launched(build, row, where)


def _key(point: Point | ChosenPoint, build: Any, row: Row, where: Platform) -> tuple[Any, ...]:
    """What decides which kernel is compiled."""
    if isinstance(row, ChosenTuning):
        return (*point[1:], *(getattr(row, name) for name in swept(row)))
    plan = make_schedule(build, row, where)
    extends = row.tiles_per_program if build.extends else 0
    return (
        *point[1:], plan.num_page_per_block, row.batch_block, row.num_warps, row.pdl_on_streams, plan.balance,
        plan.int64_tiles, extends,
    )  # fmt: skip


def build_for(point: Point | ChosenPoint, device: str = "cuda") -> Any:
    """A launch of the point, of tensors in next to no memory: "meta" for one that is only compiled."""
    if isinstance(point, ChosenPoint):  # the number of query tokens does not matter
        return chosen.prepare(point._replace(tokens=1), device).builds[0]
    load = point.load
    source = torch.empty((1, load.capacity), dtype=torch.int32, device=device)
    index = torch.zeros((1, load.batch), dtype=torch.int64, device=device)
    step = Step(index[0], index[0], torch.zeros(load.batch, dtype=torch.int64), 0)
    at = Inputs(point.case, source, load.capacity, index, index, [step])
    fields = {name: at.ints(1) for name in ("kv_indptr", "kv_last_page_len")}
    fields["page_table"] = at.ints(1, at.width).expand(load.batch, at.width)
    fields["kv_indices"] = at.ints(1).expand(load.batch * at.width)
    fields |= _of_kind(at, point)
    return build_of(at, point, source_of(at, point), fields, step)


def _of_kind(at: Inputs, point: Point) -> dict[str, Tensor]:
    """The buffers that a kind of launch has beside: as large, in no memory."""
    if point.kind == "map":
        return {"page_map": at.ints(1).expand(POOL // point.size)}
    if point.kind == "extension":
        lens, sums = at.ints(1).expand(at.batch), at.ints(1).expand(at.batch + 1)
        record = at.ints(1, RECORD_WORDS).expand(1 + at.batch, RECORD_WORDS)
        return {"record": record, "cache_seqlens": lens, "cu_seqlens_k": sums}
    if point.form == SLOTS:
        count = at.batch * point.queries
        long = at.ints(1, dtype=torch.int64).expand(count)
        return {"slots": long, "positions": long, "starts": at.ints(1).expand(at.batch + 1)}
    return {}
