"""The grid of a launch, and how its work is divided among programs, from what the host knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from .. import dispatch
from ..params import INT32_MAX, NO_IDS, Build
from ..platforms.detect import Platform
from ..platforms.tuning import AccessPattern, Tuning
from . import memory

GRID_Y_MAX = 65_535  # of CUDA and HIP
_ENTRIES_PER_LANE = 8  # of a tile in a group, at most
_OWN_TILES = 2  # in a group, of one outside
_BRANCH_PROGRAMS = 3  # likewise, of the branches of draft trees, which read the same entries, from L2
_SUM_PROGRAMS = 8  # that a launch without ids has for what is written beside the lengths


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
        sums_in_column: whether the last program of each row has no tiles and writes the sums, and there is no
            row of programs for them.
    """

    grid: tuple[int, int, int]
    num_page_per_block: int
    own_tiles: int
    balance: bool
    int64_tiles: bool
    sums_in_column: bool = False


class PartSchedule(NamedTuple):
    """How the work of one part of a group is divided, whatever the batch.

    Attributes:
        tuning: its tuning row.
        num_page_per_block: items per tile.
        balance: whether rows may have leftover tiles.
        int64_tiles: whether the number of those may exceed int32.
        tiles: of the longest row, or of all query tokens.
        sums_in_column: never, as the grid is that of several parts.
    """

    tuning: Tuning
    num_page_per_block: int
    balance: bool
    int64_tiles: bool
    tiles: int
    sums_in_column: bool = False

    def rows(self, batch: int) -> int:
        """Rows of programs that a batch needs, with one for the sums."""
        return _program_rows(max(batch, 1), self.tuning, self.tuning.access_pattern) + 1

    def programs(self, rows: int, units: int) -> int:
        """Programs of each of so many rows, on a device of so many compute units."""
        per_cu = self.tuning.balanced_per_cu if self.balance else self.tuning.programs_per_cu
        return min(max(units * per_cu // rows, 1), self.tiles, GRID_Y_MAX)

    def leftover_rows(self, programs: int, units: int) -> int:
        """Rows of so many programs each that write leftover tiles; 0 if there can be none."""
        if not self.balance or self.tiles <= programs * self.tuning.balanced_own_tiles:
            return 0
        return -(-units * self.tuning.leftover_per_cu // programs)


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
        batch, build.row_items, build.writes_sums, len(build.views), tuning, target, build.access_pattern,
        host_inputs,
    )  # fmt: skip


def _program_rows(batch: int, tuning: Tuning, pattern: AccessPattern) -> int:
    """Rows of programs that have the rows of a batch: as many, but in an extension."""
    return 2 * -(-batch // tuning.tiles_per_program) if pattern == "extension" else batch


def schedule_sizes(
    batch: int, row_items: int, writes_sums: bool, num_views: int, tuning: Tuning, target: Platform,
    pattern: AccessPattern, host_inputs: bool = False,
) -> Schedule:  # fmt: skip
    """Returns the schedule for these sizes.

    Args:
        batch: requests.
        row_items: upper bound of the entries in one row, or of all query tokens if a tile is no row's.
            NO_IDS: lengths and sums alone.
        writes_sums: whether lengths, prefix sums or the status word are written.
        num_views: outputs.
        tuning: the tuning row.
        target: the device.
        pattern: the access pattern of the launch.
        host_inputs: whether inputs are in host memory. Each program that reads them pays for it, so that a
            row's own programs write all of it, and there are no more programs than fill the device once.
    """
    batch = max(batch, 1)
    if pattern == "query_tokens":
        tiles = max(-(-row_items // tuning.num_page_per_block), 1)
        programs = min(tiles, target.compute_units * (1 if host_inputs else tuning.programs_per_cu))
        return Schedule(
            (programs + writes_sums, 1, num_views), tuning.num_page_per_block, tiles, False, False
        )
    if row_items == NO_IDS:
        programs = max(-(-batch // tuning.batch_block), min(batch + 1, _SUM_PROGRAMS))
        return Schedule((programs, 1, num_views), tuning.num_page_per_block, 1, False, False)
    # the programs of one more row have no tiles of their own and write the sums
    rows = _program_rows(batch, tuning, pattern) + writes_sums
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
        if tiles > own_tiles:
            leftover_rows = -(-units * tuning.leftover_per_cu // programs)
    in_column = _sums_in_column(tuning, balance, writes_sums)
    if in_column:
        rows, programs = batch, programs + 1
    int64_tiles = balance and batch * tiles + leftover_rows * programs > INT32_MAX
    grid = (rows + leftover_rows, programs, num_views)
    return Schedule(grid, num_page, own_tiles, balance, int64_tiles, in_column)


def _sums_in_column(tuning: Tuning, balance: bool, writes_sums: bool) -> bool:
    """Whether the sums have the last program of every row, not a row of programs.

    Of a few long rows that is fewer programs: one of 64K tokens in two views has 1,026, not 2,048.
    """
    return (
        tuning.max_batch is not None
        and tuning.access_pattern not in ("extension", "query_tokens")
        and not balance
        and writes_sums
    )


def with_balance(schedule: Schedule, build: Build, tuning: Tuning, balance: bool) -> Schedule:
    """Returns the schedule that another width may have, with or without balance; for compiling alone."""
    num_page = tuning.balanced_num_page_per_block if balance else tuning.num_page_per_block
    return schedule._replace(
        num_page_per_block=num_page, balance=balance, int64_tiles=schedule.int64_tiles and balance,
        sums_in_column=build.writes_ids and _sums_in_column(tuning, balance, build.writes_sums),
    )  # fmt: skip


def part_schedule(build: Build, target: Platform, max_batch: int) -> PartSchedule:
    """Returns the schedule of a part of a group: that of its largest batch, so that one kernel serves all."""
    max_batch *= 1 if build.draft is None else build.draft.topk
    row = _row_in_group(dispatch.tuning_row(target, build.access_pattern, max_batch), build, target)
    found = schedule_sizes(max_batch, build.row_items, True, 1, row, target, row.access_pattern)
    num_page = found.num_page_per_block
    tiles = max(-(-build.row_items // num_page), 1)
    return PartSchedule(row, num_page, found.balance, found.int64_tiles, tiles)


def _row_in_group(row: Tuning, build: Build, target: Platform) -> Tuning:
    """The row with tiles of at most _ENTRIES_PER_LANE, more of which are own tiles.

    All parts have the registers of the one that needs most: of 16 entries a lane, a part takes up to 200. And
    the programs of the other parts fill the device too, so that there is less to gain from leftover tiles.
    """
    limit = row.num_warps * target.warp_size * _ENTRIES_PER_LANE
    if target.vendor == "cpu":
        limit = max(row.num_page_per_block, row.balanced_num_page_per_block)
    num_page, balanced = (min(n, limit) for n in (row.num_page_per_block, row.balanced_num_page_per_block))
    has_long_branches = build.draft is not None and build.draft.topk > 1 and build.views[0].window is None
    return replace(
        row, num_page_per_block=num_page, balanced_num_page_per_block=balanced,
        tiles_per_program=row.tiles_per_program * row.num_page_per_block // num_page,
        balanced_per_cu=row.balanced_per_cu * (_BRANCH_PROGRAMS if has_long_branches else 1),
        balanced_own_tiles=_OWN_TILES * row.balanced_own_tiles * row.balanced_num_page_per_block // balanced,
        leftover_per_cu=1,
    )  # fmt: skip


def group_grid(
    batch: int, tables: Sequence[PartSchedule], slots: Sequence[PartSchedule], target: Platform
) -> tuple[tuple[int, int, int], int]:
    """Returns the grid of a group, and how many of its last rows write slots.

    For every part it is that of the one with the most programs. Parts share the compute units: with those of
    the whole device for each, two parts of 256 requests took up to 1.3 times as long. But where so few
    programs of a row would leave tiles to others, which have to find them, it takes longer.
    """
    units = max(target.compute_units // len(tables), 1)
    rows = max(part.rows(batch) for part in tables)
    programs = 1
    for part in tables:
        of_part = part.programs(part.rows(batch), units)
        if part.leftover_rows(of_part, units):
            of_part = part.programs(part.rows(batch), target.compute_units)
        programs = max(programs, of_part)
    leftover_rows = max(part.leftover_rows(programs, units) for part in tables)
    slot_rows = 0
    for part in slots:
        if part.tuning.access_pattern == "query_tokens":
            in_rows = 1 + -(-min(part.tiles, units * part.tuning.programs_per_cu) // programs)
        else:
            in_rows = part.rows(batch) + part.leftover_rows(programs, units)
        slot_rows = max(slot_rows, in_rows)
    return (rows + leftover_rows + slot_rows, programs, len(tables)), slot_rows
