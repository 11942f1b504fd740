"""`Build` describes one launch: what it reads and writes. The kernel and the torch reference both take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .draft import DraftTree
from .platforms.tuning import AccessPattern, access_pattern
from .shard import Shard, local_length, ranks_between, source_tokens

if TYPE_CHECKING:
    from torch import Tensor

TABLE = 0  # one padded row per request
CSR = 1  # one ragged stream of pages or tokens
SLOTS = 2  # one ragged stream of the query tokens

INT32_MAX = (1 << 31) - 1
CAPACITY_MAX = INT32_MAX - (1 << 15)  # entries: an index past the end by a tile fits in int32
ROW_MAX = (1 << 28) - 1  # tokens in a row
MAX_BATCH = 1 << 16  # requests: the threads of a grid then fit in 32 bits
LENGTH_MAX = 1 << 28  # lengths are clipped to it when read: sums of four, and tile ends, fit in int32
SOURCE_PAGE_MAX = 1 << 16  # tokens in a source entry
RECORD_WORDS = 4  # int32 words of the record of a table's row (`xkv.kernel.extension`)
LAST_ENTRIES, LAST_TOKENS = 16, 16  # that an extension always writes of a row, if they are new
NO_IDS = -1  # in the place of the entries of a row
ID_MAX = 1 << 47  # ids are below it, so that id * page_size cannot wrap in int64; others count as missing

# outputs of a build other than the ids, and how many entries each has beyond one per request
OUTPUTS = {
    "kv_indptr": 1, "kv_last_page_len": 0, "cache_seqlens": 0, "cu_seqlens_k": 1, "cu_seqlens_q": 1,
    "kv_start_offset": 0, "empty_rows": 0,
}  # fmt: skip


@dataclass(slots=True)
class View:
    """One output of a build, and the part of each row that it shows.

    Attributes:
        out: the ids. Table: ``[>= batch, width]``, inner stride 1; CSR and slots: ``[capacity]``.
        kv_start: first token of each row, ``[batch]`` int, or None for 0.
        window: tokens that a query token sees, itself included, or None for all. A row shows its last
            ``window + q - 1`` tokens: what all of its q query tokens see.
        token_map, page_map: token id -> token id, page id -> page id, in pages of ``map_page_size`` tokens,
            ``[n]`` int, -1 for none.
        cache_seqlens: tokens from the first entry's first token to the row's end, ``[batch]`` int32.
        cu_seqlens_k: prefix sums of ``cache_seqlens``, ``[batch + 1]`` int32. Tables only.
        kv_indptr: prefix sums of the entries, ``[batch + 1]`` int32. CSR only.
        kv_last_page_len: tokens in each row's last page, ``[batch]`` int32.
        cu_seqlens_q: prefix sums of the query lengths, ``[batch + 1]`` int32, or int64 for SGLang's Triton
            backend. First view only.
        kv_start_offset: tokens of each row's first page before its first token, ``[batch]`` int32. No slots.
        empty_rows: 1 for each row without a token, otherwise 0, ``[batch]`` int32.
        record: what each row of a table holds, for extensions, ``[1 + rows, RECORD_WORDS]`` int32.
        query_seqlens: of slots, the tokens that each query token sees, itself included, and of a shard those
            of them that are the rank's: ``[>= capacity]`` int32. 0 for one outside its row, and for padding.
        sink: first tokens of each row that it shows beside a window, or None: whole pages.
        is_absolute: whether a window's row has the entries of its whole row: ``missing_id`` before it.
        max_entries: host bound of the entries of a row or the stream. None: the capacity of ``out``.
    """

    out: Tensor
    kv_start: Tensor | None = None
    window: int | None = None
    token_map: Tensor | None = None
    page_map: Tensor | None = None
    cache_seqlens: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    kv_indptr: Tensor | None = None
    kv_last_page_len: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    kv_start_offset: Tensor | None = None
    empty_rows: Tensor | None = None
    record: Tensor | None = None
    query_seqlens: Tensor | None = None
    sink: int | None = None
    is_absolute: bool = False
    max_entries: int | None = None

    def buffer_capacity(self, form: int) -> int:
        """Entries that ``out`` has room for: per row (table) or in the stream (CSR, slots)."""
        return min(int(self.out.shape[1 if form == TABLE else 0]), CAPACITY_MAX)

    def capacity(self, form: int) -> int:
        """Entries of a row or the stream that may be written."""
        size = self.buffer_capacity(form)
        return size if self.max_entries is None else min(size, self.max_entries)


@dataclass(slots=True)
class Build:
    """One launch: the source, the batch, one or two views, and the values for missing ids and padding.

    Attributes:
        req_to_token: the source, ``[rows, width]`` int32 or int64, inner stride 1; an entry is the id of
            ``source_page_size`` tokens.
        req_pool_indices: source row of each request, ``[batch]`` int32 or int64. None: row b is request b's.
        seq_lens: tokens of each request, ``[batch]`` int32 or int64.
        form: TABLE, CSR or SLOTS.
        page_size: tokens per output id, a power of two.
        source_page_size: tokens per source entry, 1 to 65,536: a multiple or a divisor of ``page_size``.
        map_page_size: tokens per entry of a page map, a power of two.
        views: one view, or two of the same form and page size.
        max_seq_len: tokens, host bound of every length. None: the width of the source.
        seq_lens_delta: tokens added to every length.
        seq_lens_delta_rows: tokens added to each length, ``[batch]`` int, or None.
        query_lens: query tokens of each request, ``[batch]`` int, or None.
        query_sign: -1, 0 or 1: ``query_lens`` times this is added to the lengths.
        query_len: those of every request, if ``query_lens`` is None.
        query_start_loc: in a group, their prefix sums in its place, ``[batch + 1]`` int32 or int64, or None.
        positions: of slots, where in its row each query token is, ``[n]`` int, or None: the last
            ``query_lens``. Those of row b are between its two entries of the first view's ``kv_indptr``,
            ``[batch + 1]`` int, which is input then. A row index of -1 is a row of padding.
        max_position: query tokens from this one on have no slot, and are not reported. None: no limit.
        min_seq_len: lengths written are at least this; entries without a token hold ``missing_id``.
        min_last_page_len: likewise of last page lengths.
        window_is_prefix_only: windows do not grow with the query tokens, whose keys come from elsewhere.
        starts_are_aligned: report a row whose ``kv_start`` is inside a page: its kernel cannot skip tokens.
        pad_value: written past the live entries; None: those entries are left unwritten.
        pad_to_multiple_of: entries; padding ends at a multiple of it, at least one. None: at the end.
        missing_id, report_missing: written for a live token without an id; whether to report it.
        indptr_is_input: ``kv_indptr`` of the first view, ``[batch]`` int32 or int64, is read, not written: it
            says where each row of a stream begins. Such a stream has no other prefix sums, and but for given
            ``positions`` no padding and no status; in tables, prefix sums have no leading 0. It is not
            trusted: a row that begins before 0 is not written, what is past the stream's end is cut, and
            where rows overlap an entry has the value of one.
        draft: a step of a draft tree, or None. Inputs are of requests, without draft tokens; row b of the
            outputs is branch ``b % topk`` of request ``b // topk``.
        shard: the rank's share of each row, or None. Inputs are the whole rows'. A "global" source has a
            ``source_page_size`` of 1.
        lens_are_local: ``seq_lens`` counts the rank's own tokens, from a row's ``kv_start`` on. No slots.
        writes_ids: False for lengths and prefix sums alone, of one table whose ``out`` is not accessed.
        clamps_tail: a row, without a start, has ``kv_indptr``'s entries, the last ones its first.
        extends: write of each row of a table only the entries that its ``record`` does not have.
        sums_fit: whether sums of the lengths of any batch fit in int32.
        out_cache_loc: slots of new tokens, -1 for none, for the last view's ``token_map``, or None.
        window_out_cache_loc: theirs by the map, ``[m]`` int; 0 from ``num_out_tokens`` (None: all) on.
        status: the status word, ``[1]`` int64, or None.
    """

    req_to_token: Tensor
    req_pool_indices: Tensor | None
    seq_lens: Tensor
    form: int
    page_size: int
    source_page_size: int
    map_page_size: int
    views: tuple[View, ...]
    max_seq_len: int | None = None
    seq_lens_delta: int = 0
    seq_lens_delta_rows: Tensor | None = None
    query_lens: Tensor | None = None
    query_sign: int = 0
    query_len: int = 0
    query_start_loc: Tensor | None = None
    positions: Tensor | None = None
    max_position: int | None = None
    min_seq_len: int = 0
    min_last_page_len: int = 0
    window_is_prefix_only: bool = False
    starts_are_aligned: bool = False
    pad_value: int | None = None
    pad_to_multiple_of: int | None = None
    missing_id: int = -1
    report_missing: bool = True
    indptr_is_input: bool = False
    draft: DraftTree | None = None
    shard: Shard | None = None
    lens_are_local: bool = False
    writes_ids: bool = True
    clamps_tail: bool = False
    extends: bool = False
    sums_fit: bool = False
    out_cache_loc: Tensor | None = None
    window_out_cache_loc: Tensor | None = None
    num_out_tokens: int | None = None
    status: Tensor | None = None

    @property
    def batch(self) -> int:
        """Rows of the batch: requests, or branches of them."""
        return int(self.seq_lens.shape[0]) * (1 if self.draft is None else self.draft.topk)

    @property
    def tiles_of_tokens(self) -> bool:
        """Whether a tile has query tokens of several rows (`xkv.kernel.query_tokens`)."""
        return self.form == SLOTS and self.query_lens is None

    @property
    def access_pattern(self) -> AccessPattern:
        """Selects the tuning rows."""
        if self.extends or self.tiles_of_tokens:
            return "extension" if self.extends else "query_tokens"
        ranks = 1 if self.form == SLOTS else ranks_between(self.shard)
        mapped = any(view.token_map is not None or view.page_map is not None for view in self.views)
        stream, mapped = self.form != TABLE, mapped and self.form != SLOTS
        return access_pattern(self.page_size * ranks, self.source_page_size, ragged=stream, mapped=mapped)

    @property
    def source_tokens(self) -> int:
        """Tokens of a row, on all ranks, that a row of the source has room for."""
        width = int(self.req_to_token.shape[1]) * self.source_page_size
        return min(source_tokens(width, self.shard), ROW_MAX)

    @property
    def max_tokens(self) -> int:
        """Tokens that a row may show: the width of the source, or the host's bound if that is less."""
        tokens = self.source_tokens
        return tokens if self.max_seq_len is None else min(tokens, self.max_seq_len)

    @property
    def translated_slots(self) -> int:
        """Entries of ``out_cache_loc`` to translate."""
        size = 0 if self.out_cache_loc is None else int(self.out_cache_loc.shape[0])
        return min(size, max(size if self.num_out_tokens is None else self.num_out_tokens, 0))

    def window_tokens(self, view: View) -> int | None:
        """Last tokens of a row that a window shows, without what the device adds for ``query_lens``."""
        device_knows = self.query_lens is not None or self.query_start_loc is not None
        if view.window is None or device_knows or self.window_is_prefix_only:
            return view.window
        return view.window + max(self.query_len, 1) - 1

    @property
    def row_items(self) -> int:
        """Upper bound of the entries in one row, from what the host knows."""
        if self.extends or not self.writes_ids:
            return 1 if self.extends else NO_IDS  # an extension has programs of several rows, however long
        capacity = max(view.buffer_capacity(self.form) for view in self.views)
        if self.positions is not None and self.pad_value is None:
            return min(capacity, int(self.positions.shape[0]))
        bound = local_length(self.source_tokens, self.shard) // self.page_size + 1 + self.min_seq_len
        if self.form == SLOTS or self.pad_value is not None or self.clamps_tail:
            return capacity
        return min(capacity, bound)

    @property
    def writes_sums(self) -> bool:
        """Whether anything other than ids is written: lengths, prefix sums or the status word."""
        if self.status is not None or self.views[0].record is not None:
            return True
        names = [name for name in OUTPUTS if not (self.indptr_is_input and name == "kv_indptr")]
        return any(getattr(view, name) is not None for view in self.views for name in names)


def second_view(name: str) -> str:
    """The name of the second view's kernel argument: out_ptr -> out2_ptr, capacity -> capacity2."""
    return f"{name[:-4]}2_ptr" if name.endswith("_ptr") else f"{name}2"
