"""What a compute unit holds, as data, and how many of a kernel's warps fit.

The vendors' units differ in numbers alone: four schedulers, each with 512 registers a lane that are given
out eight at a time, a table of warps, and memory that the programs share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...platforms.detect import Platform

if TYPE_CHECKING:
    from .resources import Resources

_SCHEDULERS = 4  # sub-partitions (NVIDIA), SIMDs (AMD)
_REGISTERS = 512  # of a lane and a scheduler: 64K of 32 lanes and four; 512 VGPRs, AGPRs included
_GRANULE = 8  # registers are given out so many at a time


@dataclass(frozen=True)
class Unit:
    """A multiprocessor (NVIDIA) or compute unit (AMD).

    Attributes:
        platform: a GPU that has them.
        warps: warps or wavefronts a scheduler holds.
        programs: thread blocks or workgroups, of more than one warp, that it holds.
        shared: bytes of shared memory or LDS.
        reserved: bytes of it that the system takes for each program.
        scalars: scalar registers a scheduler has; None: a warp's do not count.
    """

    platform: Platform
    warps: int
    programs: int
    shared: int
    reserved: int
    scalars: int | None = None


def _nvidia(arch: str, compute_units: int, warps: int, programs: int, shared: int) -> Unit:
    return Unit(Platform("cuda", arch, 32, compute_units), warps, programs, shared << 10, 1 << 10)


def _amd(arch: str, compute_units: int, shared: int) -> Unit:
    # 16: each workgroup of several waves takes one of 16 barriers
    return Unit(Platform("hip", arch, 64, compute_units), 8, 16, shared << 10, 0, 800)


# CUDA's programming guide, "Compute capabilities"; AMD's CDNA 3 and 4 ISA guides and LLVM's AMDGPU back end.
UNITS = {
    unit.platform.arch: unit
    for unit in (
        _nvidia("sm90", 132, 16, 32, 228),
        _nvidia("sm100", 148, 16, 32, 228),
        _nvidia("sm103", 148, 16, 32, 228),
        _nvidia("sm120", 188, 12, 24, 100),
        _amd("gfx942", 304, 64),
        _amd("gfx950", 256, 160),
    )
}


def scheduler_warps(used: Resources, unit: Unit) -> int:
    """Warps that a scheduler's registers allow."""
    taken = -(-used.registers // _GRANULE) * _GRANULE
    fit = min(unit.warps, _REGISTERS // taken)
    return fit if unit.scalars is None else min(fit, unit.scalars // used.scalars)


def programs(used: Resources, unit: Unit) -> int:
    """Programs that a compute unit holds at a time."""
    warps = used.threads // used.warp_size
    by_registers = _SCHEDULERS * scheduler_warps(used, unit) // warps
    by_shared = unit.shared // max(used.shared + unit.reserved, 1)
    return min(by_registers, by_shared, unit.programs)
