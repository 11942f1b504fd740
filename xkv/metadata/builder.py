"""`MetadataBuilder`: one attention backend's metadata in persistent buffers, one launch per step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import arguments
from ..draft import DraftTree
from ..launch.guards import run_untraced
from ..params import TABLE
from ..platforms.specs import BackendSpec
from ..shard import Shard
from ..status import Status
from .buffers import Buffers, Metadata
from .config import BuilderConfig
from .options import SlotMapping
from .parts import GroupLaunches, Member
from .step_cache import StepCache
from .step_launches import StepLaunches


class MetadataBuilder(StepLaunches):
    """Builds the metadata that one attention backend reads, in one launch per step.

    `build` writes all of it, for any batch; `extend` what new tokens add to the last batch's. The buffers are
    allocated once and keep their addresses, so both may be captured in a CUDA or HIP graph, once per padded
    batch size, and replayed with other rows and lengths. A padded row has length 0, or pool index 0 and a
    small length. A builder serves one stream at a time.

    Args:
        backend: a name that `xkv.backends` lists, such as "flashmla", or a `BackendSpec` of your own.
        req_to_token: ``[rows, width]`` int32 or int64, as in `xkv.build_page_table`. The builder keeps it.
        max_batch_size: requests, 1 to 65,536.
        max_context_len: tokens of the longest row, draft tokens included; at most what a row of
            ``req_to_token`` holds. A longer row is cut to it and reported.
        page_size: one of the backend's page sizes. None: its default.
        source_page_size: as in `xkv.build_page_table`: 1 (SGLang) or the block size (vLLM).
        max_tokens: tokens, capacity of ``kv_indices`` over all rows (CSR). None: all rows of the longest.
        sliding_window: tokens that a query token sees, itself included. A second view then shows the last
            ``sliding_window + q - 1`` tokens of each row: what all of its q query tokens see. (A backend
            whose spec says ``window_is_prefix_only`` gets the last ``sliding_window`` tokens.)
        window_token_map: ``[n]`` int, slot -> slot of the window's pool, negative for none. A second view
            goes through it, and shows the whole row if ``sliding_window`` is None.
        window_page_map: ``[m]`` int, page -> page of the window's pool: likewise, after the other.
        window_is_absolute: the window's rows have an entry for every page of the row, as vLLM's, and the
            backend's ``pad_id`` before the window; lengths are the whole rows'. False: they begin with it.
        sink_tokens: first tokens of each row, whole pages, that the window shows before its own. None: none.
        page_map: ``[m]`` int, page -> page of the first view, negative for none.
        shard: this rank's share of each row (DCP), as in `xkv.build_page_table`. Lengths that are passed are
            the whole rows', those that are written this rank's; ``cu_seqlens_q`` counts all query tokens.
        slot_mapping: a `SlotMapping`: also write the slots of query tokens, through the same maps. None: no.
        draft: a `DraftTree`: a row for each branch of each request. None: a row for each request.

    Attributes:
        spec: the backend's `BackendSpec`.
        page_size: tokens per page.
        extends: whether `extend` writes less than `build`: of page tables, not of CSR streams.
        status: where builds report rows that were cut; see `check`.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an unknown backend or page size, or an argument out of its range.

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
        >>> builder.check()  # raises StatusError if a row was cut
    """

    def __init__(
        self, backend: str | BackendSpec, req_to_token: Tensor, *, max_batch_size: int, max_context_len: int,
        page_size: int | None = None, source_page_size: int = 1, max_tokens: int | None = None,
        sliding_window: int | None = None, window_token_map: Tensor | None = None,
        window_page_map: Tensor | None = None, window_is_absolute: bool = False,
        sink_tokens: int | None = None, page_map: Tensor | None = None, shard: Shard | None = None,
        slot_mapping: SlotMapping | None = None, draft: DraftTree | None = None,
    ) -> None:  # fmt: skip
        config = BuilderConfig.checked(
            backend, req_to_token, page_size, source_page_size, max_batch_size, max_context_len, max_tokens,
            sliding_window, window_token_map, window_page_map, window_is_absolute, sink_tokens, page_map,
            shard, slot_mapping, draft,
        )  # fmt: skip
        self.req_to_token, self.device, self.spec = req_to_token, req_to_token.device, config.spec
        self.page_size, self.source_page_size = config.page_size, arguments.as_int(source_page_size)
        self.max_batch_size, self.max_context_len = config.max_batch_size, config.max_context_len
        self.max_tokens, self.status = config.max_tokens, Status(req_to_token.device)
        buffers = Buffers(config)
        self._views = buffers.views
        self._steps = steps = StepCache(config, buffers, self.status)
        self.extends = config.form == TABLE
        self._recent, self._run = {False: None, True: None}, steps.run
        self.member = Member(config, buffers, self.status, steps)
        in_parts = slot_mapping or draft or sink_tokens or window_is_absolute
        self._group = GroupLaunches([self.member]) if in_parts else None

    def build(
        self, req_pool_indices: Tensor, seq_lens: Tensor, *, seq_lens_delta: int | Tensor = 0,
        query_lens: int | Tensor = 1, query_lens_sign: int = 0, kv_start: Tensor | None = None,
        window_kv_start: Tensor | None = None, max_tokens: int | None = None,
        positions: Tensor | None = None, query_start_loc: Tensor | None = None,
    ) -> Metadata:  # fmt: skip
        """Writes one step's metadata. One launch, no sync, no allocation; safe in a CUDA or HIP graph.

        Row b shows the tokens ``[kv_start[b], length)`` of row ``req_pool_indices[b]``, where
        ``length = seq_lens[b] + seq_lens_delta + query_lens_sign * query_lens[b]``. The modes:

        * decode: no further argument; draft decode step s: ``seq_lens_delta=s + 1``
        * verify of n draft tokens: ``seq_lens_delta=n, query_lens=n``
        * ragged verify: ``query_lens=lens, query_lens_sign=1``
        * draft extend: ``query_lens=extend_lens, query_lens_sign=-1, seq_lens_delta=n``, or a
          ``seq_lens_delta`` per row: the prefix and n tokens

        Device data out of range is cut, never read or written out of bounds, and reported; see `check`.

        Args:
            req_pool_indices: ``[batch]`` int32 or int64, rows of ``req_to_token``.
            seq_lens: ``[batch]`` int32 or int64, tokens.
            seq_lens_delta: tokens added to every length (int) or to each (``[batch]`` int).
            query_lens: query tokens of every request (int) or of each (``[batch]`` int): what
                ``cu_seqlens_q`` sums, and a sliding window covers. A negative one counts as 0 and is
                reported.
            query_lens_sign: -1, 0 or 1: ``query_lens`` (a tensor) times this is added to the lengths.
            kv_start: ``[batch]`` int, first token of each row, for chunks. None: 0. If it is inside a page,
                the ids begin with that page, and ``kv_start_offset`` is the number of its tokens before
                ``kv_start``; the row is reported unless the backend's spec says ``skips_tokens``. For
                example 1500 encoder tokens followed by 10 decoder tokens, page size 64, ``kv_start=1500``:
                ``kv_start_offset`` is 28 and ``cache_seqlens`` 38, 28 of them the encoder's.
            window_kv_start: the same for the window's view, in addition to ``sliding_window``.
            max_tokens: tokens, the sum of all lengths (each at least the spec's ``min_seq_len``), if known:
                at page size 1 ``kv_indices`` is a view of that length; the rest is cut. Not with a shard or a
                slot mapping.
            positions: ``[n]`` int32 or int64, as in `xkv.build_slot_mapping`: the tokens whose slots are
                written. None: the last ``query_lens`` of each row; none of a row of length 0 if that is an
                int. Needs a slot mapping and ``query_start_loc``.
            query_start_loc: ``[batch + 1]`` int32 or int64, likewise, in place of ``query_lens``.

        Returns:
            Views of the builder's buffers for this batch; the next build overwrites them.

        Raises:
            TypeError: an argument of another type or dtype.
            ValueError: a batch larger than ``max_batch_size``, another device, or an argument out of
                its range. Nothing was written.
            StatusError: with XKV_CHECK=1, a row was cut.

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
        step = self._recent[False]
        if (
            step is not None and type(seq_lens_delta) is int and type(query_lens) is int
            and type(query_lens_sign) is int and not query_lens_sign and kv_start is None
            and window_kv_start is None and max_tokens is None and positions is None
            and query_start_loc is None
        ):  # fmt: skip
            found = step.launch(req_pool_indices, seq_lens, seq_lens_delta, query_lens)
            if found is not None:
                return found
        inputs: Any = (
            req_pool_indices, seq_lens, seq_lens_delta, query_lens, query_lens_sign, kv_start,
            window_kv_start, positions, query_start_loc,
        )  # fmt: skip
        return self._launch(inputs, max_tokens, False)

    def warmup(
        self, *, ragged: bool = True, row_deltas: bool = True, chunks: bool = True, extends: bool = True
    ) -> int:
        """Compiles and loads every kernel that this builder can launch. Syncs.

        After it no `build` and no `extend` compiles or loads, whatever its batch, widths, lengths and int
        dtypes. It takes about a second per kernel that is not in Triton's cache on disk, and does nothing on
        a CPU.

        Args:
            ragged: also with ``query_lens`` as a tensor, and with ``positions``, if there is a slot mapping.
            row_deltas: also with ``seq_lens_delta`` as a tensor.
            chunks: also with ``kv_start`` and, with a sliding window, ``window_kv_start``.
            extends: also what `extend` launches.

        Returns:
            The number of kernels that were newly loaded.
        """
        if self._group is not None:
            return self._group.warmup(ragged=ragged, row_deltas=row_deltas, chunks=chunks, extends=extends)
        extends = extends and self.extends
        return self._steps.warmup(ragged=ragged, row_deltas=row_deltas, chunks=chunks, extends=extends)

    def check(self) -> None:
        """Raises if a build since the last check cut a row, and clears the status. Syncs; not for capture.

        Raises:
            StatusError: names the first such row and the reason.
        """
        self.status.check()


run_untraced(MetadataBuilder.build)
run_untraced(MetadataBuilder.extend)
