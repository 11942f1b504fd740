"""Compiles a sweep's kernels beforehand, in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Sequence

import torch
from torch import Tensor

from ...launch import launch
from ...launch.grid import make_schedule
from ...params import RECORD_WORDS, SLOTS
from ...platforms import detect
from ...platforms.tuning import Tuning
from ..bench.inputs import POOL, Inputs, Step
from .points import Point, build_of, source_of


def precompile(work: Sequence[tuple[Sequence[Tuning], Sequence[Point]]], jobs: int) -> None:
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


def _compile_share(work: Sequence[tuple[Sequence[Tuning], Sequence[Point]]], number: int, jobs: int) -> None:
    where, seen = detect.platform(), set()
    pairs = itertools.chain.from_iterable(itertools.product(those, rows) for rows, those in work)
    for point, row in pairs:
        load = point.load
        source = torch.empty((1, load.capacity), dtype=torch.int32, device="cuda")
        index = torch.zeros((1, load.batch), dtype=torch.int64, device="cuda")
        step = Step(index[0], index[0], torch.zeros(load.batch, dtype=torch.int64), 0)
        at = Inputs(point.case, source, load.capacity, index, index, [step])
        fields = {name: at.ints(1) for name in ("kv_indptr", "kv_last_page_len")}
        fields["page_table"] = at.ints(1, at.width).expand(load.batch, at.width)
        fields["kv_indices"] = at.ints(1).expand(load.batch * at.width)
        fields |= _of_kind(at, point)
        build = build_of(at, point, source_of(at, point), fields, step)
        plan = make_schedule(build, row, where)
        blocks = plan.num_page_per_block, row.batch_block
        key = (
            *blocks,
            row.num_warps,
            row.pdl_on_streams,
            plan.balance,
            plan.int64_tiles,
            *point[1:],
        )
        if key not in seen:
            seen.add(key)
            if len(seen) % jobs == number:
                launch.CompiledLaunch(build, row, where)


def _of_kind(at: Inputs, point: Point) -> dict[str, Tensor]:
    """The buffers that a kind of launch has beside: as large, in no memory."""
    if point.kind == "map":
        return {"page_map": at.ints(1).expand(POOL // point.size)}
    if point.kind == "extension":
        return {"record": at.ints(1, RECORD_WORDS).expand(1 + at.batch, RECORD_WORDS)}
    if point.form == SLOTS:
        count = at.batch * point.queries
        long = at.ints(1, dtype=torch.int64).expand(count)
        return {"slots": long, "positions": long, "starts": at.ints(1).expand(at.batch + 1)}
    return {}
