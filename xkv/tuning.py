"""Tuning rows: how one launch is cut into programs, per arch, kind of build and batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["page", "token"]


@dataclass(frozen=True)
class Tuning:
    """One row.

    Attributes:
        kind: "token": every entry of the source is read (page size 1); "page": every P-th.
        max_batch: the row serves batches up to this size; None: any.
        num_page_per_block: items a program writes at a time, NUM_PAGE_PER_BLOCK; a power of two.
        num_warps: warps of a program.
        programs_per_cu: programs a compute unit gets at most: the grid's bound.
        blocks_per_program: blocks that a program writes of its own row; what the row has beyond those
            is balanced over all programs.
        batch_block: requests a program looks at at a time when it sums over the batch.
        provenance: where the row was measured, or that it was not.
    """

    kind: Kind
    max_batch: int | None
    num_page_per_block: int
    num_warps: int
    programs_per_cu: int
    blocks_per_program: int
    batch_block: int
    provenance: str

    def __post_init__(self) -> None:
        if self.kind not in ("page", "token"):
            raise ValueError(f"kind must be 'page' or 'token', got {self.kind!r}")
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch must be None or >= 1, got {self.max_batch}")
        if not self.provenance:
            raise ValueError("provenance must say where the row comes from, got nothing")
        for name in ("num_page_per_block", "num_warps", "batch_block"):
            value = getattr(self, name)
            # tl.arange and Triton's warp count take powers of two only
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")
        if self.num_page_per_block > 1 << 15:
            raise ValueError(f"num_page_per_block must be <= 32768, got {self.num_page_per_block}")
        if self.num_warps > 16:
            raise ValueError(f"num_warps must be <= 16 (x 64 lanes <= 1024), got {self.num_warps}")
        for name in ("programs_per_cu", "blocks_per_program"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        return (
            f"NUM_PAGE_PER_BLOCK={self.num_page_per_block} num_warps={self.num_warps} "
            f"programs_per_cu={self.programs_per_cu} ({self.provenance})"
        )


def kind_of(page_size: int, source_page_size: int) -> Kind:
    """Token-like where neighbouring items read neighbouring entries; page-like where they stride."""
    return "token" if page_size <= source_page_size else "page"


# Only the interpreter runs these: small blocks, so that small cases cross them.
CPU_ROWS = (
    Tuning("page", None, 16, 4, 2, 1, 16, "interpreter only"),
    Tuning("token", None, 64, 4, 2, 1, 16, "interpreter only"),
)
