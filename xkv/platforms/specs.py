"""`BackendSpec`: what an attention backend reads, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

POWERS_OF_TWO = tuple(1 << n for n in range(11))

# what each form can have in addition to the ids: fields of `xkv.Metadata`
FORM_OUTPUTS = {
    "table": ("kv_last_page_len", "cache_seqlens", "cu_seqlens_k", "cu_seqlens_q"),
    "csr": ("kv_indptr", "kv_last_page_len", "cache_seqlens", "cu_seqlens_q"),
}
_INT32_MAX = (1 << 31) - 1
_MOST = 1 << 16  # tokens or entries of padding


@dataclass(frozen=True)
class BackendSpec:
    """What one attention backend reads, and how its tables must be laid out and padded.

    `xkv.backends` lists those that xkv knows. One of your own is passed to `MetadataBuilder` in place of a
    name. Its fields are checked when it is made.

    Attributes:
        name: the ``backend`` argument of `MetadataBuilder`; of a spec of your own any name, for messages.
        form: "table" (one padded row per request) or "csr" (one ragged stream).
        page_sizes: tokens per page that the backend supports: powers of two from 1 to 1024.
        page_size: the default among them.
        outputs: what is written in addition to the ids: names of `xkv.Metadata` fields. Both forms:
            kv_last_page_len, cache_seqlens, cu_seqlens_q; tables: cu_seqlens_k; CSR: kv_indptr.
            (``kv_start_offset`` is always written where rows can begin inside a page.)
        why: the reasons for these values, and the sources they follow.
        id_dtype: "int32" or "int64". Lengths and prefix sums are int32 for every backend.
        width_tokens: a row's width is rounded up to a multiple of this many tokens, a power of two. 1: no
            rule. Tables only.
        packed: the row stride must equal the width. Tables only.
        pad_to_tokens: rows, or the stream, are padded with ``pad_id`` to a multiple of this many tokens, a
            power of two, and an empty row to the first. 0: no padding; the backend tolerates stale entries.
        pad_entries: entries that the backend may read past the live ones of the stream. They are allocated
            behind ``kv_indices`` and hold valid ids: ``pad_id``, or those of an earlier build. CSR only.
        pad_id: a valid id, for padding and for tokens without an id.
        min_seq_len: tokens, at most the smallest page size; lengths written are at least this, for backends
            that do not support empty rows. The entry of an empty row holds ``pad_id``.
        min_last_page_len: the same for the last page lengths.
        skips_tokens: whether the backend can skip the first ``Metadata.kv_start_offset`` tokens of a row's
            first page. If not, a ``kv_start`` inside a page is reported.
        window_is_prefix_only: a sliding window's view covers the prefix alone: the backend gets the keys of
            the query tokens from elsewhere, so that the window does not grow with their number.

    Raises:
        TypeError: a field of another type. The message names the field.
        ValueError: a field out of its range, or one that the form does not have. Likewise.

    Examples:
        A spec that xkv knows:

        >>> import xkv
        >>> (spec,) = (spec for spec in xkv.backends("cpu") if spec.name == "flashmla")
        >>> spec.form, spec.page_sizes, spec.outputs
        ('table', (64,), ('cache_seqlens', 'cu_seqlens_k', 'cu_seqlens_q'))
        >>> spec.width(max_context_len=1000, page_size=64)  # pages of a row
        16

        One of your own, for a kernel that reads int64 pages of 16 tokens in whole 64-token tiles:

        >>> import torch
        >>> mine = xkv.BackendSpec(
        ...     "mine", "table", page_sizes=(16,), page_size=16, outputs=("cache_seqlens",),
        ...     id_dtype="int64", width_tokens=64, pad_to_tokens=64,
        ... )
        >>> req_to_token = torch.arange(512, dtype=torch.int32).view(2, 256)
        >>> builder = xkv.MetadataBuilder(mine, req_to_token, max_batch_size=2, max_context_len=100)
        >>> meta = builder.build(torch.tensor([1, 0]), torch.tensor([70, 5]))
        >>> meta.page_table
        tensor([[16, 17, 18, 19, 20,  0,  0,  0],
                [ 0,  0,  0,  0,  0,  0,  0,  0]])
        >>> meta.cache_seqlens
        tensor([70,  5], dtype=torch.int32)
        >>> xkv.BackendSpec("mine", "csr", (16,), 32, ("kv_indptr",))
        Traceback (most recent call last):
        ValueError: page_size of BackendSpec 'mine' must be one of its page_sizes, 16, got 32
    """

    name: str
    form: Literal["table", "csr"]
    page_sizes: tuple[int, ...]
    page_size: int
    outputs: tuple[str, ...]
    why: str = ""
    id_dtype: Literal["int32", "int64"] = "int32"
    width_tokens: int = 1
    packed: bool = False
    pad_to_tokens: int = 0
    pad_entries: int = 0
    pad_id: int = 0
    min_seq_len: int = 0
    min_last_page_len: int = 0
    skips_tokens: bool = False
    window_is_prefix_only: bool = False

    def __post_init__(self) -> None:
        """Checks the fields."""
        self._expect("name", isinstance(self.name, str), "a str")
        self._require("name", bool(self.name), "not be empty")
        self._expect("why", isinstance(self.why, str), "a str")
        self._expect("form", isinstance(self.form, str), "a str")
        self._require("form", self.form in FORM_OUTPUTS, "be 'table' or 'csr'")
        self._require("id_dtype", self.id_dtype in ("int32", "int64"), "be 'int32' or 'int64'")
        for name in ("packed", "skips_tokens", "window_is_prefix_only"):
            self._expect(name, isinstance(getattr(self, name), bool), "a bool")
        self._check_page_sizes()
        self._check_outputs()
        smallest = min(self.page_sizes)
        for name, low, high in (
            ("width_tokens", 1, _MOST), ("pad_to_tokens", 0, _MOST), ("pad_entries", 0, _MOST),
            ("pad_id", -_INT32_MAX - 1, _INT32_MAX),
            ("min_seq_len", 0, smallest), ("min_last_page_len", 0, smallest),
        ):  # fmt: skip
            value = getattr(self, name)
            self._expect(name, isinstance(value, int) and not isinstance(value, bool), "an int")
            self._require(name, low <= value <= high, f"be from {low} to {high}")
        for name in ("width_tokens", "pad_to_tokens"):
            value = getattr(self, name)
            self._require(name, not value & (value - 1), "be a power of two")
        other = "csr" if self.form == "table" else "table"
        for name, form, default in (
            ("width_tokens", "table", 1), ("packed", "table", False), ("pad_entries", "csr", 0),
        ):  # fmt: skip
            has = self.form == form or getattr(self, name) == default
            self._require(name, has, f"be {default}, as form is {self.form!r}, not {other!r}")
        has_room = self.form == "csr" or self.pad_to_tokens <= max(self.width_tokens, smallest)
        room = f"be at least pad_to_tokens, {self.pad_to_tokens}, so that a row has room for its padding"
        self._require("width_tokens", has_room, room)

    def _check_page_sizes(self) -> None:
        sizes = self.page_sizes
        self._expect("page_sizes", isinstance(sizes, tuple), "a tuple of ints")
        self._require("page_sizes", bool(sizes), "not be empty")
        for size in sizes:
            is_int = isinstance(size, int) and not isinstance(size, bool)
            self._require("page_sizes", is_int and size in POWERS_OF_TWO, "be powers of two from 1 to 1024")
        among = self.page_size in sizes and not isinstance(self.page_size, bool)
        self._require("page_size", among, f"be one of its page_sizes, {', '.join(map(str, sizes))}")

    def _check_outputs(self) -> None:
        self._expect("outputs", isinstance(self.outputs, tuple), "a tuple of str")
        known = FORM_OUTPUTS[self.form]
        right = all(name in known for name in self.outputs) and len({*self.outputs}) == len(self.outputs)
        self._require("outputs", right, f"be some of {', '.join(known)}, as form is {self.form!r}, each once")

    def _expect(self, name: str, right: bool, kind: str) -> None:
        if not right:
            got = type(getattr(self, name)).__name__
            raise TypeError(f"{name} of BackendSpec {self.name!r} must be {kind}, got {got}")

    def _require(self, name: str, right: bool, what: str) -> None:
        if not right:
            got = getattr(self, name)
            raise ValueError(f"{name} of BackendSpec {self.name!r} must {what}, got {got!r}")

    def pad_to_multiple_of(self, page_size: int) -> int | None:
        """Returns the pages that rows are padded to a multiple of; None: no padding."""
        return max(self.pad_to_tokens // page_size, 1) if self.pad_to_tokens else None

    def width(self, max_context_len: int, page_size: int) -> int:
        """Returns the pages per row, rounded up as ``width_tokens`` requires."""
        unit = max(self.width_tokens // page_size, 1)
        return -(-max_context_len // (page_size * unit)) * unit

    def entries(self, max_tokens: int, max_batch_size: int, page_size: int) -> int:
        """Returns the capacity of a CSR stream of so many tokens and rows, without ``pad_entries``."""
        # every row can leave a page partly filled at either end; an empty one has an entry if lengths have
        # a minimum
        a_row = 2 if page_size > 1 else int(self.min_seq_len > 0)
        unit = self.pad_to_multiple_of(page_size) or 1
        return -(-(max_tokens // page_size + a_row * max_batch_size) // unit) * unit


TRITON = BackendSpec(
    "triton", "csr", (1,), 1, ("kv_indptr", "cu_seqlens_q"), id_dtype="int64", window_is_prefix_only=True,
    why="SGLang's Triton backend takes int64 token slots and int32 indptr, on both vendors, and masks the"
    " entries past the live ones; its window is that of the prefix, to which its extend kernel adds the"
    " query tokens (layers/attention/triton_backend.py)",
)  # fmt: skip
