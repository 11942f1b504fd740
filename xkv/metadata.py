"""MetadataBuilder: one backend's persistent buffers, and its one launch a step."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xkv import checks, launch, oracle, specs
from xkv.build import CSR, INT32_MAX, ROW_MAX, TABLE, Build, View
from xkv.captured import CapturedBuild
from xkv.platforms import platform
from xkv.status import Status

# what a build writes beside the ids, and how many entries more than the batch has each of them
OUTPUTS = {
    "kv_indptr": 1,
    "kv_last_page_len": 0,
    "cache_seqlens": 0,
    "cu_seqlens_k": 1,
    "cu_seqlens_q": 1,
}


@dataclass(slots=True)
class Metadata:
    """What a backend reads of one step: views of the builder's buffers. What it does not read is None.

    Attributes:
        page_size: tokens of a page.
        max_seq_len: tokens, host bound of every length.
        page_table: ``[batch, width]`` int32, pages.
        kv_indices: ``[entries]`` int32 or int64: the live entries where ``max_tokens`` was given and
            the page size is 1, else the whole capacity.
        kv_indptr: ``[batch + 1]`` int32, entries.
        kv_last_page_len: ``[batch]`` int32, tokens.
        cache_seqlens: ``[batch]`` int32, tokens from the first page's first token.
        cu_seqlens_k: ``[batch + 1]`` int32, prefix sums of ``cache_seqlens``.
        cu_seqlens_q: ``[batch + 1]`` int32, prefix sums of the query lengths.
        window: the same for the sliding window, or None.
    """

    page_size: int
    max_seq_len: int
    page_table: Tensor | None = None
    kv_indices: Tensor | None = None
    kv_indptr: Tensor | None = None
    kv_last_page_len: Tensor | None = None
    cache_seqlens: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    window: Metadata | None = None

    @property
    def qo_indptr(self) -> Tensor | None:
        """``cu_seqlens_q`` by the name that FlashInfer and Aiter have for it."""
        return self.cu_seqlens_q

    @property
    def kv_len_arr(self) -> Tensor | None:
        """``cache_seqlens`` by the name that FlashInfer has for it."""
        return self.cache_seqlens


class MetadataBuilder:
    """Builds all that one attention backend reads, in one launch a step.

    The buffers are made once and keep their addresses for life, so a build may be captured in a CUDA
    or HIP graph, once for each padded batch size, and replayed with other rows and lengths. A padded
    row has length 0, or pool index 0 and a small length. One builder serves one stream at a time.

    Args:
        backend: a name that `xkv.backends` lists, such as "flashmla" or "aiter_mla".
        req_to_token: ``[rows, width]`` int32 or int64, as in `xkv.build_page_table`; kept.
        max_batch_size: requests, 1 to 65,536.
        max_context_len: tokens of the longest row, draft tokens included; at most what a row of
            ``req_to_token`` holds.
        page_size: one of the backend's page sizes; None: its default.
        source_page_size: tokens of an entry of ``req_to_token``: 1 (SGLang) or the block size (vLLM).
        max_tokens: tokens, capacity of ``kv_indices`` over all rows (CSR backends); None:
            ``max_batch_size * max_context_len``.
        sliding_window: tokens; a second view shows at most that many last tokens of each row.
        window_token_map: ``[n]`` int, slot -> slot of the window's pool, negative for none; a second
            view goes through it, whole where ``sliding_window`` is None.
        page_map: ``[m]`` int, page -> page of the first view, negative for none.

    Attributes:
        spec: the backend's `BackendSpec`.
        page_size: tokens of a page.
        status: where builds report what they had to cut; see `check`.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: a backend or page size that is not there (the message lists what is), or an
            argument out of its range.
    """

    def __init__(
        self,
        backend: str,
        req_to_token: Tensor,
        *,
        max_batch_size: int,
        max_context_len: int,
        page_size: int | None = None,
        source_page_size: int = 1,
        max_tokens: int | None = None,
        sliding_window: int | None = None,
        window_token_map: Tensor | None = None,
        page_map: Tensor | None = None,
    ) -> None:
        checks.source(req_to_token, source_page_size)
        device = req_to_token.device
        self.spec = spec = specs.find(backend, platform(device).vendor)
        self.page_size = spec.page_size if page_size is None else page_size
        if self.page_size not in spec.page_sizes:
            allowed = ", ".join(map(str, spec.page_sizes))
            raise ValueError(f"page_size for {backend!r} must be one of {allowed}, got {page_size}")
        self.max_batch_size = checks.integer("max_batch_size", max_batch_size, 1, 65536)
        tokens = req_to_token.shape[1] * source_page_size
        self.max_context_len = checks.integer("max_context_len", max_context_len, 1, tokens)
        most = min(max_batch_size * max_context_len, INT32_MAX)
        self.max_tokens = most if max_tokens is None else checks.integer(
            "max_tokens", max_tokens, 1, INT32_MAX
        )  # fmt: skip
        if sliding_window is not None:
            checks.integer("sliding_window", sliding_window, 1, ROW_MAX)
        for name, ids in (("window_token_map", window_token_map), ("page_map", page_map)):
            if ids is not None:
                checks.tensor(name, ids, 1, req_to_token)
        self.req_to_token = req_to_token
        self.source_page_size = source_page_size
        self.status = Status(device)
        self._batches: dict[int, tuple[tuple[View, ...], Metadata]] = {}
        self._always_check = os.environ.get("XKV_CHECK", "0") not in ("", "0")
        self._views = [self._buffers(View(torch.empty(0), page_map=page_map))]
        if sliding_window is not None or window_token_map is not None:
            view = View(torch.empty(0), window=sliding_window, token_map=window_token_map)
            self._views.append(self._buffers(view))
            self._views[1].cu_seqlens_q = None  # the same as the first view's

    def _buffers(self, view: View) -> View:
        """The persistent buffers of a view: valid ids and lengths of zero until the first build."""
        spec, batch, device = self.spec, self.max_batch_size, self.req_to_token.device
        if spec.form == "table":
            shape: tuple[int, ...] = (batch, spec.width(self.max_context_len, self.page_size))
        else:
            # every row can leave a page partly filled at either end
            shape = (self.max_tokens // self.page_size + 2 * batch * (self.page_size > 1),)
        view.out = torch.full(shape, spec.fill_id, dtype=getattr(torch, spec.id_dtype), device=device)
        for name in spec.outputs:
            setattr(view, name, torch.zeros(batch + OUTPUTS[name], dtype=torch.int32, device=device))
        return view

    def _of_batch(self, batch: int) -> tuple[tuple[View, ...], Metadata]:
        """The buffers' views for a batch size, made once."""
        if batch not in self._batches:
            views = tuple(_cut(view, batch, self.spec.form) for view in self._views)
            metas = [self._metadata(view) for view in views]
            metas[0].window = metas[1] if len(metas) == 2 else None
            self._batches[batch] = views, metas[0]
        return self._batches[batch]

    def _metadata(self, view: View) -> Metadata:
        ids = "page_table" if self.spec.form == "table" else "kv_indices"
        outputs: dict[str, Any] = {ids: view.out} | {name: getattr(view, name) for name in OUTPUTS}
        return Metadata(self.page_size, self.max_context_len, **outputs)

    def build(
        self,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        *,
        seq_lens_delta: int | Tensor = 0,
        query_lens: int | Tensor = 1,
        query_lens_sign: int = 0,
        kv_start: Tensor | None = None,
        window_kv_start: Tensor | None = None,
        max_tokens: int | None = None,
    ) -> Metadata:
        """Writes one step's metadata: one launch, no sync, no allocation; safe in a graph.

        Row b shows the tokens ``[kv_start[b], length)`` of row ``req_pool_indices[b]``, where
        ``length = seq_lens[b] + seq_lens_delta + query_lens_sign * query_lens[b]``. The modes:

        * decode: nothing more; draft decode step s: ``seq_lens_delta=s + 1``
        * verify of n draft tokens: ``seq_lens_delta=n, query_lens=n``
        * ragged verify: ``query_lens=lens, query_lens_sign=1``
        * draft extend: ``query_lens=extend_lens, query_lens_sign=-1, seq_lens_delta=window``, or a
          ``seq_lens_delta`` for each row

        What only the device knows is cut, never read or written out of bounds; see `check`.

        Args:
            req_pool_indices: ``[batch]`` int32 or int64, rows of ``req_to_token``.
            seq_lens: ``[batch]`` int32 or int64, tokens.
            seq_lens_delta: tokens added to every length (int) or to each (``[batch]`` int).
            query_lens: query tokens of every request (int) or of each (``[batch]`` int): what
                ``cu_seqlens_q`` sums.
            query_lens_sign: -1, 0 or 1: whether ``query_lens`` (a tensor) is added to the lengths.
            kv_start: ``[batch]`` int, first token of each row, for chunks; None: 0.
            window_kv_start: the same for the window's view, beside ``sliding_window``.
            max_tokens: tokens, the sum of all lengths, where the host knows it: at page size 1
                ``kv_indices`` is then a view of that length.

        Returns:
            Views of the builder's buffers for this batch; the next build overwrites them.

        Raises:
            TypeError: an argument of another type or dtype.
            ValueError: a batch larger than ``max_batch_size``, another device, or an argument out of
                its range. Nothing was written.
            StatusError: with XKV_CHECK=1, a row had to be cut.
        """
        source, spec = self.req_to_token, self.spec
        checks.tensor("seq_lens", seq_lens, 1, source)
        batch = seq_lens.shape[0]
        if batch > self.max_batch_size:
            raise ValueError(
                f"seq_lens must have at most max_batch_size={self.max_batch_size} entries, got {batch}"
            )
        checks.per_row("req_pool_indices", req_pool_indices, source, batch)
        checks.integer("query_lens_sign", query_lens_sign, -1, 1)
        views, meta = self._of_batch(batch)
        build = Build(
            source, req_pool_indices, seq_lens, TABLE if spec.form == "table" else CSR,
            self.page_size, self.source_page_size, self.page_size, views,
            query_sign=query_lens_sign, min_seq_len=spec.min_seq_len,
            min_last_page_len=spec.min_last_page_len, missing_id=spec.fill_id,
            tail_tile=spec.tail_tile(self.page_size), status=self.status.word,
        )  # fmt: skip
        if spec.tail_tokens:
            build.tail_fill = spec.fill_id
        if isinstance(seq_lens_delta, Tensor):
            build.seq_lens_delta_rows = checks.per_row("seq_lens_delta", seq_lens_delta, source, batch)
        else:
            build.seq_lens_delta = checks.integer("seq_lens_delta", seq_lens_delta, -ROW_MAX, ROW_MAX)
        if isinstance(query_lens, Tensor):
            build.query_lens = checks.per_row("query_lens", query_lens, source, batch)
        else:
            build.query_len = checks.integer("query_lens", query_lens, 0, INT32_MAX // (batch + 1))
            if query_lens_sign:
                raise ValueError("query_lens_sign needs query_lens as a tensor, got an int")
        for name, start in (("kv_start", kv_start), ("window_kv_start", window_kv_start)):
            if start is not None:
                checks.per_row(name, start, source, batch)
        build.views[0].kv_start = kv_start
        if len(build.views) == 2:
            build.views[1].kv_start = window_kv_start
        elif window_kv_start is not None:
            raise ValueError("window_kv_start needs a builder with a sliding window, got one without")
        if max_tokens is not None:
            checks.integer("max_tokens", max_tokens, 0, self.max_tokens)
        if self._always_check and not oracle.capturing(source):
            oracle.run_checked(build, self.status)
        else:
            launch.run(build)
        if max_tokens is not None and meta.kv_indices is not None and self.page_size == 1:
            return replace(meta, kv_indices=meta.kv_indices[:max_tokens])
        return meta

    def capture(
        self, batch_size: int, *, pad_seq_len: int = 0, **options: Any
    ) -> CapturedBuild:
        """Captures a build of this padded batch size in a graph of its own. Syncs.

        Args:
            batch_size: requests, padded ones included; at most ``max_batch_size``.
            pad_seq_len: tokens of a padded row, whose pool index is 0.
            **options: as in `build`; its tensors ``[batch_size]`` are read at every replay.

        Returns:
            What replays it.
        """
        return CapturedBuild(self, batch_size, pad_seq_len, options)

    def check(self) -> None:
        """Raises what the builds since the last check had to cut. Syncs; not for capture.

        Raises:
            StatusError: names the first offending row and the reason.
        """
        self.status.check()


def _cut(view: View, batch: int, form: str) -> View:
    """The view for the first ``batch`` rows."""
    parts = {
        name: None if buffer is None else buffer[: batch + more]
        for name, more in OUTPUTS.items()
        for buffer in (getattr(view, name),)
    }
    return replace(view, out=view.out[:batch] if form == "table" else view.out, **parts)
