"""How the kernel groups its arguments, and the constants that Triton reads only as constexprs."""

from typing import Any, NamedTuple

import triton.language as tl

from .. import params
from ..status import Reason

TABLE = tl.constexpr(params.TABLE)
CSR = tl.constexpr(params.CSR)
SLOTS = tl.constexpr(params.SLOTS)
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
ID_MAX = tl.constexpr(params.ID_MAX)


class Config(str):
    """All that a compiled kernel is specialised on, beside dtypes and which pointers are None.

    It is text, with its fields as attributes: Triton writes constexprs as JSON once anybody listens
    to what it compiles, and keys its caches by their text.
    """

    PAGE_SIZE: int
    SOURCE_PAGE_SIZE: int
    MAP_PAGE_SIZE: int
    FORM: int
    TAIL: bool
    NUM_PAGE_PER_BLOCK: int
    BATCH_BLOCK: int
    BALANCE: bool
    INT64_TILES: bool
    USE_PDL: bool
    PDL_TRIGGER_EARLY: bool
    REDUCE_STATUS: bool
    INDPTR_IS_INPUT: bool
    VEC_16B: bool
    WINDOW_IS_PREFIX_ONLY: bool
    STARTS_ARE_ALIGNED: bool

    def __new__(cls, *values: int) -> "Config":
        """Takes a value for each field, in their order."""
        fields = dict(zip(cls.__annotations__, values, strict=True))
        self = super().__new__(cls, " ".join(f"{name}={value}" for name, value in fields.items()))
        vars(self).update(fields)
        return self


class Request(NamedTuple):
    """The source and the batch. A step is the int32 words of an entry: 1, or 2 for int64."""

    src_ptr: Any
    src_stride: Any
    src_rows: Any
    src_tokens: Any
    rows_ptr: Any
    rows_step: Any
    lens_ptr: Any
    lens_step: Any
    batch: Any
    delta_ptr: Any
    delta_step: Any
    delta: Any
    query_ptr: Any
    query_step: Any
    query_sign: Any
    query_len: Any


class View(NamedTuple):
    """One output and the part of each row that it shows."""

    start_ptr: Any
    start_step: Any
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
    cu_q_ptr: Any


class Row(NamedTuple):
    """One row of the batch (scalars) or several (vectors), cut to what may be read and, in tables, written.

    Attributes:
        source: the row of the source.
        first: position of the first token of the first item.
        start: position of the first token that is asked for, on the same page.
        end: position past the last token.
        items: entries that the row has in the output.
        kv_len: the length that the backend sees, in tokens from ``first`` on.
        query: query tokens.
        reason: why it had to be cut; 0: it was not.
    """

    source: Any
    first: Any
    start: Any
    end: Any
    items: Any
    kv_len: Any
    query: Any
    reason: Any


class Tile(NamedTuple):
    """A tile whose loads are issued: what the main loop carries from the load to the store.

    Attributes:
        b: the row of the batch.
        idx: which tile of the row.
        row: what the row shows.
        entries: the source entries, a vector of NUM_PAGE_PER_BLOCK.
        row_offset: items of all rows before it, where the row begins in a stream; 0 in tables.
    """

    b: Any
    idx: Any
    row: Row
    entries: Any
    row_offset: Any


class Policy(NamedTuple):
    """What stands in where no id is, where errors are reported, and the tiles of a row that are its own."""

    min_len: Any
    min_last: Any
    tail: Any
    pad_value: Any
    missing_id: Any
    report_missing: Any
    status_ptr: Any
    own_tiles: Any


# The kernel's arguments but for the last, C, in their order. The kernel's own text repeats it, since Triton
# specializes what comes in a tuple; the host goes by name.
ARGUMENTS = (
    *Request._fields,
    *View._fields,
    *map(params.second, View._fields[:-1]),  # cu_q_ptr is the batch's: the first view alone has it
    *Policy._fields,
)
