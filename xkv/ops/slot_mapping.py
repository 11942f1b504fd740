"""`build_slot_mapping`: the KV cache slots of query tokens: each row's last, or those at given positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import arguments, torch_library
from ..launch import op_calls
from ..params import INT32_MAX, ROW_MAX, SLOTS, Build, View
from ..shard import Shard
from ..status import Status
from . import outputs


def build_slot_mapping(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    query_lens: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    query_start_loc: Tensor | None = None,
    max_position: int | None = None,
    source_page_size: int = 1,
    out: Tensor | None = None,
    max_tokens: int | None = None,
    seq_lens_delta: int | Tensor = 0,
    token_map: Tensor | None = None,
    page_map: Tensor | None = None,
    map_page_size: int = 1,
    missing_id: int | None = None,
    pad_value: int | None = None,
    pad_to_multiple_of: int | None = None,
    shard: Shard | None = None,
    dtype: torch.dtype = torch.int64,
    status: Status | None = None,
) -> Tensor:
    """Builds a slot mapping: the KV cache slots of the query tokens of every request.

    They are either the last ``query_lens[b]`` tokens of each row, ``[seq_lens[b] + delta - query_lens[b],
    seq_lens[b] + delta)``, whose slots follow those of row b - 1; or, as in vLLM, those at ``positions``, of
    which ``query_start_loc`` says whose they are. A query token outside its row keeps its place, gets
    ``missing_id``, and is reported as BAD_QUERY.

    With ``out`` it makes one launch, does not sync or allocate, and is safe in a CUDA or HIP graph. Without
    ``out`` it allocates, and syncs unless ``max_tokens`` or ``positions`` is given. CPU tensors take the
    torch reference. Follows vLLM's _compute_slot_mappings_kernel.

    Args:
        req_to_token: as in `build_page_table`.
        req_pool_indices: as in `build_page_table`.
        seq_lens: as in `build_page_table`, query tokens included.
        query_lens: ``[batch]`` int32 or int64, query tokens of each request, 0 allowed. None: ``positions``
            and ``query_start_loc`` are given.
        positions: ``[n]`` int32 or int64, tokens: the position of each query token in its row, at least 0 and
            less than ``seq_lens[b] + delta``. Those of row b, and its slots, are ``[query_start_loc[b],
            query_start_loc[b + 1])``.
        query_start_loc: ``[batch + 1]`` int32 or int64, from 0 to n, not decreasing; as it is not trusted, a
            row that begins before 0 has no slots, and where rows overlap an entry has the value of one.
            With it, a row of ``req_pool_indices`` that is -1 is padding: its tokens get ``missing_id``.
        max_position: tokens, 0 to 2**28 - 1. Query tokens from this position on get ``missing_id`` and are
            not reported, such as drafts past the longest context. None: no limit.
        source_page_size: as in `build_page_table`.
        out: ``[capacity]`` int32 or int64. None: allocated.
        max_tokens: tokens, host bound of the query tokens; ``out`` must hold that many. None: as many as
            ``positions``, or the sum of ``query_lens``.
        seq_lens_delta: as in `build_page_table`.
        token_map: as in `build_page_table`.
        page_map: as in `build_page_table`.
        map_page_size: tokens per page of ``page_map``, a power of two.
        missing_id: as in `build_page_table`.
        pad_value: int32, written past the last slot (``query_start_loc[batch]``). None: those entries are
            left unwritten.
        pad_to_multiple_of: entries; padding ends at the next multiple of it. None: at the capacity.
        shard: this rank's share of each row, an `xkv.Shard`. Every query token keeps its entry: a token of
            another rank gets ``missing_id``, or -1 if that is None, and is not reported. Lengths are those
            of the whole rows. With a "global" source, ``page_map`` is indexed by the rank's pages, and
            there is no ``token_map``. None: the whole row.
        dtype: int32 or int64, of an ``out`` that is allocated.
        status: where cut rows are reported.

    Returns:
        ``out``, or the new slots ``[tokens]``, in tokens.

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
        >>> xkv.build_slot_mapping(req_to_token, rows, lens, query_lens=torch.tensor([1, 2]))
        tensor([ 2,  9, 10])

        The tokens at positions 5 and 6 of the first request, at position 2 of the second, and one of padding:

        >>> positions, starts = torch.tensor([5, 6, 2, 0]), torch.tensor([0, 2, 3, 4])
        >>> rows, lens = torch.tensor([1, 0, -1]), torch.tensor([7, 3, 0])
        >>> xkv.build_slot_mapping(req_to_token, rows, lens, positions=positions, query_start_loc=starts)
        tensor([ 1,  2, 10, -1])
    """
    deltas, delta = arguments.tensor_and_int(seq_lens_delta)
    required_only = (
        query_lens is not None
        and positions is None
        and deltas is None
        and token_map is None
        and page_map is None
        and status is None
    )
    inputs: tuple[Any, ...] = (
        req_to_token, req_pool_indices, seq_lens, out, query_start_loc, None, deltas, query_lens,
    )  # fmt: skip
    if not required_only:
        inputs = (*inputs, None, None, token_map, page_map, getattr(status, "word", status), positions)
    signature = op_calls.lookup(
        inputs, required_only, SLOTS, 1, source_page_size, pad_value, shard, pad_to_multiple_of,
        map_page_size, missing_id, max_position,
    )  # fmt: skip
    if out is not None and signature.launch(inputs, delta, max_tokens):
        return out
    build = arguments.checked_build(
        req_to_token, req_pool_indices, seq_lens, SLOTS, 1, source_page_size,
        seq_lens_delta, None, token_map, page_map, map_page_size, missing_id, pad_value, pad_to_multiple_of,
        shard, status,
    )  # fmt: skip
    if positions is None:
        _check_last_tokens(build, query_lens, query_start_loc, max_position)
    else:
        _check_positions(build, query_lens, positions, query_start_loc, max_position)
    if max_tokens is not None:
        arguments.integer("max_tokens", max_tokens, 0, INT32_MAX)
    if out is None:
        out = outputs.new_slots(build, max_tokens, dtype)
    else:
        reads = outputs.inputs_of(build, token_map, page_map, query_lens, positions, query_start_loc)
        arguments.output("out", out, 1, max_tokens or 0, reads)
    build.views = (View(out, None, None, token_map, page_map, kv_indptr=query_start_loc),)
    signature.run(build, inputs)
    return out


def _check_last_tokens(
    build: Build, query_lens: Tensor | None, query_start_loc: Tensor | None, max_position: int | None
) -> None:  # fmt: skip
    for name, value in (("query_start_loc", query_start_loc), ("max_position", max_position)):
        if value is not None:
            raise ValueError(f"{name} must be None without positions, got {type(value).__name__}")
    if query_lens is None:
        raise TypeError("query_lens must be a torch.Tensor, or positions and query_start_loc, got None")
    build.query_lens = arguments.per_row("query_lens", query_lens, build.req_to_token, build.batch)


def _check_positions(
    build: Build, query_lens: Tensor | None, positions: Tensor, query_start_loc: Tensor | None,
    max_position: int | None,
) -> None:  # fmt: skip
    if query_lens is not None:
        raise ValueError(f"query_lens must be None with positions, got {type(query_lens).__name__}")
    arguments.given_positions(positions, query_start_loc, build.req_to_token, build.batch)
    if max_position is not None:
        build.max_position = arguments.integer("max_position", max_position, 0, ROW_MAX)
    build.positions, build.indptr_is_input = positions, True


torch_library.register(SLOTS, build_slot_mapping)
