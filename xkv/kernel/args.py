"""The NamedTuples that group the kernel's arguments and values, and its constants as constexprs."""

from typing import Any, NamedTuple, TypeVar

import triton.language as tl

from .. import params
from ..status import Reason

TABLE, CSR, SLOTS = (tl.constexpr(form) for form in (params.TABLE, params.CSR, params.SLOTS))
BAD_ROW = tl.constexpr(Reason.BAD_ROW.value)
BAD_LENGTH = tl.constexpr(Reason.BAD_LENGTH.value)
BAD_START = tl.constexpr(Reason.BAD_START.value)
BAD_QUERY = tl.constexpr(Reason.BAD_QUERY.value)
TRUNCATED = tl.constexpr(Reason.TRUNCATED.value)
BAD_ID = tl.constexpr(Reason.BAD_ID.value)
BAD_MAP = tl.constexpr(Reason.BAD_MAP.value)
OVERFLOW = tl.constexpr(Reason.OVERFLOW.value)
UNALIGNED_START = tl.constexpr(Reason.UNALIGNED_START.value)
INT32_MAX = tl.constexpr(params.INT32_MAX)
LENGTH_MAX = tl.constexpr(params.LENGTH_MAX)
RECORD_WORDS = tl.constexpr(params.RECORD_WORDS)
ID_MAX = tl.constexpr(params.ID_MAX)


_Config = TypeVar("_Config", bound="KernelConfig")


class KernelConfig(str):
    """What a kernel is compiled for, in addition to dtypes and which pointers are None: annotated fields.

    A str with attributes: Triton keys its caches by a constexpr's text, and writes it as JSON for hooks.
    """

    def __new__(cls: type[_Config], *values: int) -> _Config:
        """Takes one value per field, in order."""
        fields = dict(zip(cls.__annotations__, values, strict=True))
        self = super().__new__(cls, " ".join(f"{name}={value}" for name, value in fields.items()))
        vars(self).update(fields)
        return self

    def replaced(self: _Config, **fields: int) -> _Config:
        """The same with other values of some fields."""
        return type(self)(*({name: getattr(self, name) for name in self.__annotations__} | fields).values())


class Config(KernelConfig):
    """What the kernel of tables, streams and slots is compiled for."""

    PAGE_SIZE: int
    SOURCE_PAGE_SIZE: int
    MAP_PAGE_SIZE: int
    FORM: int
    HAS_PADDING: bool
    NUM_PAGE_PER_BLOCK: int
    BATCH_BLOCK: int
    BALANCE: bool
    INT64_TILES: bool
    USE_PDL: bool
    REDUCE_STATUS: bool
    INDPTR_IS_INPUT: bool
    VEC_16B: bool
    WINDOW_IS_PREFIX_ONLY: bool
    STARTS_ARE_ALIGNED: bool
    SHARD_SIZE: int  # 1: no shard
    SHARD_INTERLEAVE: int
    SOURCE_IS_GLOBAL: bool
    LENS_ARE_LOCAL: bool
    WRITES_IDS: bool
    CLAMPS_TAIL: bool
    WINDOW_IS_ABSOLUTE: bool
    HAS_SINKS: bool
    TOPK: int  # branches of a draft tree. 0: none
    DRAFT_STEPS: int
    DRAFT_PAGE_SIZE: int
    SUMS_FIT: bool  # in int32
    EXTENDS: int  # rows of a program of an extension. 0: no extension
    SUMS_IN_COLUMN: bool  # the last program of each row writes sums, not the programs before the first row


class Request(NamedTuple):
    """The batch and the source. Vectors are read as int32, with a stride of 1, or of 2 for int64.

    What is needed first comes first: each 64 bytes of constant memory read cost a miss (0.05 us on an H200).
    """

    batch: Any
    rows_stride: Any
    rows_ptr: Any
    lens_ptr: Any
    lens_stride: Any
    delta: Any
    src_ptr: Any
    src_stride: Any
    src_rows: Any
    src_tokens: Any
    delta_ptr: Any
    delta_stride: Any
    query_ptr: Any
    query_stride: Any
    query_sign: Any
    query_len: Any
    shard_rank: Any
    positions_ptr: Any
    positions_stride: Any
    positions_len: Any
    max_position: Any
    loc_ptr: Any
    loc_len: Any
    loc_out_ptr: Any
    loc_out_len: Any
    query_start_ptr: Any


