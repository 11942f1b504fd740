"""From a checked `Build` to one launch; the only room that knows Triton's launcher."""

from __future__ import annotations

import functools
from typing import Any

from xkv import tuning
from xkv.build import Build
from xkv.platforms import Platform, platform


def run(build: Build) -> None:
    """Builds what ``build`` says: one launch on a GPU, the reference on a CPU.

    Under TRITON_INTERPRET=1 CPU tensors go through the kernel too. Does not sync on a GPU, allocates
    nothing there, and is safe in a graph.
    """
    device = build.req_to_token.device
    if device.type == "cpu" and not interpreted():
        from xkv import reference

        reference.run(build)
        return
    where = platform(device)
    kind = tuning.kind_of(build.page_size, build.source_page_size)
    row = tuning.lookup(where, kind, build.batch)
    if device.type == "cpu":
        launch(build, row, where)
        return
    import torch

    with torch.cuda.device(device):
        launch(build, row, where)


def launch(build: Build, row: tuning.Tuning, where: Platform) -> None:
    """Launches the kernel on the current device with this tuning row."""
    kernel, config_of = _kernel()
    grid, direct, balance = schedule(build, row, where)
    config = config_of(
        build.page_size, build.source_page_size, build.map_page_size, build.form,
        build.tail_fill is not None, row.num_page_per_block, row.batch_block, direct, balance,
    )  # fmt: skip
    kernel[grid](*build.arguments(), config, num_warps=row.num_warps)


def schedule(
    build: Build, row: tuning.Tuning, where: Platform
) -> tuple[tuple[int, int, int], bool, bool]:
    """How the work is dealt out, from what the host knows without a sync.

    Returns:
        The grid (programs, direct blocks a row, views); whether the first blocks of every row are
        written directly; and whether rows may have more, which is balanced over the programs.
    """
    batch = max(build.batch, 1)
    row_blocks = max(-(-build.row_items // row.num_page_per_block), 1)
    most = min(where.compute_units * row.programs_per_cu, batch * row_blocks)
    if not row.direct:
        return (most, 1, len(build.views)), False, True
    direct = min(max(most // batch, 1), row_blocks)
    return (min(batch, most), direct, len(build.views)), True, row_blocks > direct


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 made the kernel run on the CPU."""
    import os

    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def _kernel() -> tuple[Any, Any]:
    from xkv.kernel import Config, xkv_build

    return xkv_build, Config
