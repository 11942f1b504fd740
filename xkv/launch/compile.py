"""Which kernel a build needs, compiled by Triton's `JITFunction` and loaded, once.

Nothing is launched here, so that all that serving can need is compiled before it begins.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from .. import dispatch, switches
from ..params import INT32_MAX, MAX_BATCH, TABLE, Build
from ..platforms import tuning
from ..platforms.detect import Platform, platform
from .grid import Schedule, reschedule, schedule
from .triton_launcher import LOADING, Call, record

_compiled: dict[tuple[Any, ...], Call | None] = {}


def compiled(device: int, config_: Any, options_: dict[str, Any], tensors: list[Any]) -> Call | None:
    """Compiles and loads a kernel, once, launching nothing; returns how to launch it cheaply."""
    key = (device, config_, *options_.values(), *map(_kind, tensors))
    if key not in _compiled:
        with LOADING, torch.cuda.device(device):
            if key not in _compiled:
                kernel = xkv_kernel().warmup(*tensors, config_, grid=(1,), **options_)
                _compiled[key] = record(kernel, len(tensors) + 1)
    return _compiled[key]


def warm(build: Build, max_batch: int | None) -> int:
    """Compiles and loads what builds like this can need, whatever their lengths.

    Launches nothing. Does nothing on a CPU.

    Args:
        build: one of them.
        max_batch: requests: at batches up to it, and the width at hand; None: at any batch and width.

    Returns:
        How many kernels were not there before.
    """
    before = len(_compiled)
    device = build.req_to_token.get_device()
    if device >= 0:
        where = platform(build.req_to_token.device)
        for row, plan in _ways(build, where, max_batch):
            fields = config(build, row, plan, where)
            compiled(device, fields, options(row, where), arguments(build, plan))
    return len(_compiled) - before


def _ways(build: Build, where: Platform, max_batch: int | None) -> Iterator[tuple[tuning.Tuning, Schedule]]:
    """The rows and schedules that builds like this can come to."""
    kind, least = build.kind, 1
    for row in dispatch.rows_of(where)[1]:
        if row.kind != kind:
            continue
        most = min(row.max_batch or MAX_BATCH, max_batch or MAX_BATCH)
        if least > most:
            return
        # what a batch decides changes once at most from the least to the most
        for batch in (least, most):
            plan = schedule(build, row, where, batch)
            yield row, plan
            # without balance also where inputs lie in host memory
            for balance in (False, True) if max_batch is None else (False,):
                yield row, reschedule(plan, row, balance)
        least = most + 1


def _kind(x: Any) -> Any:
    """What a compiled kernel depends on of an argument."""
    if x is None:
        return None
    return x > INT32_MAX if type(x) is int else x.dtype


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 made the kernel run on the CPU."""
    return switches.on("TRITON_INTERPRET")


@functools.cache
def xkv_kernel() -> Any:
    """The kernel; imported late, since importing Triton takes a second."""
    from ..kernel.entry import xkv_build

    return xkv_build


def config(build: Build, row: tuning.Tuning, plan: Schedule, where: Platform) -> Any:
    """The kernel's `Config`, one object for equal fields."""
    return _config(
        build.page_size, build.source_page_size, build.map_page_size, build.form,
        build.pad_value is not None, plan.block, row.batch_block, plan.balance, plan.int64_tiles,
        overlaps(where), overlaps(where) and row.early, where.vendor == "hip", build.sums_given,
        vec_16b(build, where),
        # each only where it makes a difference, so that other builds share a kernel
        build.window_is_prefix_only and any(view.window is not None for view in build.views),
        build.starts_are_aligned and any(view.kv_start is not None for view in build.views),
    )  # fmt: skip


def vec_16b(build: Build, where: Platform) -> bool:
    """Whether each lane loads and stores 16 bytes of contiguous entries, where the tile allows it.

    Not on NVIDIA with a status word: the check of each entry then needs a layout conversion through shared
    memory for every tile (256 x 4K tokens, CSR, on an H100: 10.0 us instead of 7.6). Nor in CSR there, whose
    rows begin at any entry: an unaligned vector takes four accesses (256 x ~4K: 7.9 us instead of 6.7).
    """
    side_by_side = build.page_size == build.source_page_size
    return side_by_side and (where.vendor != "cuda" or (build.form == TABLE and build.status is None))


def options(row: tuning.Tuning, where: Platform) -> dict[str, Any]:
    """Triton's launch options."""
    # AMD's back end has no such option
    return {"num_warps": row.num_warps} | ({"launch_pdl": True} if overlaps(where) else {})


def overlaps(where: Platform) -> bool:
    """Whether launches there overlap the end of the kernel before them; none does in the interpreter."""
    return where.overlap and not interpreted()


@functools.cache
def _config(*fields: Any) -> Any:
    from ..kernel.entry import Config

    return Config(*fields)


def arguments(build: Build, plan: Schedule) -> list[Any]:
    """The kernel's arguments in its order, all but the constexpr."""
    values = build.arguments()
    values["own_tiles"] = plan.own_tiles
    return [values[name] for name in xkv_kernel().arg_names[:-1]]


@functools.cache
def positions() -> dict[str, int]:
    """Where each of the kernel's arguments stands, counted from `CompiledLaunch.first`."""
    return {name: n for n, name in enumerate(xkv_kernel().arg_names)}