class View(NamedTuple):
    """One output and the part of each row that it shows."""

    start_ptr: Any
    start_stride: Any
    window: Any
    token_map_ptr: Any
    token_map_len: Any
    page_map_ptr: Any
    page_map_len: Any
    out_ptr: Any
    out_stride: Any
    capacity: Any
    seqlens_ptr: Any
    cu_k_ptr: Any
    indptr_ptr: Any
    last_ptr: Any
    offset_ptr: Any
    empty_ptr: Any
    record_ptr: Any
    cu_q_ptr: Any
    query_seqlens_ptr: Any
    sink: Any
    draft_step: Any


class Grid(NamedTuple):
    """The programs that write a view, in rows of as many programs as each row of the batch gets.

    Attributes:
        x, y, num_x, num_y: the program's row and its number in it, and how many there are.
    """

    x: Any
    y: Any
    num_x: Any
    num_y: Any


class Row(NamedTuple):
    """One row of the batch (scalars) or several (vectors), cut to what may be read and, in tables, written.

    With a shard, positions are those among the rank's own tokens, except in slots.

    Attributes:
        source: the row of the source; of given positions -1 for a row of padding.
        first: position of the first token of the first item: ``start``, rounded down to a page; 0 in an
            absolute layout. Of given positions the index of the row's first.
        start: position of the first token that the row shows.
        end: position past the last token.
        items: entries of the row in the output.
        sink_items: those of them that are the row's first pages, before ``first``. 0 without sinks.
        kv_len: the length that the backend reads, in tokens from ``first``.
        query: query tokens.
        reason: the `Reason` why it was clipped or truncated, or 0.
        branch_start, branch_shift: of a draft tree, the first position that is the branch's own, and how far
            behind it is in the source row. 0 without one.
        past: tokens of the whole row that later steps do not change: those before this step's.
        known: entries left out of the row, none of ``items``. 0 but in an extension.
    """

    source: Any
    first: Any
    start: Any
    end: Any
    items: Any
    sink_items: Any
    kv_len: Any
    query: Any
    reason: Any
    branch_start: Any
    branch_shift: Any
    past: Any
    known: Any


class Tile(NamedTuple):
    """A tile whose loads are issued: what the main loop carries from the load to the store.

    Attributes:
        b: the row of the batch.
        idx: index of the tile in the row.
        row: the `Row`.
        entries: the source entries, a vector of NUM_PAGE_PER_BLOCK.
        row_offset: items of all rows before it: where the row begins in a stream. In tables ``row.known``.
    """

    b: Any
    idx: Any
    row: Row
    entries: Any
    row_offset: Any


class Chunk(NamedTuple):
    """BATCH_BLOCK rows of the batch, among which a leftover tile is searched.

    Attributes:
        first_row: its first row.
        seen, end: leftover tiles of all rows before it, and of all rows up to its last.
        leftover: leftover tiles of each row, a vector.
        items: items of each row, a vector.
        offset: items of all rows before it. 0 in tables.
    """

    first_row: Any
    seen: Any
    end: Any
    leftover: Any
    items: Any
    offset: Any


class Policy(NamedTuple):
    """The values for missing ids and padding, the status word, and the number of own tiles of a row."""

    min_len: Any
    min_last: Any
    pad_multiple: Any
    pad_value: Any
    missing_id: Any
    report_missing: Any
    status_ptr: Any
    own_tiles: Any


_FLAT_VIEW = View._fields[:-3]  # the others are a group's alone
# The kernel's arguments in order, without the last, C. The kernel's signature repeats them, since Triton
# specializes on values in a tuple argument; the host passes them by name.
ARGUMENTS = (
    *(name for name in Request._fields if name != "query_start_ptr"),
    *_FLAT_VIEW,
    *map(params.second_view, _FLAT_VIEW[:-1]),  # cu_q_ptr is per batch: the first view has it
    *Policy._fields,
)
