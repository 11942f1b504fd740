"""Tuning rows: how one launch is cut into programs, per arch, kind of build and batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["token", "stream", "near", "far"]

# Source entries from one item's to the next within which DRAM, which gives 64 bytes at a time, is read whole.
_NEAR = 16


@dataclass(frozen=True)
class Tuning:
    """One row.

    Attributes:
        kind: what is read and written. "token": every entry of the source (page size 1), into a table;
            "stream": the same into a stream, whose rows begin anywhere and wait for a sum; "near": of
            entries up to 64 bytes apart the first, so that DRAM gives all of them; "far": entries farther
            apart.
        max_batch: the row serves batches up to this size; None: any.
        num_page_per_block: items a program writes at a time, NUM_PAGE_PER_BLOCK; a power of two.
        num_warps: warps of a program.
        programs_per_cu: programs a compute unit gets at most, shared out among the rows.
        blocks_per_program: blocks that a program writes of its row, at most. Where the programs come to
            the longest row so, no row needs another's.
        balanced_per_cu: programs a compute unit gets at most where they do not: each then writes some blocks
            of its row, counts what the whole batch has left, and writes its share of that.
        balanced_block: NUM_PAGE_PER_BLOCK where they do not.
        balanced_blocks: those blocks of its row, at most.
        batch_block: requests a program looks at at a time when it sums over the batch.
        early: where launches overlap, let the next kernel's programs come as soon as this one's have
            begun, not when they have written: pays unless it is bound by how evenly they lie on the chip.
        provenance: where the row was measured, or that it was not.
    """

    kind: Kind
    max_batch: int | None
    num_page_per_block: int
    num_warps: int
    programs_per_cu: int
    blocks_per_program: int
    balanced_per_cu: int
    balanced_block: int
    balanced_blocks: int
    batch_block: int
    early: bool
    provenance: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch must be None or >= 1, got {self.max_batch}")
        if not self.provenance:
            raise ValueError("provenance must say where the row comes from, got nothing")
        for name in ("num_page_per_block", "num_warps", "balanced_block", "batch_block"):
            value = getattr(self, name)
            # tl.arange and Triton's warp count take powers of two only
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")
        for name in ("num_page_per_block", "balanced_block"):
            if getattr(self, name) > 1 << 15:
                raise ValueError(f"{name} must be <= 32768, got {getattr(self, name)}")
        if self.num_warps > 16:
            raise ValueError(f"num_warps must be <= 16 (x 64 lanes <= 1024), got {self.num_warps}")
        for name in ("programs_per_cu", "blocks_per_program", "balanced_per_cu", "balanced_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        return (
            f"NUM_PAGE_PER_BLOCK={self.num_page_per_block} num_warps={self.num_warps} "
            f"programs_per_cu={self.programs_per_cu} ({self.provenance})"
        )


def kind_of(page_size: int, source_page_size: int, *, stream: bool = False) -> Kind:
    """How far apart the entries are that neighbouring items read, and, of those side by side, what into."""
    entries = page_size // source_page_size
    if entries <= 1:
        return "stream" if stream else "token"
    return "near" if entries <= _NEAR else "far"


# Only the interpreter runs these: small blocks, so that small cases cross them, but for rows that a program
# shares out: the interpreter takes a millisecond a block.
CPU_ROWS = (
    Tuning("token", None, 64, 4, 2, 2, 2, 1024, 1, 16, False, "interpreter only"),
    Tuning("stream", None, 64, 4, 2, 2, 2, 1024, 2, 16, False, "interpreter only"),
    Tuning("near", None, 16, 4, 2, 2, 2, 128, 1, 16, False, "interpreter only"),
    Tuning("far", None, 16, 4, 2, 2, 2, 128, 1, 16, False, "interpreter only"),
)
