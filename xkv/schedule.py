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
        direct: blocks of a row, at most, that its own programs write.
        balance: whether rows may have more blocks, which are then dealt out over all programs.
        wide: whether counting those takes int64.
    """

    grid: tuple[int, int, int]
    direct: int
    balance: bool
    wide: bool


def schedule(build: Build, row: Tuning, where: Platform) -> Schedule:
    """Deals the work of a build out by a tuning row: the grid grows with the batch, not the capacity."""
    batch = max(build.batch, 1)
    row_blocks = max(-(-build.row_items // row.num_page_per_block), 1)
    # a row of programs more than requests: they have no blocks of their own and write the sums
    rows = batch + build.writes_sums

    def share(per_cu: int) -> int:
        return min(max(where.compute_units * per_cu // rows, 1), row_blocks, GRID_Y_MAX)

    programs = share(row.programs_per_cu)
    balance = row_blocks > programs * row.blocks_per_program
    if balance:
        programs = share(row.balanced_per_cu)
    direct = programs if balance else row_blocks
    wide = batch * row_blocks + rows * programs > INT32_MAX
    return Schedule((rows, programs, len(build.views)), direct, balance, wide and balance)
