"""The arguments of the kernel that expands requests into query tokens, and what it is compiled for."""

from typing import Any, NamedTuple

from .args import KernelConfig


class ExpandedConfig(KernelConfig):
    """What the kernel of query tokens' rows is compiled for."""

    CAUSAL: bool
    SHARD_SIZE: int  # 1: no shard
    SHARD_INTERLEAVE: int
    TOKENS: int  # query tokens of a tile
    COLUMNS: int  # entries of a page table's row that are copied at a time
    BATCH_BLOCK: int  # requests that are checked at a time
    VEC_16B: bool  # whether each row of both page tables begins at a multiple of 16 bytes
    USE_PDL: bool


class Expanded(NamedTuple):
    """The arguments; vectors that are read as in `Request`."""

    num_tokens: Any
    batch: Any
    starts_ptr: Any
    starts_stride: Any
    lens_ptr: Any
    lens_stride: Any
    pad_req: Any
    width: Any
    table_stride: Any
    table_out_stride: Any
    req_out_ptr: Any
    position_out_ptr: Any
    lens_out_ptr: Any
    table_ptr: Any
    table_out_ptr: Any
    shard_rank: Any
    status_ptr: Any


ARGUMENTS = Expanded._fields
