"""What a launch would take by counting: a model of a GPU in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from model_counts import Kernel

from xkv.launch.grid import Schedule
from xkv.platforms.tuning import Tuning

_CYCLES = 4  # from an instruction to the next of the same warp, on either vendor's units


class Gpu(NamedTuple):
    """Of the whole device, from data sheets and published measurements.

    Attributes:
        ghz: clock.
        lanes: of a unit that do an instruction in the same cycle.
        gb_s: memory, 85 % of the data sheet's.
        memory_us: a load that no cache has.
        cache_us: a load that L2 has, such as lengths that were just written.
        line: bytes that a load of one word moves from memory.
        starts: warps that a unit starts in a microsecond.
    """

    ghz: float
    lanes: int
    gb_s: float
    memory_us: float
    cache_us: float
    line: int
    starts: float


GPUS = {
    "sm90": Gpu(1.98, 128, 4080, 0.60, 0.25, 64, 48),  # H200
    "gfx942": Gpu(2.1, 64, 4500, 0.80, 0.35, 128, 48),  # MI300X
    "gfx950": Gpu(2.4, 64, 6800, 0.80, 0.35, 128, 48),  # MI355X
}


class Launch(NamedTuple):
    """One point with one row.

    Attributes:
        entries: of each row of the batch.
        stride: bytes of the source from one entry to the next.
        stream: whether rows wait for a sum over those before.
        schedule: its grid.
        tuning: its row.
        kernel: what its code does.
        resident: programs that a compute unit holds at a time.
        units: compute units.
        warp_size: lanes of a warp.
    """

    entries: Sequence[int]
    stride: int
    stream: bool
    schedule: Schedule
    tuning: Tuning
    kernel: Kernel
    resident: int
    units: int
    warp_size: int


class Estimate(NamedTuple):
    """Microseconds, each as if the others were nothing; the launch itself is left out.

    Attributes:
        issue: of all instructions.
        memory: of all bytes that move.
        latency: of the loads that wait for each other, in programs that share the units.
        useful: of the bytes that move, the share of entries read and written.
    """

    issue: float
    memory: float
    latency: float
    useful: float

    @property
    def us(self) -> float:
        """What counts: memory and issue overlap, and the first loads come before either."""
        return max(self.issue, self.memory, self.latency)


def estimate(launch: Launch, gpu: Gpu) -> Estimate:
    """Estimates a launch."""
    schedule, row = launch.schedule, launch.tuning
    block = schedule.num_page_per_block
    per_row = schedule.grid[1] - schedule.sums_in_column
    tiles = [-(-n // block) for n in launch.entries]
    own = [min(n, schedule.own_tiles) for n in tiles]
    leftover = sum(tiles) - sum(own)
    programs = schedule.grid[0] * schedule.grid[1]
    shared_by = max(schedule.grid[0] - len(tiles) - launch.stream, 0) * per_row

    lanes = row.num_warps * launch.warp_size
    per_program, per_tile = launch.kernel.before.instructions, launch.kernel.tile.instructions
    issued = (programs * per_program + sum(tiles) * per_tile) * lanes
    issue = issued / (launch.units * gpu.lanes * gpu.ghz * 1e3)

    live = sum(launch.entries)
    moved = live * (min(launch.stride, gpu.line) + 4)
    memory = moved / gpu.gb_s / 1e3

    tile_us = gpu.memory_us + per_tile * _CYCLES / gpu.ghz / 1e3
    first = 2 * gpu.cache_us + per_program * _CYCLES / gpu.ghz / 1e3
    sums = gpu.cache_us * -(-len(tiles) // row.batch_block)
    each = [first + launch.stream * sums / 2 + -(-n // per_row) * tile_us for n in own]
    longest, total = max(each), sum(n * min(per_row, t) for n, t in zip(each, own, strict=True))
    total += max(programs - sum(min(per_row, t) for t in own) - shared_by, 0) * gpu.cache_us
    if leftover:
        search = 2 * sums + first
        share = search + -(-leftover // shared_by) * tile_us
        longest, total = max(longest, share), total + share * shared_by
    starting = programs * row.num_warps / (launch.units * gpu.starts)
    latency = starting + max(longest, total / (launch.units * launch.resident))
    return Estimate(issue, memory + first + gpu.memory_us, latency, live * 8 / moved)
