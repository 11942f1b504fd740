"""MetadataBuilder: one backend's persistent buffers, and its one launch a step."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import arguments, dispatch, switches
from ..launch import compile
from ..launch.guards import run_untraced
from ..params import CSR, INT32_MAX, MAX_BATCH, ROW_MAX, TABLE, Build, View
from ..platforms.detect import platform
from ..status import Status
from . import buffers
from .buffers import Metadata
from .graph import CapturedBuild
from .step import Inputs, Step

_MOST_KEPT = 1024  # batches whose metadata a builder keeps


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
            ``req_to_token`` holds. A longer row is cut to it and reported.
        page_size: one of the backend's page sizes; None: its default.
        source_page_size: tokens of an entry of ``req_to_token``: 1 (SGLang) or the block size (vLLM).
        max_tokens: tokens, capacity of ``kv_indices`` over all rows (CSR backends); None:
            ``max_batch_size * max_context_len``.
        sliding_window: tokens that a query token sees, its own the last of them. A second view shows of each
            row the last ``sliding_window + q - 1`` tokens: what all of its q query tokens see. (A backend
            whose spec says ``window_is_prefix_only`` gets the last ``sliding_window``.)
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

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> builder = xkv.MetadataBuilder(
        ...     "flash_attention", req_to_token, max_batch_size=8, max_context_len=8, page_size=4
        ... )
        >>> meta = builder.build(torch.tensor([1, 0]), torch.tensor([7, 3]), seq_lens_delta=1)
        >>> meta.page_table
        tensor([[4, 0],
                [2, 0]], dtype=torch.int32)
        >>> meta.cache_seqlens, meta.cu_seqlens_q
        (tensor([8, 4], dtype=torch.int32), tensor([0, 1, 2], dtype=torch.int32))
        >>> builder.check()  # raises StatusError if a row had to be cut
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
        self.source_page_size = arguments.source(req_to_token, source_page_size)
        device = req_to_token.device
        self.spec = spec = dispatch.backend(backend, platform(device).vendor)
        size = spec.page_size if page_size is None else page_size
        self.page_size = arguments.integer("page_size", size, 1, arguments.MAX_PAGE_SIZE)
        if self.page_size not in spec.page_sizes:
            allowed = ", ".join(map(str, spec.page_sizes))
            raise ValueError(f"page_size for {backend!r} must be one of {allowed}, got {page_size}")
        self.max_batch_size = arguments.integer("max_batch_size", max_batch_size, 1, MAX_BATCH)
        tokens = req_to_token.shape[1] * source_page_size
        self.max_context_len = arguments.integer("max_context_len", max_context_len, 1, tokens)
        most = min(max_batch_size * max_context_len, INT32_MAX)
        self.max_tokens = most if max_tokens is None else arguments.integer(
            "max_tokens", max_tokens, 1, INT32_MAX
        )  # fmt: skip
        if sliding_window is not None:
            sliding_window = arguments.integer("sliding_window", sliding_window, 1, ROW_MAX)
        for name, ids in (("window_token_map", window_token_map), ("page_map", page_map)):
            if ids is not None:
                arguments.tensor(name, ids, 1, req_to_token)
        self.req_to_token = req_to_token
        self.status = Status(device)
        self._on_cpu = device.type == "cpu"
        self._form = TABLE if spec.form == "table" else CSR
        self._steps: dict[tuple[Any, ...], Step] = {}  # by dtypes and what is given: a few
        self._recent: Step | None = None  # of the last build with nothing but ints beside its vectors
        self._made: dict[tuple[int, bool, bool], Metadata] = {}
        self._always_check = switches.on("XKV_CHECK")
        self._views = [self._allocate(View(torch.empty(0), page_map=page_map))]
        if sliding_window is not None or window_token_map is not None:
            view = View(torch.empty(0), window=sliding_window, token_map=window_token_map)
            self._views.append(self._allocate(view))
            self._views[1].cu_seqlens_q = None  # the same as the first view's

    def _allocate(self, view: View) -> View:
        spec, batch = self.spec, self.max_batch_size
        if spec.form == "table":
            shape: tuple[int, ...] = (batch, spec.width(self.max_context_len, self.page_size))
        else:
            # every row can leave a page partly filled at either end
            shape = (self.max_tokens // self.page_size + 2 * batch * (self.page_size > 1),)
        return buffers.allocate(view, spec, shape, batch, self.req_to_token.device)

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
        * draft extend: ``query_lens=extend_lens, query_lens_sign=-1, seq_lens_delta=n``, or a
          ``seq_lens_delta`` for each row: the prefix and n tokens

        What only the device knows is cut, never read or written out of bounds; see `check`.

        Args:
            req_pool_indices: ``[batch]`` int32 or int64, rows of ``req_to_token``.
            seq_lens: ``[batch]`` int32 or int64, tokens.
            seq_lens_delta: tokens added to every length (int) or to each (``[batch]`` int).
            query_lens: query tokens of every request (int) or of each (``[batch]`` int): what
                ``cu_seqlens_q`` sums, and a sliding window covers. A negative one counts as 0 and is
                reported.
            query_lens_sign: -1, 0 or 1: whether ``query_lens`` (a tensor) is added to the lengths.
            kv_start: ``[batch]`` int, first token of each row, for chunks; None: 0. Inside a page the ids
                begin with that page, and ``kv_start_offset`` says how many of its tokens come before; the
                row is reported unless the backend's spec says ``skips_tokens``. For example an encoder's
                1500 tokens and 10 of its decoder's behind them, page size 64, ``kv_start=1500``:
                ``kv_start_offset`` is 28 and ``cache_seqlens`` 38, of which 28 are the encoder's.
            window_kv_start: the same for the window's view, beside ``sliding_window``.
            max_tokens: tokens, the sum of all lengths, where the host knows it: at page size 1
                ``kv_indices`` is then a view of that length, and what is beyond it is cut and reported.

        Returns:
            Views of the builder's buffers for this batch; the next build overwrites them.

        Raises:
            TypeError: an argument of another type or dtype.
            ValueError: a batch larger than ``max_batch_size``, another device, or an argument out of
                its range. Nothing was written.
            StatusError: with XKV_CHECK=1, a row had to be cut.

        Examples:
            Verify of 2 draft tokens:

            >>> import torch
            >>> import xkv
            >>> req_to_token = torch.arange(64, dtype=torch.int32).view(2, 32)
            >>> sizes = {"max_batch_size": 2, "max_context_len": 32}
            >>> builder = xkv.MetadataBuilder("trtllm_mha", req_to_token, **sizes)
            >>> rows, lens = torch.tensor([1, 0]), torch.tensor([7, 3])
            >>> meta = builder.build(rows, lens, seq_lens_delta=2, query_lens=2)
            >>> meta.cache_seqlens, meta.cu_seqlens_q
            (tensor([9, 5], dtype=torch.int32), tensor([0, 2, 4], dtype=torch.int32))
        """
        plain = (
            type(seq_lens_delta) is int and type(query_lens) is int and type(query_lens_sign) is int
            and not query_lens_sign and kv_start is None and window_kv_start is None
        )  # fmt: skip
        step = self._recent
        if plain and step is not None and max_tokens is None:
            batch = step.launch(req_pool_indices, seq_lens, self.max_batch_size, seq_lens_delta, query_lens)
            if batch is not None:
                return self._made.get((batch, False, False)) or self._metadata(batch, False, False, None)
        inputs: Inputs = (
            req_pool_indices, seq_lens, seq_lens_delta, query_lens, query_lens_sign, kv_start, window_kv_start
        )  # fmt: skip
        step = self._step_of(inputs, plain)
        (batch,), (rows,) = seq_lens.shape, req_pool_indices.shape
        if (
            not plain
            or self._on_cpu  # where no guard tells one device from another
            or rows != batch
            or batch > self.max_batch_size
            or not -ROW_MAX <= seq_lens_delta <= ROW_MAX
            or not 0 <= query_lens <= INT32_MAX // (batch + 1)
        ):
            inputs = self._check(inputs)
        if max_tokens is not None:
            arguments.integer("max_tokens", max_tokens, 0, self.max_tokens)
        # where the view that is returned ends with them
        most = max_tokens if self.page_size == 1 else None
        if not step.run(inputs, most):
            self._check(inputs)
        return self._metadata(batch, kv_start is not None, window_kv_start is not None, most)

    def _step_of(self, inputs: Inputs, plain: bool) -> Step:
        """The step of this kind; checked and made where there is none yet."""
        try:
            key = (inputs[4], *[_signature(x) for x in inputs])
        except (AttributeError, RuntimeError):  # no tensor, or one without strides, which this names
            key = None
        step = None if key is None else self._steps.get(key)
        if step is None:
            inputs = self._check(inputs)
            key = (inputs[4], *[_signature(x) for x in inputs])
            step = self._steps.setdefault(key, self._step(inputs))
        if plain:
            self._recent = step
        return step

    def _metadata(self, batch: int, starts: bool, window_starts: bool, entries: int | None) -> Metadata:
        """The buffers of this batch; kept, since engines come back to a few batch sizes."""
        key = batch, starts, window_starts
        found = self._made.get(key) if entries is None else None
        if found is None:
            form, window = self._form, None
            for view, has in ((self._views[1], window_starts),) if len(self._views) == 2 else ():
                window = Metadata(
                    view, form, batch, self.page_size, self.max_context_len,
                    starts=has or view.window is not None,
                )  # fmt: skip
            found = Metadata(
                self._views[0], form, batch, self.page_size, self.max_context_len,
                starts=starts, entries=entries, window=window,
            )  # fmt: skip
            if entries is None:
                if len(self._made) >= _MOST_KEPT:
                    self._made.clear()
                self._made[key] = found
        return found

    def _check(self, inputs: Inputs) -> Inputs:
        """Raises what is wrong with a step's arguments; returns them with ints of Python's own type."""
        source = self.req_to_token
        rows, lens, delta, query, sign, start, window_start = inputs
        arguments.tensor("seq_lens", lens, 1, source)
        batch = lens.shape[0]
        if batch > self.max_batch_size:
            raise ValueError(
                f"seq_lens must have at most max_batch_size={self.max_batch_size} entries, got {batch}"
            )
        sign = arguments.integer("query_lens_sign", sign, -1, 1)
        arguments.per_row("req_pool_indices", rows, source, batch)
        for name, value in (("kv_start", start), ("window_kv_start", window_start)):
            if value is not None:
                arguments.per_row(name, value, source, batch)
        if window_start is not None and len(self._views) == 1:
            raise ValueError("window_kv_start needs a builder with a sliding window, got one without")
        delta = arguments.integers("seq_lens_delta", delta, source, batch, -ROW_MAX, ROW_MAX)
        query = arguments.integers("query_lens", query, source, batch, 0, INT32_MAX // (batch + 1))
        if sign and not isinstance(query, Tensor):
            raise ValueError("query_lens_sign needs query_lens as a tensor, got an int")
        return rows, lens, delta, query, sign, start, window_start

    def _step(self, inputs: Inputs) -> Step:
        """Describes the launches of steps of this kind."""
        spec = self.spec
        views = []
        for view, start in zip(self._views, inputs[5:], strict=False):
            starts = start is not None or view.window is not None
            views.append(view if starts else replace(view, kv_start_offset=None))
        build = Build(
            self.req_to_token, inputs[0], inputs[1], self._form,
            self.page_size, self.source_page_size, self.page_size,
            tuple(replace(view) for view in views),
            max_seq_len=self.max_context_len, window_is_prefix_only=spec.window_is_prefix_only,
            starts_are_aligned=not spec.skips_tokens,
            query_sign=inputs[4], min_seq_len=spec.min_seq_len,
            min_last_page_len=spec.min_last_page_len, missing_id=spec.fill_id,
            pad_value=spec.fill_id if spec.tail_tokens else None,
            pad_to_multiple_of=spec.pad_to_multiple_of(self.page_size), status=self.status.word,
        )  # fmt: skip
        return Step(build, inputs, self.status if self._always_check else None)

    def warmup(self, *, ragged: bool = True, row_deltas: bool = True, chunks: bool = True) -> int:
        """Compiles and loads all that this builder can need, so that no step has to. Syncs.

        After it no `build` compiles or loads, whatever its batch, widths, lengths and int dtypes. It takes
        a second or so a kernel where Triton has none in its cache on disk, and does nothing on a CPU.

        Args:
            ragged: also ``query_lens`` as a tensor.
            row_deltas: also ``seq_lens_delta`` as a tensor.
            chunks: also ``kv_start`` and, with a sliding window, ``window_kv_start``.

        Returns:
            How many kernels were not there before.
        """
        one = torch.ones(1, dtype=torch.int32, device=self.req_to_token.device)
        starts = (None, one) if chunks else (None,)
        deltas: list[int | Tensor] = [0, one] if row_deltas else [0]
        queries: list[int | Tensor] = [1, one] if ragged else [1]
        made = 0
        for delta, query, start, window_start in itertools.product(
            deltas, queries, starts, starts if len(self._views) == 2 else (None,)
        ):
            inputs: Inputs = (one, one, delta, query, 0, start, window_start)
            made += compile.warm(self._step(inputs).fill(inputs), self.max_batch_size)
        return made

    def capture(
        self, batch_size: int, *, pad_seq_len: int = 0, req_pool_indices: Tensor | None = None,
        seq_lens: Tensor | None = None, **options: Any,
    ) -> CapturedBuild:  # fmt: skip
        """Captures a build of this padded batch size in a graph of its own. Syncs.

        Args:
            batch_size: requests, padded ones included; at most ``max_batch_size``.
            pad_seq_len: tokens of a padded row, whose pool index is 0.
            req_pool_indices: ``[batch_size]`` int, the engine's own buffer, read at every replay; None: one
                is made.
            seq_lens: ``[batch_size]`` int, likewise.
            **options: as in `build`; its tensors ``[batch_size]`` are read at every replay.

        Returns:
            What replays it.

        Raises:
            TypeError, ValueError: as in `build`, or buffers of another dtype, size or device.
        """
        arguments.integer("batch_size", batch_size, 1, self.max_batch_size)
        arguments.integer("pad_seq_len", pad_seq_len, 0, self.max_context_len)
        device = self.req_to_token.device
        return CapturedBuild(self.build, device, batch_size, pad_seq_len, req_pool_indices, seq_lens, options)

    def check(self) -> None:
        """Raises what the builds since the last check had to cut. Syncs; not for capture.

        Raises:
            StatusError: names the first offending row and the reason.
        """
        self.status.check()


run_untraced(MetadataBuilder.build)


def _signature(x: Any) -> Any:
    """What of an input decides the launch: not its size or data, and of an int only that it is one."""
    if x is None or type(x) is int:
        return x is None
    return x.dtype, x.dim(), x.is_contiguous(), x.get_device()
