"""How one launch's work is dealt out over programs, from what the host knows without a sync."""

from __future__ import annotations

from typing import NamedTuple

from ..params import INT32_MAX, Build
from ..platforms.detect import Platform
from ..platforms.tuning import Tuning
from . import memory

GRID_Y_MAX = 65_535  # of CUDA and HIP


class Schedule(NamedTuple):
    """The grid, and what of a row its own programs write.

    Attributes:
        grid: rows and perhaps one for the sums, programs a row, views.
        block: items of a tile, NUM_PAGE_PER_BLOCK.
        own_tiles: tiles of a row, at most, that its own programs write.
        balance: whether rows may have more tiles: a second phase then deals them out over all programs.
        int64_tiles: whether counting those takes int64.
    """

    grid: tuple[int, int, int]
    block: int
    own_tiles: int
    balance: bool
    int64_tiles: bool


def schedule(build: Build, row: Tuning, where: Platform, batch: int | None = None) -> Schedule:
    """Deals the work of a build out by a tuning row: the grid grows with the batch, not the capacity.

    Args:
        build: the build.
        row: the tuning row.
        where: the device.
        batch: requests; None: the build's.
    """
    batch = build.batch if batch is None else batch
    host_inputs = memory.inputs_on_host(build)
    return deal(batch, build.row_items, build.writes_sums, len(build.views), row, where, host_inputs)


def deal(
    batch: int,
    row_items: int,
    sums: bool,
    views: int,
    row: Tuning,
    where: Platform,
    host_inputs: bool = False,
) -> Schedule:
    """The same from the numbers that decide it.

    Args:
        batch: requests.
        row_items: upper bound of the entries in one row.
        sums: whether lengths, prefix sums or the status word are written.
        views: outputs.
        row: the tuning row.
        where: the device.
        host_inputs: whether inputs lie in host memory. Every program that reads them pays for it, so that a
            row's own programs write all of it, and there are no more of them than fill the device once.
    """
    batch = max(batch, 1)
    # a row of programs more than requests: they have no blocks of their own and write the sums
    rows = batch + sums
    block, units = row.num_page_per_block, where.compute_units
    blocks = max(-(-row_items // block), 1)
    programs = min(max(units * row.programs_per_cu // rows, 1), blocks, GRID_Y_MAX)
    if host_inputs:
        programs = min(max(units // rows, 1), programs)
    own_tiles = blocks
    balance = blocks > programs * row.blocks_per_program and not host_inputs
    if balance:
        block = row.balanced_block
        blocks = max(-(-row_items // block), 1)
        programs = min(max(units * row.balanced_per_cu // rows, 1), blocks, GRID_Y_MAX)
        own_tiles = programs * row.balanced_blocks
    int64_tiles = balance and batch * blocks + rows * programs > INT32_MAX
    return Schedule((rows, programs, views), block, own_tiles, balance, int64_tiles)


def reschedule(plan: Schedule, row: Tuning, balance: bool) -> Schedule:
    """The same with or without balance, as another width would have it: for what is compiled alone."""
    block = row.balanced_block if balance else row.num_page_per_block
    return plan._replace(block=block, balance=balance, int64_tiles=plan.int64_tiles and balance)
