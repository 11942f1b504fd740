"""The arguments of the kernel of chosen tokens, and what it is compiled for."""

from typing import Any, NamedTuple

from .args import KernelConfig


class ChosenConfig(KernelConfig):
    """What the kernel of chosen tokens is compiled for."""

    PAGE_SIZE: int
    SOURCE_PAGE_SIZE: int
    BLOCK_STRIDE: int
    UNIT: int
    SHARD_SIZE: int  # 1: no shard
    SHARD_INTERLEAVE: int
    SOURCE_IS_GLOBAL: bool
    COMPACT: bool
    WHOLE_ROWS: bool
    ONE_TILE: bool  # whether a query token's positions are one tile
    FULL_TILES: bool  # whether all tiles are full, so that nothing has to be masked
    BLOCK: int  # positions of a tile
    BATCH_BLOCK: int  # requests that are looked at at a time
    VEC_16B: bool  # whether lanes have several positions one after the other; all begin at 16 bytes
    EVICTION: str  # of positions and ids, as Triton calls it; "": like the rest
    USE_PDL: bool


class Chosen(NamedTuple):
    """The arguments; vectors as in `Request`, or without strides: all are int32."""

    num_tokens: Any
    k: Any
    pos_ptr: Any
    pos_stride: Any
    src_ptr: Any
    src_stride: Any
    src_rows: Any
    src_tokens: Any
    batch: Any
    out_ptr: Any
    out_stride: Any
    missing_id: Any
    to_req_ptr: Any
    to_req_stride: Any
    starts_ptr: Any
    starts_stride: Any
    rows_ptr: Any
    rows_stride: Any
    lens_ptr: Any
    lens_stride: Any
    shard_rank: Any
    counts_ptr: Any
    dummy: Any
    status_ptr: Any


ARGUMENTS = Chosen._fields
