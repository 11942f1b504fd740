"""`build_page_table`: one padded row of page ids for each request."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import arguments, torch_library
from ..launch import op_calls
from ..params import ROW_MAX, TABLE, View
from ..shard import Shard, local_length
from ..status import Status
from . import outputs


def build_page_table(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    *,
    page_size: int,
    source_page_size: int = 1,
    out: Tensor | None = None,
    max_seq_len: int | None = None,
    seq_lens_delta: int | Tensor = 0,
    kv_start: Tensor | None = None,
    token_map: Tensor | None = None,
    page_map: Tensor | None = None,
    map_page_size: int | None = None,
    missing_id: int | None = None,
    pad_value: int | None = None,
    pad_to_multiple_of: int | None = None,
    kv_start_offset: Tensor | None = None,
    shard: Shard | None = None,
    dtype: torch.dtype = torch.int32,
    status: Status | None = None,
) -> Tensor:
    """Builds a page table: entry j of row b is the page of token ``(kv_start[b] // P + j) * P``.

    P is ``page_size``. Row b shows the tokens ``[kv_start[b], seq_lens[b] + seq_lens_delta)`` of row
    ``req_pool_indices[b]`` of ``req_to_token``, from the page of the first to the page of the last. Device
    data that is out of range (a length beyond the table, a row index out of range, a token without an id)
    is cut, never read or written out of bounds, and reported to ``status``.

    With ``out`` it makes one launch, does not sync or allocate, and is safe in a CUDA or HIP graph. Without
    ``out`` it allocates, and syncs unless ``max_seq_len`` is given. CPU tensors take the torch reference.
    Follows SGLang's create_flashmla_kv_indices_triton.

    Args:
        req_to_token: ``[rows, width]`` int32 or int64, inner stride 1. An entry is the id of
            ``source_page_size`` consecutive tokens: token slots (1, as in SGLang) or page ids (the
            block size, as in vLLM). Less than 2**28 tokens per row.
        req_pool_indices: ``[batch]`` int32 or int64, rows of ``req_to_token``.
        seq_lens: ``[batch]`` int32 or int64, tokens, 0 allowed.
        page_size: tokens per output page, a power of two from 1 to 1024.
        source_page_size: tokens per source entry, 1 to 65,536, a multiple or a divisor of ``page_size``: 528
            with a page size of 16, for example.
        out: ``[>= batch, width]`` int32 or int64, pages, inner stride 1, any row stride; may be a view. None:
            allocated, ``[batch, width]``, for the longest row, with a width of at least 1 page and a multiple
            of ``pad_to_multiple_of``, and padded with ``pad_value`` or 0.
        max_seq_len: tokens, host bound of ``seq_lens + seq_lens_delta``: a longer row is cut to it and
            reported; ``out`` must be wide enough for it.
        seq_lens_delta: tokens added to every length (int) or to each (``[batch]`` int32 or int64).
        kv_start: ``[batch]`` int32 or int64, first token of each row. If it is inside a page, the row begins
            with that page, and ``kv_start_offset`` is the number of its tokens before ``kv_start``.
        token_map: ``[n]`` int32 or int64, token id -> token id, negative for none.
        page_map: ``[m]`` int32 or int64, page id -> page id, negative for none; applied after
            ``token_map``.
        map_page_size: tokens per page of ``page_map``, a power of two. None: ``page_size``.
        missing_id: int32, written for a live token without an id (a negative source entry or map
            target). None: -1 is written and the row is reported to ``status``.
        pad_value: int32, written past the live pages of each row. None: those entries are left unwritten.
        pad_to_multiple_of: pages; padding ends at the next multiple of it, and at the first for an empty row.
            None: at the end of the row.
        kv_start_offset: ``[>= batch]`` int32, written: tokens of each row's first page before ``kv_start``, 0
            to ``page_size - 1``. For example 1500 encoder tokens followed by 10 decoder tokens, page size 64,
            ``kv_start=1500``: the row has one page, in which 28 tokens are the encoder's.
        shard: this rank's share of each row, an `xkv.Shard`. The row then shows the rank's own tokens of the
            same range, from the page of the first of them, and ``kv_start_offset`` counts the rank's own too.
            ``seq_lens``, ``seq_lens_delta``, ``kv_start`` and ``max_seq_len`` are tokens of the whole row.
            With a "global" source, ``page_map`` is indexed by the rank's pages, and there is no
            ``token_map``. None: the whole row.
        dtype: int32 or int64, of an ``out`` that is allocated.
        status: where cut rows are reported.

    Returns:
        ``out``, or the new table ``[batch, width]``, pages.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: a rank, shape, stride, device, range or overlap that is not allowed.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> rows, lens = torch.tensor([1, 0]), torch.tensor([7, 3])
        >>> xkv.build_page_table(req_to_token, rows, lens, page_size=4)
        tensor([[4, 0],
                [2, 0]], dtype=torch.int32)
        >>> out = torch.full((2, 3), -7, dtype=torch.int32)
        >>> xkv.build_page_table(req_to_token, rows, lens, page_size=4, out=out)
        tensor([[ 4,  0, -7],
                [ 2, -7, -7]], dtype=torch.int32)
    """
    deltas, delta = arguments.tensor_and_int(seq_lens_delta)
    required_only = (
        deltas is None and kv_start is None and kv_start_offset is None and token_map is None
        and page_map is None and status is None
    )  # fmt: skip
    inputs: tuple[Any, ...] = (req_to_token, req_pool_indices, seq_lens, out)
    if not required_only:
        inputs = (
            *inputs, None, None, deltas, None, kv_start, kv_start_offset, token_map, page_map,
            getattr(status, "word", status),
        )  # fmt: skip
    signature = op_calls.lookup(
        inputs, required_only, TABLE, page_size, source_page_size, pad_value, shard, pad_to_multiple_of,
        map_page_size, missing_id,
    )  # fmt: skip
    if out is not None and signature.launch(inputs, delta, max_seq_len):
        return out
    build = arguments.checked_build(
        req_to_token, req_pool_indices, seq_lens, TABLE, page_size, source_page_size,
        seq_lens_delta, kv_start, token_map, page_map, map_page_size, missing_id, pad_value,
        pad_to_multiple_of, shard, status,
    )  # fmt: skip
    if max_seq_len is not None:
        build.max_seq_len = arguments.integer("max_seq_len", max_seq_len, 0, ROW_MAX)
    if out is None:
        out = outputs.new_table(build, max_seq_len, dtype)
        if pad_value is None:
            build.pad_value = 0
    else:
        arguments.output("out", out, 2, build.batch, outputs.inputs_of(build, kv_start, token_map, page_map))
        bound = 0 if max_seq_len is None else local_length(max_seq_len, build.shard)
        if out.shape[1] * page_size < bound:
            of_rank = "" if build.shard is None else f", {bound} of them this rank's"
            raise ValueError(
                f"out must be wide enough for max_seq_len={max_seq_len} tokens{of_rank}, got {out.shape[1]}"
                f" pages of {page_size} tokens"
            )
    outputs.check_start_offset(build, kv_start_offset, [kv_start, token_map, page_map, out])
    build.views = (View(out, kv_start, None, token_map, page_map, kv_start_offset=kv_start_offset),)
    if build.batch:  # a table of an empty batch has nothing to write
        signature.run(build, inputs)
    return out


torch_library.register(TABLE, build_page_table)
