"""Tuning rows: how one launch is divided among programs, by arch, access pattern and batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

AccessPattern = Literal[
    "contiguous", "ragged", "expand", "strided_near", "strided_far", "mapped", "query_tokens", "extension"
]

# Entries: up to this stride (64 bytes of int32, what DRAM transfers at a time) no byte that DRAM transfers
# is skipped.
_NEAR = 16


@dataclass(frozen=True)
class Tuning:
    """One tuning row.

    Attributes:
        access_pattern: how a launch reads the source and writes the ids. "contiguous": every source entry
            (page size 1), into a table; "ragged": the same into a stream, whose rows begin at any entry and
            wait for a prefix sum; "expand": every source entry, for several smaller pages each;
            "strided_near": every n-th entry, up to 64 bytes apart, so that DRAM transfers all of them anyway;
            "strided_far": entries farther apart; "mapped": entries that are not, each of which is looked up
            in a map of tokens or pages, somewhere in memory; "query_tokens": one entry for each query token,
            whatever its row: such a tile is no row's, the leftover phase does not exist, and
            ``programs_per_cu`` is all that divides the work; "extension": the last entries of the rows of a
            table, ``tiles_per_program`` rows a program, which is all that divides the work.
        max_batch: requests; the row serves batches up to this size. None: any. With one, the sums of a batch
            have a column of the grid (`launch.grid.Schedule`).
        num_page_per_block: NUM_PAGE_PER_BLOCK, items per tile; a power of two.
        num_warps: warps per program.
        programs_per_cu: programs per compute unit, at most, divided among the rows of the batch.
        tiles_per_program: tiles of its row that a program writes, at most. If that covers the longest row
            that there may be, no tiles are left over.
        balanced_per_cu: ``programs_per_cu`` of launches that may have leftover tiles.
        balanced_num_page_per_block: ``num_page_per_block`` of these.
        balanced_own_tiles: own tiles of its row per program, at most, in these.
        leftover_per_cu: programs per compute unit that write leftover tiles: each finds its share from the
            lengths of the whole batch, while the others write the rows' own tiles.
        batch_block: BATCH_BLOCK, requests that a program reads at a time when it sums over the batch; a
            power of two.
        pdl_on_streams: launch with programmatic dependent launch, where the platform has it, except while a
            graph is captured: on a stream it saves the time of a launch (1 us on an H200), between the nodes
            of a graph it costs time (0.4 us) unless the kernel before lets this one start early.
        provenance: where the row was measured, or that it was not.
    """

    access_pattern: AccessPattern
    max_batch: int | None
    num_page_per_block: int
    num_warps: int
    programs_per_cu: int
    tiles_per_program: int
    balanced_per_cu: int
    balanced_num_page_per_block: int
    balanced_own_tiles: int
    leftover_per_cu: int
    batch_block: int
    pdl_on_streams: bool
    provenance: str

    def __post_init__(self) -> None:
        patterns = get_args(AccessPattern)
        if self.access_pattern not in patterns:
            raise ValueError(
                f"access_pattern must be one of {', '.join(patterns)}, got {self.access_pattern!r}"
            )
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch must be None or >= 1, got {self.max_batch}")
        if not self.provenance:
            raise ValueError("provenance must say where the row comes from, got nothing")
        for name in ("num_page_per_block", "num_warps", "balanced_num_page_per_block", "batch_block"):
            value = getattr(self, name)
            # tl.arange and Triton's warp count take powers of two only
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")
        for name in ("num_page_per_block", "balanced_num_page_per_block"):
            if getattr(self, name) > 1 << 15:
                raise ValueError(f"{name} must be <= 32768, got {getattr(self, name)}")
        if self.num_warps > 16:
            raise ValueError(f"num_warps must be <= 16 (x 64 lanes <= 1024), got {self.num_warps}")
        for name in (
            "programs_per_cu",
            "tiles_per_program",
            "balanced_per_cu",
            "balanced_own_tiles",
            "leftover_per_cu",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        return (
            f"NUM_PAGE_PER_BLOCK={self.num_page_per_block} num_warps={self.num_warps} "
            f"programs_per_cu={self.programs_per_cu} ({self.provenance})"
        )


def access_pattern(
    page_size: int, source_page_size: int, *, ragged: bool = False, mapped: bool = False
) -> AccessPattern:
    """Returns the access pattern of a launch.

    Args:
        page_size: tokens per output page.
        source_page_size: tokens per source entry.
        ragged: whether the output is a stream, not a table; decides only where entries are contiguous.
        mapped: whether ids are looked up in a map; decides only where entries are not far apart.
    """
    stride = page_size // source_page_size
    if mapped and stride <= _NEAR:
        return "mapped"
    if stride < 1:
        return "expand"
    if stride == 1:
        return "ragged" if ragged else "contiguous"
    return "strided_near" if stride <= _NEAR else "strided_far"


@dataclass(frozen=True)
class ChosenTuning:
    """How a translation of chosen positions is divided among programs.

    Attributes:
        max_tokens: query tokens; the row serves launches of up to so many. None: any.
        whole_rows: whether a program has all positions of a query token, which it has where ids are counted.
        block: positions of a tile, at most; a power of two.
        num_warps: of a program with tiles of so many positions. A smaller tile has as many less, but not
            less than ``min_warps``.
        min_warps: see ``num_warps``.
        vectors_from: tokens of an entry of the source from which on positions that are packed are loaded as
            vectors, as others always are. Vectors change lanes through shared memory, which longer source
            rows would have as a cache.
        evict_first: whether positions and ids leave the caches first.
        batch_block: requests that a program looks at at a time; a power of two.
        pdl_on_streams: as in `Tuning`.
        provenance: likewise.
    """

    max_tokens: int | None
    whole_rows: bool
    block: int
    num_warps: int
    min_warps: int
    vectors_from: int
    evict_first: bool
    batch_block: int
    pdl_on_streams: bool
    provenance: str


# For the interpreter alone: small tiles, so that small cases have several; larger ones in the load-balanced
# phase, since the interpreter takes a millisecond per tile.
CPU_ROWS = (
    Tuning("contiguous", 2, 64, 4, 2, 2, 2, 1024, 1, 2, 16, False, "interpreter only"),
    Tuning("contiguous", None, 64, 4, 2, 2, 2, 1024, 1, 2, 16, False, "interpreter only"),
    Tuning("ragged", 2, 64, 4, 2, 2, 2, 1024, 2, 2, 16, False, "interpreter only"),
    Tuning("ragged", None, 64, 4, 2, 2, 2, 1024, 2, 2, 16, False, "interpreter only"),
    Tuning("expand", 2, 64, 4, 2, 2, 2, 1024, 1, 2, 16, False, "interpreter only"),
    Tuning("expand", None, 64, 4, 2, 2, 2, 1024, 1, 2, 16, False, "interpreter only"),
    Tuning("strided_near", 2, 16, 4, 2, 2, 2, 128, 1, 2, 16, False, "interpreter only"),
    Tuning("strided_near", None, 16, 4, 2, 2, 2, 128, 1, 2, 16, False, "interpreter only"),
    Tuning("strided_far", 2, 16, 4, 2, 2, 2, 128, 1, 2, 16, False, "interpreter only"),
    Tuning("strided_far", None, 16, 4, 2, 2, 2, 128, 1, 2, 16, False, "interpreter only"),
    Tuning("mapped", 2, 64, 4, 2, 2, 2, 1024, 1, 2, 16, False, "interpreter only"),
    Tuning("mapped", None, 64, 4, 2, 2, 2, 1024, 1, 2, 16, False, "interpreter only"),
    Tuning("query_tokens", None, 16, 4, 2, 1, 2, 16, 1, 2, 16, False, "interpreter only"),
    Tuning("extension", None, 32, 4, 1, 4, 1, 32, 1, 1, 16, False, "interpreter only"),
)
CPU_CHOSEN = (
    ChosenTuning(None, False, 32, 4, 1, 1, True, 4, False, "interpreter only"),
    ChosenTuning(None, True, 32, 1, 1, 4, True, 4, False, "interpreter only"),
)
