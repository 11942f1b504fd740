"""How one launch's work is dealt out over programs, from what the host knows without a sync."""

from __future__ import annotations

from typing import NamedTuple

from xkv.build import INT32_MAX, Build
from xkv.platforms import Platform
from xkv.tuning import Tuning

GRID_Y_MAX = 65_535  # of CUDA and HIP


class Schedule(NamedTuple):
    """The grid, and what of a row its own programs write.

    Attributes:
        grid: rows and perhaps one for the sums, programs a row, views.
        block: items of a block, NUM_PAGE_PER_BLOCK.
        direct: blocks of a row, at most, that its own programs write.
        balance: whether rows may have more blocks, which are then dealt out over all programs.
        wide: whether counting those takes int64.
    """

    grid: tuple[int, int, int]
    block: int
    direct: int
    balance: bool
    wide: bool


def schedule(build: Build, row: Tuning, where: Platform, batch: int | None = None) -> Schedule:
    """Deals the work of a build out by a tuning row: the grid grows with the batch, not the capacity.

    Args:
        build: the build.
        row: the tuning row.
        where: the device.
        batch: requests; None: the build's.
    """
    batch = max(build.batch if batch is None else batch, 1)
    # a row of programs more than requests: they have no blocks of their own and write the sums
    rows = batch + build.writes_sums

    def share(per_cu: int, block: int) -> tuple[int, int]:
        """Programs a row, and the blocks of the longest."""
        blocks = max(-(-build.row_items // block), 1)
        return min(max(where.compute_units * per_cu // rows, 1), blocks, GRID_Y_MAX), blocks

    block = row.num_page_per_block
    programs, blocks = share(row.programs_per_cu, block)
    direct = blocks
    balance = blocks > programs * row.blocks_per_program
    if balance:
        block = row.balanced_block
        programs, blocks = share(row.balanced_per_cu, block)
        direct = programs * row.balanced_blocks
    wide = batch * blocks + rows * programs > INT32_MAX
    return Schedule((rows, programs, len(build.views)), block, direct, balance, wide and balance)


def reschedule(plan: Schedule, row: Tuning, balance: bool) -> Schedule:
    """The same with or without balance, as another width would have it: for what is compiled alone."""
    block = row.balanced_block if balance else row.num_page_per_block
    return plan._replace(block=block, balance=balance, wide=plan.wide and balance)
