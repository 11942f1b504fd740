"""`build_slot_mapping`: the KV cache slots of the query tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import arguments, torch_library
from ..launch import op_calls
from ..params import INT32_MAX, SLOTS, View
from ..shard import Shard
from ..status import Status
from . import outputs


def build_slot_mapping(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    query_lens: Tensor,
    *,
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
    """Builds a slot mapping: the KV cache slots of the last ``query_lens[b]`` tokens of every request.

    The slots of row b, tokens ``[seq_lens[b] + delta - query_lens[b], seq_lens[b] + delta)``, follow those of
    row b - 1. A query token outside the source row keeps its place and gets ``missing_id``.

    With ``out`` it makes one launch, does not sync or allocate, and is safe in a CUDA or HIP graph. Without
    ``out`` it allocates, and syncs unless ``max_tokens`` is given. CPU tensors take the torch reference.
    Follows vLLM's _compute_slot_mappings_kernel.

    Args:
        req_to_token: as in `build_page_table`.
        req_pool_indices: as in `build_page_table`.
        seq_lens: as in `build_page_table`, query tokens included.
        query_lens: ``[batch]`` int32 or int64, query tokens of each request, 0 allowed.
        source_page_size: as in `build_page_table`.
        out: ``[capacity]`` int32 or int64. None: allocated.
        max_tokens: tokens, host bound of the sum of ``query_lens``; ``out`` must hold that many.
        seq_lens_delta: as in `build_page_table`.
        token_map: as in `build_page_table`.
        page_map: as in `build_page_table`.
        map_page_size: tokens per page of ``page_map``, a power of two.
        missing_id: as in `build_page_table`.
        pad_value: int32, written past the last slot. None: those entries are left unwritten.
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
    """
    deltas, delta = arguments.tensor_and_int(seq_lens_delta)
    required_only = (
        query_lens is not None
        and deltas is None
        and token_map is None
        and page_map is None
        and status is None
    )
    inputs: tuple[Any, ...] = (
        req_to_token, req_pool_indices, seq_lens, out, None, None, deltas, query_lens,
    )  # fmt: skip
    if not required_only:
        inputs = (*inputs, None, None, token_map, page_map, getattr(status, "word", status))
    signature = op_calls.lookup(
        inputs, required_only, SLOTS, 1, source_page_size, pad_value, shard, pad_to_multiple_of,
        map_page_size, missing_id,
    )  # fmt: skip
    if out is not None and signature.launch(inputs, delta, max_tokens):
        return out
    build = arguments.checked_build(
        req_to_token, req_pool_indices, seq_lens, SLOTS, 1, source_page_size,
        seq_lens_delta, None, token_map, page_map, map_page_size, missing_id, pad_value, pad_to_multiple_of,
        shard, status,
    )  # fmt: skip
    build.query_lens = arguments.per_row("query_lens", query_lens, req_to_token, build.batch)
    if max_tokens is not None:
        arguments.integer("max_tokens", max_tokens, 0, INT32_MAX)
    if out is None:
        out = outputs.new_slots(build, query_lens, max_tokens, dtype)
    else:
        reads = [*outputs.inputs_of(build, None, token_map, page_map), query_lens]
        arguments.output("out", out, 1, max_tokens or 0, reads)
    build.views = (View(out, None, None, token_map, page_map),)
    signature.run(build, inputs)
    return out


torch_library.register(SLOTS, build_slot_mapping)
