"""What each attention backend reads, as data: one frozen `BackendSpec` a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

POWERS_OF_TWO = tuple(1 << n for n in range(11))


@dataclass(frozen=True)
class BackendSpec:
    """The index contract of one attention backend.

    Attributes:
        name: what `MetadataBuilder` is asked for.
        form: "table" (one padded row a request) or "csr" (one ragged stream).
        page_sizes: tokens of a page that the backend takes.
        page_size: the default among them.
        outputs: what beside the ids is written: names of `xkv.Metadata` fields.
        id_dtype: "int32" or "int64". Lengths and prefix sums are int32 for every backend.
        width_tokens: a row's width is rounded up to whole tiles of so many tokens; 1: no rule.
        packed: the row stride must equal the width.
        tail_tokens: rows are filled with ``fill_id`` to the end of a tile of so many tokens, and an
            empty row has one such tile; 0: stale entries are tolerated and left.
        fill_id: a valid id, for that fill and for a token without an id.
        min_seq_len: the least length written, for backends that do not take an empty row.
        min_last_page_len: the least last page length written.
        skips_tokens: whether the backend can be told to skip the tokens of a row's first page before the
            row's first, ``Metadata.kv_start_offset`` of them. Where it cannot, a ``kv_start`` inside a page
            is reported.
        window_is_prefix_only: a sliding window's view ends with the prefix: the backend gets the keys of
            the query tokens from elsewhere, so that several of them need no more of it than one.
        why: what the contract rests on, and the sources it follows.

    Examples:
        >>> import xkv
        >>> (spec,) = (spec for spec in xkv.backends("cpu") if spec.name == "flashmla")
        >>> spec.form, spec.page_sizes, spec.outputs
        ('table', (64,), ('cache_seqlens', 'cu_seqlens_k', 'cu_seqlens_q'))
        >>> spec.width(max_context_len=1000, page_size=64)  # pages of a row
        16
    """

    name: str
    form: Literal["table", "csr"]
    page_sizes: tuple[int, ...]
    page_size: int
    outputs: tuple[str, ...]
    why: str
    id_dtype: Literal["int32", "int64"] = "int32"
    width_tokens: int = 1
    packed: bool = False
    tail_tokens: int = 0
    fill_id: int = 0
    min_seq_len: int = 0
    min_last_page_len: int = 0
    skips_tokens: bool = False
    window_is_prefix_only: bool = False

    def pad_to_multiple_of(self, page_size: int) -> int | None:
        """Pages of the tile that rows are filled to; None: rows are left as they are."""
        return max(self.tail_tokens // page_size, 1) if self.tail_tokens else None

    def width(self, max_context_len: int, page_size: int) -> int:
        """Pages of a row, as the width rule has it."""
        unit = max(self.width_tokens // page_size, 1)
        return -(-max_context_len // (page_size * unit)) * unit


TRITON = BackendSpec(
    "triton", "csr", (1,), 1, ("kv_indptr", "cu_seqlens_q"), id_dtype="int64", window_is_prefix_only=True,
    why="SGLang's Triton backend takes int64 token slots and int32 indptr, on both vendors, and masks"
    " what lies past the live entries; its window is that of the prefix, to which its extend kernel adds"
    " the query tokens (layers/attention/triton_backend.py)",
)  # fmt: skip
