"""The classes of tuning rows, and the values that a sweep tries for each field; as data."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

from ...params import CSR, SLOTS, TABLE
from ...platforms.tuning import AccessPattern, Tuning
from ..bench.workloads import WORKLOADS, Workload
from .chosen_rows import ChosenClass

SMALL = 16  # requests; larger batches are the other class
ROOM = 1 << 13  # tokens that a sweep of extensions may add to a request, more than it has launches
# Of a wavefront of 64 lanes half as many do the same work, and tiles of fewer entries too.
_HALVED = ("num_page_per_block", "balanced_num_page_per_block", "num_warps", "min_warps", "block")


class Class(NamedTuple):
    """One class of tuning rows.

    Attributes:
        access_pattern: as in `xkv.platforms.tuning.Tuning`.
        max_batch: as there.
        sizes: page sizes in tokens; the coarse stage uses the first.
        source_page_size: tokens of a source entry.
        grid: values to try for each field of a row.
        above: it serves batches larger than this. None: than ``SMALL``, if it has no ``max_batch``.
    """

    access_pattern: AccessPattern
    max_batch: int | None
    sizes: tuple[int, ...]
    source_page_size: int
    grid: dict[str, tuple[Any, ...]]
    above: int | None = None

    @property
    def name(self) -> str:
        """The name that is printed."""
        return f"{self.access_pattern}, batch {f'<= {self.max_batch}' if self.max_batch else 'any'}"

    @property
    def forms(self) -> tuple[int, ...]:
        """The forms that its row builds, TABLE or CSR; the coarse stage uses the first."""
        forms: dict[str, tuple[int, ...]] = {
            "contiguous": (TABLE,), "ragged": (CSR,), "expand": (CSR, TABLE), "extension": (TABLE,),
            "query_tokens": (SLOTS,),
        }  # fmt: skip
        return forms.get(self.access_pattern, (TABLE, CSR))

    @property
    def kind(self) -> str:
        """What a launch does beside: "map", look pages up in one; "extension", only extend; or ""."""
        return {"mapped": "map", "extension": "extension"}.get(self.access_pattern, "")

    @property
    def loads(self) -> list[Workload]:
        """The workloads that its row serves; of extensions those with room for more tokens."""
        above = (0 if self.max_batch else SMALL) if self.above is None else self.above
        room = ROOM if self.kind == "extension" else 0
        return [
            load
            for load in WORKLOADS
            if "ops" in load.suites
            and above < load.batch <= (self.max_batch or load.batch)
            and max(load.lens) + room <= load.capacity
        ]


SWEPT = [
    f.name for f in dataclasses.fields(Tuning) if f.name not in ("access_pattern", "max_batch", "provenance")
]


def _grid(*texts: str) -> dict[str, tuple[Any, ...]]:
    return dict(zip(SWEPT, map(values, texts), strict=True))


def values(text: str) -> tuple[Any, ...]:
    """Parses integers or booleans: "4,8" -> (4, 8), "true,false" -> (True, False)."""
    return tuple(json.loads(each) for each in text.split(","))


# Of these launches the other fields divide nothing, see `xkv.platforms.tuning.Tuning`.
_TOKENS: dict[str, tuple[Any, ...]] = {
    "num_page_per_block": (64, 128, 256, 512), "num_warps": (1, 2, 4, 8), "programs_per_cu": (2, 4, 8),
}  # fmt: skip
_EXTENSIONS: dict[str, tuple[Any, ...]] = {
    "num_warps": (1, 2, 4, 8), "tiles_per_program": (1, 2, 4, 8, 16), "batch_block": (16, 64, 256, 512),
}  # fmt: skip
CLASSES = (
    Class(
        "strided_far", SMALL, (64, 32), 1,
        _grid("64,128,256", "1,2,4", "4,8", "2", "2,8", "64,256", "1", "4", "16", "true"),
    ),
    Class(
        "strided_far", None, (64, 32), 1,
        _grid("256,512", "4", "4,8", "2,4", "2,4,8", "128,256,512", "1", "1,2,4", "256", "true"),
    ),
    Class(
        "strided_near", SMALL, (16,), 1,
        _grid("128,256", "2,4", "2,8", "2", "2,8", "128,256", "1", "4", "16", "true"),
    ),
    Class(
        "strided_near", None, (16,), 1,
        _grid("512,1024", "4", "4,8", "2,4", "2,4,8", "256,512,1024", "1", "1,2,4", "256", "true"),
    ),
    Class(
        "contiguous", SMALL, (1,), 1,
        _grid("256,512,1024,2048", "4,8", "4,8,16", "2", "2,8", "1024,2048", "1", "4", "16", "true"),
    ),
    Class(
        "contiguous", None, (1,), 1,
        _grid("1024", "4,8", "4,8", "2,4", "4,8", "1024,2048", "1,2", "2,4,6,8", "256", "true"),
    ),
    Class(
        "ragged", SMALL, (1,), 1,
        _grid("512,1024,2048", "4,8", "4,8", "2", "2,8", "1024,2048", "1,2", "4", "16", "true"),
    ),
    Class(
        "ragged", None, (1,), 1,
        _grid("2048", "4,8", "4", "4", "4,8", "1024,2048", "1,2,4", "2,4,6,8", "256", "true"),
    ),
    Class(
        "expand", SMALL, (1,), 16,
        _grid("512,1024,2048", "4,8", "4,8", "2", "2,8", "1024,2048", "1,2", "4", "16", "true"),
    ),
    Class(
        "expand", None, (1,), 16,
        _grid("1024", "4,8", "4,8", "2,4", "4,8", "1024,2048", "1,2,4", "2,4,6", "256", "true"),
    ),
    Class(
        "mapped", SMALL, (16, 1), 1,
        _grid("128,256,512", "2,4,8", "4,8", "2", "2,8", "256,512", "1", "4", "16", "true"),
    ),
    Class(
        "mapped", None, (16, 1), 1,
        _grid("256,512,1024", "4,8", "4,8", "2,4", "2,4,8", "256,512", "1", "2,4", "256", "true"),
    ),
    Class("query_tokens", None, (8192, 1), 1, _TOKENS, above=0),
    Class("extension", 16, (64, 16), 1, _EXTENSIONS),
    Class("extension", 64, (64, 16), 1, _EXTENSIONS, above=16),
    Class("extension", 256, (64, 16), 1, _EXTENSIONS, above=64),
    Class("extension", None, (64, 16), 1, _EXTENSIONS, above=256),
)  # fmt: skip

AnyClass = Class | ChosenClass


def widened(each: AnyClass, warp_size: int) -> AnyClass:
    """Returns the class with the values to try on a GPU whose warps have so many lanes.

    The classes' own are for 32. With 64, the halves of tiles and warps are tried too, and no programmatic
    dependent launch, which such GPUs do not have.
    """
    if warp_size == 32:
        return each
    grid = {
        name: tuple(sorted({*values, *(max(n // 2, 1) for n in values)})) if name in _HALVED else values
        for name, values in each.grid.items()
    }
    if "pdl_on_streams" in grid:
        grid["pdl_on_streams"] = (False,)
    return each._replace(grid=grid)
