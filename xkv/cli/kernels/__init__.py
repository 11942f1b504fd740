"""`python -m xkv info --kernels`: what the kernels take of each GPU, compiled with none of them here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...platforms import detect
from .units import UNITS, Unit, programs

if TYPE_CHECKING:
    from ...platforms.specs import BackendSpec
    from ...platforms.tuning import Tuning
    from .resources import Resources

ARCHES = tuple(UNITS)
BATCHES = (1, 256)  # a small one and a large one, to a tuning row each
BACKENDS = {"cuda": "nvidia", "hip": "amd"}  # Triton's two names for a back end

# The vendor's own words, where they differ.
_WORDS = {
    "cuda": {"registers": "REG", "spills": "local", "stack": "stack", "shared": "shared", "warps": "warps"},
    "hip": {"registers": "VGPR", "spills": "spills", "stack": "scratch", "shared": "LDS", "warps": "waves"},
}

LEGEND = """\
Rows of 4M tokens, so that the whole kernel is compiled, over storages of 3 GiB. NUM_PAGE_PER_BLOCK:
items of a tile; REG, VGPR: 32-bit registers of a lane; SGPR: of a wavefront; local, stack, scratch, shared,
LDS, code: bytes; spills: VGPRs/SGPRs; held: warps or waves of it that a compute unit has room for; asked:
those that the programs of its tuning row come to; load, store: bytes a lane of the widest global access;
div: divisions by what only the launch knows."""


def require() -> None:
    """Sees to it that kernels can be compiled in this process.

    Raises:
        xkv.UnsupportedPlatformError: torch or Triton are missing, or kernels are interpreted here.
    """
    detect.platform("cpu")  # says what is wrong where torch is missing or too old
    from ...launch import compile

    if compile.interpreted():
        raise detect.UnsupportedPlatformError(
            "--kernels compiles, and TRITON_INTERPRET is set, under which Triton compiles nothing: unset it"
        )
    try:
        importlib.import_module("triton.backends.compiler")
    except ImportError as error:
        raise detect.UnsupportedPlatformError(
            "triton is not installed, which --kernels compiles with: pip install triton without a GPU,"
            " else the one that torch was built with"
        ) from error


def table(arch: str, spec: BackendSpec | None = None) -> list[list[str]]:
    """Compiles every variant for an arch; shows progress on stderr where tqdm is there.

    Args:
        arch: one of ARCHES.
        spec: compiles those of this backend alone.

    Returns:
        A header and a row for each op or backend and batch, as cells.

    Raises:
        xkv.UnsupportedPlatformError: this Triton has no back end for the arch's vendor.
    """
    from triton.backends import backends

    from .variants import of_backend, variants

    unit = UNITS[arch]
    vendor = unit.platform.vendor
    if BACKENDS[vendor] not in backends:
        raise detect.UnsupportedPlatformError(f"this triton cannot compile for {BACKENDS[vendor]}")
    found = variants(vendor) if spec is None else [of_backend(spec)]
    jobs = [(name, make, batch) for name, make in found for batch in BATCHES]
    rows = [_row(name, make(batch), unit) for name, make, batch in _shown(jobs, f"xkv info: {arch}")]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def _row(name: str, build: Any, unit: Unit) -> dict[str, str]:
    """Column -> cell."""
    from ...launch import launch
    from ...launch.grid import make_schedule
    from .compiling import compiled
    from .resources import read

    where = unit.platform
    row = launch.tuned(build, where)
    used = read(compiled(build, row, where))
    cells = dict(_cells(used, row, unit))
    num_page = make_schedule(build, row, where).num_page_per_block
    return {
        "of": name,
        "batch": str(build.batch),
        "access_pattern": row.access_pattern,
        "NUM_PAGE_PER_BLOCK": str(num_page),
    } | cells


def _cells(used: Resources, row: Tuning, unit: Unit) -> Iterator[tuple[str, str]]:
    words = _WORDS[unit.platform.vendor]
    yield words["warps"], f"{row.num_warps} x {used.warp_size}"
    yield words["registers"], str(used.registers)
    if unit.scalars is not None:
        yield "SGPR", str(used.scalars)
    yield words["spills"], f"{used.spills}" + (f"/{used.scalar_spills}" if unit.scalars is not None else "")
    yield words["stack"], str(used.stack)
    yield words["shared"], str(used.shared)
    yield "held", str(programs(used, unit) * row.num_warps)
    yield "asked", str(asked(row) * row.num_warps)
    yield "load", str(used.load)
    yield "store", str(used.store)
    yield "div", str(used.divisions)
    yield "code", str(used.code)


def asked(row: Tuning) -> int:
    """Programs a compute unit that a row would have there at a time."""
    return max(row.programs_per_cu, row.balanced_per_cu + row.leftover_per_cu)


def _shown(jobs: list[Any], title: str) -> Iterable[Any]:
    """The jobs one by one, with a bar on stderr where tqdm is there."""
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return jobs
    bar: Iterable[Any] = tqdm(jobs, unit="kernel", desc=title, file=sys.stderr, leave=False)
    return bar
