"""The persistent buffers of a `MetadataBuilder`, and `Metadata`: the views of them that a build returns."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..params import OUTPUTS, RECORD_WORDS, TABLE, View
from .config import BuilderConfig

_MAX_CACHED = 1024  # batch sizes whose metadata a builder keeps


class Metadata:
    """What a backend reads for one step: views of the builder's buffers, None for what it does not read.

    A view is made on first access; the builder's next build overwrites its contents.

    Attributes:
        page_size: tokens per page.
        max_seq_len: tokens, host bound of every length; a longer row was cut and reported. With a shard, of
            the rank's own lengths.
        window: the `Metadata` of the sliding window, or None.

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
        slots: Tensor | None = None, query_seqlens: Tensor | None = None, tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Keeps the buffers; the properties slice them.

        Args:
            view: the buffers.
            form: TABLE or CSR.
            batch: requests.
            page_size: tokens per page.
            max_seq_len: tokens, host bound of every length.
            starts: whether rows may begin elsewhere than at token 0.
            entries: live entries of ``kv_indices``. None: unknown.
            window: the `Metadata` of the second view.
            slots: the slot mapping.
            query_seqlens: the tokens that each query token sees.
            tokens: query tokens. None: unknown.
        """
        self._slots, self._query_seqlens, self._tokens = slots, query_seqlens, tokens
        self.page_size, self.max_seq_len, self.window = page_size, max_seq_len, window
        self._view, self._form, self._batch = view, form, batch
        self._starts, self._entries = starts, entries

    @cached_property
    def page_table(self) -> Tensor | None:
        """``[batch, width]`` int32, pages."""
        return self._view.out[: self._batch] if self._form == TABLE else None

    @cached_property
    def kv_indices(self) -> Tensor | None:
        """``[entries]`` int32 or int64: the live entries if ``max_tokens`` was given and the page size is 1.

        Otherwise the whole capacity. The ``pad_entries`` of the backend's spec are allocated behind it.
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
        """``[batch]`` int32, tokens, counted from the first token of the row's first page."""
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

        0 to ``page_size - 1``: the ids and ``cache_seqlens`` start with that page, and the attention kernel
        skips this many tokens. None if all rows begin at token 0.
        """
        return self._rows("kv_start_offset") if self._starts else None

    @cached_property
    def empty_rows(self) -> Tensor | None:
        """``[batch]`` bool, rows of which this rank holds no token. None without a shard.

        A backend that reads no empty rows reads ``min_seq_len`` tokens of such a row; set its output to 0 and
        its log-sum-exp to -inf.
        """
        rows = self._rows("empty_rows")
        # the kernel writes 0 or 1 in 4 bytes, of which the first is the bool; entries are 4 bytes apart
        return None if rows is None else rows.view(torch.bool)[::4]

    @cached_property
    def slot_mapping(self) -> Tensor | None:
        """``[tokens]`` int32 or int64: the slot of each query token, if the builder has a `SlotMapping`.

        The whole buffer if ``query_lens`` was a tensor.
        """
        return None if self._slots is None else self._slots[: self._tokens]

    @cached_property
    def query_seqlens(self) -> Tensor | None:
        """``[tokens]`` int32: how many tokens each query token sees, if the `SlotMapping` asks for it."""
        return None if self._query_seqlens is None else self._query_seqlens[: self._tokens]

    @property
    def qo_indptr(self) -> Tensor | None:
        """``cu_seqlens_q`` under FlashInfer's and Aiter's name."""
        return self.cu_seqlens_q

    @property
    def kv_len_arr(self) -> Tensor | None:
        """``cache_seqlens`` under FlashInfer's name."""
        return self.cache_seqlens

    def _rows(self, name: str) -> Tensor | None:
        buffer: Tensor | None = getattr(self._view, name)
        return None if buffer is None else buffer[: self._batch + OUTPUTS[name]]


class Buffers:
    """The persistent buffers of a `MetadataBuilder`, and the `Metadata` of each batch size.

    Args:
        config: the builder's.

    Attributes:
        views: what the builder shows: one view, or two with a sliding window.
        slot_views: the slots that it writes: none, one view, or two.
    """

    def __init__(self, config: BuilderConfig) -> None:
        self.views = views = config.views()
        # by the arguments of `metadata`
        self._cached: dict[tuple[int, bool, bool, int | None], Metadata] = {}
        self._form, self._page_size = config.form, config.page_size
        self._max_seq_len = config.max_seq_len
        spec, device, max_batch_size = config.spec, config.req_to_token.device, config.max_rows
        if config.form == TABLE:
            shape: tuple[int, ...] = (max_batch_size, spec.width(config.max_seq_len, config.page_size))
        else:
            shape = (spec.entries(config.capacity, max_batch_size, config.page_size),)
        for view in views:
            # valid ids, and lengths of 0 until the first build
            allocated = (shape[0] + spec.pad_entries, *shape[1:])
            out = torch.full(allocated, spec.pad_id, dtype=getattr(torch, spec.id_dtype), device=device)
            view.out = out[: shape[0]]  # what is behind is for the backend to read
            if config.form == TABLE:  # of no build yet: nothing is known
                words = (1 + max_batch_size, RECORD_WORDS)
                view.record = torch.zeros(words, dtype=torch.int32, device=device)
            for name in (*spec.outputs, "kv_start_offset", *(["empty_rows"] if config.shard else [])):
                size = max_batch_size + OUTPUTS[name]
                setattr(view, name, torch.zeros(size, dtype=torch.int32, device=device))
        for view in views[1:]:
            if view.is_absolute or view.sink is not None:
                view.kv_start_offset = None  # its first entry is that of the row's first page
            view.cu_seqlens_q = None  # the same as the first view's
        self.slot_views = config.slot_views()
        for view in self.slot_views:
            mapping = config.slot_mapping
            assert mapping is not None
            dtype = getattr(torch, mapping.id_dtype)
            view.out = torch.full((mapping.max_tokens,), -1, dtype=dtype, device=device)
        if config.slot_mapping is not None and config.slot_mapping.query_seqlens:
            tokens = config.slot_mapping.max_tokens
            self.slot_views[0].query_seqlens = torch.zeros(tokens, dtype=torch.int32, device=device)

    def metadata(
        self, batch: int, starts: bool, window_starts: bool, entries: int | None, tokens: int | None = None
    ) -> Metadata:
        """Returns the views for a batch; cached, since engines use few batch sizes.

        Args:
            batch: requests.
            starts: whether rows may begin elsewhere than at token 0.
            window_starts: likewise, for the second view.
            entries: live entries of ``kv_indices``. None: unknown.
            tokens: query tokens. None: unknown.
        """
        key = batch, starts, window_starts, tokens
        found = self._cached.get(key) if entries is None else None
        if found is None:
            form, window = self._form, None
            slots: list[Tensor | None] = [view.out for view in self.slot_views]
            for view, has in ((self.views[1], window_starts),) if len(self.views) == 2 else ():
                window = Metadata(
                    view, form, batch, self._page_size, self._max_seq_len,
                    starts=has or view.window is not None, slots=slots[-1] if slots else None, tokens=tokens,
                )  # fmt: skip
            found = Metadata(
                self.views[0], form, batch, self._page_size, self._max_seq_len,
                starts=starts, entries=entries, window=window,
                slots=slots[0] if slots else None, tokens=tokens,
                query_seqlens=self.slot_views[0].query_seqlens if slots else None,
            )  # fmt: skip
            if entries is None:
                if len(self._cached) >= _MAX_CACHED:
                    self._cached.clear()
                self._cached[key] = found
        return found
