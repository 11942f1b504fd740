"""The persistent buffers of a `MetadataBuilder`, and the views of them that a step returns."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..params import OUTPUTS, TABLE, View
from ..platforms.specs import BackendSpec


class Metadata:
    """What a backend reads of one step: views of the builder's buffers. What it does not read is None.

    A view is made when it is first asked for; what it shows is overwritten by the builder's next build.

    Attributes:
        page_size: tokens of a page.
        max_seq_len: tokens, host bound of every length; what is longer was cut and reported.
        window: the same for the sliding window, or None.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> builder = xkv.MetadataBuilder(
        ...     "flashinfer_mla", req_to_token, max_batch_size=8, max_context_len=8, page_size=4
        ... )
        >>> meta = builder.build(torch.tensor([1, 0]), torch.tensor([7, 3]))
        >>> meta.kv_indptr, meta.kv_len_arr
        (tensor([0, 2, 3], dtype=torch.int32), tensor([7, 3], dtype=torch.int32))
        >>> meta.kv_indices[:3]  # the whole capacity; the first kv_indptr[-1] entries are live
        tensor([4, 0, 2], dtype=torch.int32)
        >>> meta.page_table is None  # this backend reads CSR
        True
    """

    def __init__(
        self, view: View, form: int, batch: int, page_size: int, max_seq_len: int, *,
        starts: bool = False, entries: int | None = None, window: Metadata | None = None,
    ) -> None:  # fmt: skip
        """Views of buffers.

        Args:
            view: the buffers.
            form: TABLE or CSR.
            batch: requests.
            page_size: tokens of a page.
            max_seq_len: host bound of every length.
            starts: whether rows may begin elsewhere than at token 0.
            entries: live entries of ``kv_indices``; None: unknown.
            window: of the second view.
        """
        self.page_size, self.max_seq_len, self.window = page_size, max_seq_len, window
        self._view, self._form, self._batch = view, form, batch
        self._starts, self._entries = starts, entries

    @cached_property
    def page_table(self) -> Tensor | None:
        """``[batch, width]`` int32, pages."""
        return self._view.out[: self._batch] if self._form == TABLE else None

    @cached_property
    def kv_indices(self) -> Tensor | None:
        """``[entries]`` int32 or int64: the live entries where ``max_tokens`` was given, at page size 1.

        Else the whole capacity.
        """
        return None if self._form == TABLE else self._view.out[: self._entries]

    @cached_property
    def kv_indptr(self) -> Tensor | None:
        """``[batch + 1]`` int32, entries."""
        return self._rows("kv_indptr")

    @cached_property
    def kv_last_page_len(self) -> Tensor | None:
        """``[batch]`` int32, tokens."""
        return self._rows("kv_last_page_len")

    @cached_property
    def cache_seqlens(self) -> Tensor | None:
        """``[batch]`` int32, tokens from the first page's first token."""
        return self._rows("cache_seqlens")

    @cached_property
    def cu_seqlens_k(self) -> Tensor | None:
        """``[batch + 1]`` int32, prefix sums of ``cache_seqlens``."""
        return self._rows("cu_seqlens_k")

    @cached_property
    def cu_seqlens_q(self) -> Tensor | None:
        """``[batch + 1]`` int32, prefix sums of the query lengths."""
        return self._rows("cu_seqlens_q")

    @cached_property
    def kv_start_offset(self) -> Tensor | None:
        """``[batch]`` int32, tokens of each row's first page before the row's first token.

        0 to ``page_size - 1``: the ids and ``cache_seqlens`` count from that page on, and a reader skips so
        many. None where rows begin at token 0.
        """
        return self._rows("kv_start_offset") if self._starts else None

    @property
    def qo_indptr(self) -> Tensor | None:
        """``cu_seqlens_q`` by the name that FlashInfer and Aiter have for it."""
        return self.cu_seqlens_q

    @property
    def kv_len_arr(self) -> Tensor | None:
        """``cache_seqlens`` by the name that FlashInfer has for it."""
        return self.cache_seqlens

    def _rows(self, name: str) -> Tensor | None:
        buffer: Tensor | None = getattr(self._view, name)
        return None if buffer is None else buffer[: self._batch + OUTPUTS[name]]


def allocate(view: View, spec: BackendSpec, shape: tuple[int, ...], batch: int, device: torch.device) -> View:
    """Gives a view its buffers: valid ids, and lengths of zero until the first build."""
    view.out = torch.full(shape, spec.fill_id, dtype=getattr(torch, spec.id_dtype), device=device)
    for name in (*spec.outputs, "kv_start_offset"):
        setattr(view, name, torch.zeros(batch + OUTPUTS[name], dtype=torch.int32, device=device))
    return view
