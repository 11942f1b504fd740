"""The least that a point takes: the fastest of a few kernels that do just that point, and check nothing.

They do not balance the load either: where lengths differ much, they are no bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from . import kernels
from .inputs import Inputs, Step
from .providers import Provider, Results

_CHUNK = 256  # lengths that are summed at once


class Shape(NamedTuple):
    """How the work is divided.

    Attributes:
        programs: programs of a row, which take its tiles in turn; None: one for each tile of the longest row.
        tile: entries that a program moves at once.
        num_warps: warps of a program.
    """

    programs: int | None
    tile: int
    num_warps: int

    @property
    def name(self) -> str:
        """For the record."""
        count = "a program a tile" if self.programs is None else f"programs a row: {self.programs}"
        return f"{count}, {self.tile} entries, {self.num_warps} warps"


_TABLE = (
    Shape(None, 128, 4), Shape(None, 256, 4), Shape(None, 512, 4), Shape(None, 1024, 4), Shape(None, 2048, 8),
    Shape(None, 4096, 8), Shape(1, 1024, 8), Shape(8, 2048, 8),
)  # fmt: skip
_CSR = (
    Shape(None, 256, 4), Shape(None, 1024, 4), Shape(None, 2048, 8), Shape(1, 512, 4), Shape(1, 2048, 8),
    Shape(4, 512, 4), Shape(4, 1024, 4), Shape(32, 1024, 4),
)  # fmt: skip


def candidates(at: Inputs, results: Results) -> dict[str, Provider]:
    """The kernels that are tried.

    Args:
        at: what they read.
        results: what they write: xkv's buffers, for a table or for CSR.

    Returns:
        By the name of their shape; none for whole steps.
    """
    shapes = {"table": _TABLE, "csr": _CSR}.get(at.case.section, ())
    make = _table if at.case.section == "table" else _csr
    return {
        shape.name: Provider(
            make(at, results, shape), at.page_size, results, tuple(results.values()),
            measured=("device_us", "back_us"),
        )
        for shape in shapes
    }  # fmt: skip


def _grid(at: Inputs, shape: Shape) -> tuple[int, int]:
    longest = -(-int(at.lens.max()) // at.page_size)
    return at.batch, -(-longest // shape.tile) if shape.programs is None else shape.programs


def _table(at: Inputs, results: Results, shape: Shape) -> Callable[[Step], object]:
    out, stride = results["page_table"], at.source.stride(0)
    width = out.shape[1]
    kernel = kernels.table_tiles if shape.programs is None else kernels.table_loop
    launch = kernel[_grid(at, shape)]
    options = {"PAGE": at.page_size, "TILE": shape.tile, "num_warps": shape.num_warps}
    options["ROUND"] = 1 if width % 4 or stride % 4 else 4
    return lambda step: launch(at.source, stride, step.rows, step.lens, out, width, **options)


def _csr(at: Inputs, results: Results, shape: Shape) -> Callable[[Step], object]:
    outs: list[Tensor] = [results[name] for name in ("kv_indptr", "kv_indices", "kv_last_page_len")]
    launch, stride = kernels.csr_loop[_grid(at, shape)], at.source.stride(0)
    options = {"PAGE": at.page_size, "TILE": shape.tile, "CHUNK": _CHUNK, "num_warps": shape.num_warps}
    return lambda step: launch(at.source, stride, step.rows, step.lens, *outs, **options)
