"""`BackendSpec`: what an attention backend reads, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

POWERS_OF_TWO = tuple(1 << n for n in range(11))


@dataclass(frozen=True)
class BackendSpec:
    """What one attention backend reads, and how its tables must be laid out and padded.

    Attributes:
        name: the ``backend`` argument of `MetadataBuilder`.
        form: "table" (one padded row per request) or "csr" (one ragged stream).
        page_sizes: tokens per page that the backend supports.
        page_size: the default among them.
        outputs: what is written in addition to the ids: names of `xkv.Metadata` fields.
        id_dtype: "int32" or "int64". Lengths and prefix sums are int32 for every backend.
        width_tokens: a row's width is rounded up to a multiple of this many tokens. 1: no rule.
        packed: the row stride must equal the width.
        pad_to_tokens: rows are padded with ``pad_id`` to a multiple of this many tokens, and an empty row to
            the first. 0: no padding; the backend tolerates stale entries.
        pad_id: a valid id, for padding and for tokens without an id.
        min_seq_len: lengths written are at least this, for backends that do not support empty rows.
        min_last_page_len: last page lengths written are at least this.
        skips_tokens: whether the backend can skip the first ``Metadata.kv_start_offset`` tokens of a row's
            first page. If not, a ``kv_start`` inside a page is reported.
        window_is_prefix_only: a sliding window's view covers the prefix alone: the backend gets the keys of
            the query tokens from elsewhere, so that the window does not grow with their number.
        why: the reasons for these values, and the sources they follow.

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
    pad_to_tokens: int = 0
    pad_id: int = 0
    min_seq_len: int = 0
    min_last_page_len: int = 0
    skips_tokens: bool = False
    window_is_prefix_only: bool = False

    def pad_to_multiple_of(self, page_size: int) -> int | None:
        """Returns the pages that rows are padded to a multiple of; None: no padding."""
        return max(self.pad_to_tokens // page_size, 1) if self.pad_to_tokens else None

    def width(self, max_context_len: int, page_size: int) -> int:
        """Returns the pages per row, rounded up as ``width_tokens`` requires."""
        unit = max(self.width_tokens // page_size, 1)
        return -(-max_context_len // (page_size * unit)) * unit


TRITON = BackendSpec(
    "triton", "csr", (1,), 1, ("kv_indptr", "cu_seqlens_q"), id_dtype="int64", window_is_prefix_only=True,
    why="SGLang's Triton backend takes int64 token slots and int32 indptr, on both vendors, and masks the"
    " entries past the live ones; its window is that of the prefix, to which its extend kernel adds the"
    " query tokens (layers/attention/triton_backend.py)",
)  # fmt: skip
