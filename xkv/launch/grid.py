"""The grid of a launch, and how its work is divided among programs, from what the host knows."""

from __future__ import annotations

from typing import NamedTuple

from ..params import INT32_MAX, Build
from ..platforms.detect import Platform
from ..platforms.tuning import Tuning
from . import memory

GRID_Y_MAX = 65_535  # of CUDA and HIP


class Schedule(NamedTuple):
    """The grid, and the tiles of a row that its own programs write.

    Attributes:
        grid: rows, one more if there are prefix sums to write, and those whose programs write leftover tiles;
            programs per row; views.
        num_page_per_block: items per tile, NUM_PAGE_PER_BLOCK.
        own_tiles: tiles of a row, at most, that its own programs write.
        balance: whether rows may have more tiles than that, leftover tiles: the programs past the batch
            divide them.
        int64_tiles: whether the number of those tiles may exceed int32.
    """

    grid: tuple[int, int, int]
    num_page_per_block: int
    own_tiles: int
    balance: bool
    int64_tiles: bool


def make_schedule(build: Build, tuning: Tuning, target: Platform, batch: int | None = None) -> Schedule:
    """Returns the schedule of a build. The grid grows with the batch, not with the capacity.

    Args:
        build: the build.
        tuning: the tuning row.
        target: the device.
        batch: requests. None: the build's.
    """
    batch = build.batch if batch is None else batch
    host_inputs = memory.inputs_on_host(build)
    return schedule_sizes(
        batch, build.row_items, build.writes_sums, len(build.views), tuning, target, host_inputs
    )


def schedule_sizes(
    batch: int, row_items: int, writes_sums: bool, num_views: int, tuning: Tuning, target: Platform,
    host_inputs: bool = False,
) -> Schedule:  # fmt: skip
    """Returns the schedule for these sizes.

    Args:
        batch: requests.
        row_items: upper bound of the entries in one row.
        writes_sums: whether lengths, prefix sums or the status word are written.
        num_views: outputs.
        tuning: the tuning row.
        target: the device.
        host_inputs: whether inputs are in host memory. Each program that reads them pays for it, so that a
            row's own programs write all of it, and there are no more programs than fill the device once.
    """
    batch = max(batch, 1)
    # the programs of one more row have no tiles of their own and write the sums
    rows = batch + writes_sums
    num_page, units = tuning.num_page_per_block, target.compute_units
    tiles = max(-(-row_items // num_page), 1)
    programs = min(max(units * tuning.programs_per_cu // rows, 1), tiles, GRID_Y_MAX)
    leftover_rows = 0
    if host_inputs:
        programs = min(max(units // rows, 1), programs)
    own_tiles = tiles
    balance = tiles > programs * tuning.tiles_per_program and not host_inputs
    if balance:
        num_page = tuning.balanced_num_page_per_block
        tiles = max(-(-row_items // num_page), 1)
        programs = min(max(units * tuning.balanced_per_cu // rows, 1), tiles, GRID_Y_MAX)
        own_tiles = programs * tuning.balanced_own_tiles
        leftover_rows = -(-units * tuning.leftover_per_cu // programs)
    int64_tiles = balance and batch * tiles + leftover_rows * programs > INT32_MAX
    return Schedule((rows + leftover_rows, programs, num_views), num_page, own_tiles, balance, int64_tiles)


def with_balance(schedule: Schedule, tuning: Tuning, balance: bool) -> Schedule:
    """Returns the schedule that another width may have, with or without balance; for compiling alone."""
    num_page = tuning.balanced_num_page_per_block if balance else tuning.num_page_per_block
    int64_tiles = schedule.int64_tiles and balance
    return schedule._replace(num_page_per_block=num_page, balance=balance, int64_tiles=int64_tiles)
