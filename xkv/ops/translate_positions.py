"""`translate_positions`: the KV cache slots of the positions that sparse attention's indexer has chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import arguments, torch_library
from ..chosen import MAX_CHOSEN, MAX_TOKENS, MAX_UNIT, ChosenTokens
from ..launch import chosen
from ..params import INT32_MAX, MAX_BATCH, SOURCE_PAGE_MAX
from ..shard import Shard, local_source
from ..status import Status


def translate_positions(
    req_to_token: Tensor,
    positions: Tensor,
    *,
    token_to_req: Tensor | None = None,
    query_start_loc: Tensor | None = None,
    req_pool_indices: Tensor | None = None,
    seq_lens: Tensor | None = None,
    unit: int = 1,
    page_size: int = 1,
    source_page_size: int = 1,
    block_stride: int | None = None,
    shard: Shard | None = None,
    compact: bool = False,
    counts: Tensor | None = None,
    dummy: int | None = None,
    missing_id: int = -1,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.int32,
    status: Status | None = None,
) -> Tensor:
    """Translates the positions that each query token attends to into slots or pages of the KV cache.

    In sparse attention (DeepSeek's, for example) an indexer chooses positions in each query token's row;
    attention wants to know where their keys are. What is no position of the row, or is another rank's, gets
    ``missing_id``, and is not reported.

    With ``out`` it makes one launch, does not sync or allocate, and is safe in a CUDA or HIP graph. Without
    ``out`` it allocates. The result is the same in every run: nothing is packed by atomics. CPU tensors take
    the torch reference. Follows SGLang's transform_index_page_table_decode and _prefill and vLLM's
    sparse_mla_index_remap_kernel.

    Args:
        req_to_token: ``[rows, width]`` int32 or int64, inner stride 1: an entry is the id of the next
            ``source_page_size`` tokens of its row.
        positions: ``[tokens, k]`` int32 or int64, inner stride 1, at most 2**24 x 8192: entry ``[i, j]`` is a
            position in the row of query token i's request, in units of ``unit`` tokens. Negative: none.
        token_to_req: ``[tokens]`` int32 or int64: the request of each query token; negative for padding.
        query_start_loc: ``[batch + 1]`` int32 or int64, not decreasing: query tokens ``[query_start_loc[b],
            query_start_loc[b + 1])`` are request b's, others padding. With neither, query token i is request
            i's.
        req_pool_indices: ``[batch]`` int32 or int64: the source row of each request; negative for padding.
            None: request b's is row b.
        seq_lens: ``[batch]`` int32 or int64, tokens of each row, at least 0: positions from there on get
            ``missing_id``. With a shard those of the whole rows. None: the width of the source.
        unit: tokens per position, 1 to 4096. The first of them is translated.
        page_size: tokens per id, a power of two up to 1024, a multiple or a divisor of ``unit``. 1: slots.
        source_page_size: tokens per source entry, 1 to 65,536, a multiple or a divisor of ``page_size``.
        block_stride: tokens of the cache, up to 65,536, from one source entry's first to the next one's,
            where blocks lie apart: the slot is ``entry * block_stride + offset``. At least the tokens of an
            entry, of a global table's blocks those of this rank; needs ``page_size`` 1. None: just as many.
        shard: this rank's share of each row, an `xkv.Shard`: positions are those of the whole rows, the ids
            the rank's own. ``unit`` must divide its ``interleave``.
        compact: pack the ids that there are at the front of each row, in their order.
        counts: ``[>= tokens]`` int32: written, the number of ids of each query token.
        dummy: int32, an id that attention may read: a query token without any gets it as its first id, and
            the count 1. None: its count is 0.
        missing_id: int32, written where there is no id.
        out: ``[>= tokens, k]`` int32 or int64, inner stride 1. Rows from ``tokens`` on are left unwritten.
        dtype: int32 or int64, of an ``out`` that is allocated.
        status: where a query token is reported whose row does not exist or is shorter than its length, or a
            position whose token has no id.

    Returns:
        ``out``, or the new ids ``[tokens, k]``.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: a rank, shape, stride, device, range or overlap that is not allowed.

    Examples:
        Two requests with one query token each; the second one's chosen position 9 is outside its row:

        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor([[8, 9, 10, 11], [16, 17, 18, 19]], dtype=torch.int32)
        >>> chosen = torch.tensor([[0, 3, -1], [9, 2, 0]], dtype=torch.int32)
        >>> xkv.translate_positions(req_to_token, chosen)
        tensor([[ 8, 11, -1],
                [-1, 18, 16]], dtype=torch.int32)
        >>> counts = torch.empty(2, dtype=torch.int32)
        >>> xkv.translate_positions(req_to_token, chosen, compact=True, counts=counts)
        tensor([[ 8, 11, -1],
                [18, 16, -1]], dtype=torch.int32)
        >>> counts
        tensor([2, 2], dtype=torch.int32)
    """
    word = getattr(status, "word", status)
    inputs: tuple[Any, ...] = (
        req_to_token, positions, out, token_to_req, query_start_loc, req_pool_indices, seq_lens, counts, word,
    )  # fmt: skip
    options = unit, page_size, source_page_size, block_stride, shard, compact, dummy, missing_id
    can_repeat = out is not None and not is_dynamo_compiling() and isinstance(status, Status | None)
    known = chosen.CALLS.lookup(inputs, options) if can_repeat else None
    if known is not None and out is not None and known.launch(inputs):
        return out
    build = _checked(
        req_to_token, positions, unit, page_size, source_page_size, block_stride, shard, compact, dummy,
        missing_id,
    )  # fmt: skip
    _check_requests(build, token_to_req, query_start_loc, req_pool_indices, seq_lens)
    if status is not None:
        if not isinstance(status, Status):
            raise TypeError(f"status must be an xkv.Status, got {type(status).__name__}")
        build.status = arguments.status_word(status.word, req_to_token)
    _check_outputs(build, out, counts, dtype)
    if is_dynamo_compiling():
        torch_library.run_translation(build)
    else:
        chosen.run(build, known, inputs)
    return build.out


def _checked(
    req_to_token: Tensor, positions: Tensor, unit: int, page_size: int, source_page_size: int,
    block_stride: int | None, shard: Shard | None, compact: bool, dummy: int | None, missing_id: int,
) -> ChosenTokens:  # fmt: skip
    """Checks the source, the positions and the numbers."""
    given = arguments.source(req_to_token, source_page_size)
    arguments.tensor("positions", positions, 2, req_to_token)
    arguments.integer("number of rows of positions", positions.shape[0], 0, MAX_TOKENS)
    arguments.integer("number of columns of positions", positions.shape[1], 1, MAX_CHOSEN)
    unit = arguments.integer("unit", unit, 1, MAX_UNIT)
    page_size = arguments.power_of_two("page_size", page_size)
    if unit % page_size and page_size % unit:
        raise ValueError(f"unit must be a multiple or a divisor of page_size={page_size}, got {unit}")
    source_unit, local = local_source(page_size, given, shard, None, "token_map")
    if local is not None and local.interleave % unit:
        raise ValueError(f"unit must divide shard.interleave={local.interleave}, got {unit}")
    stride = source_unit
    if block_stride is not None:
        stride = arguments.integer("block_stride", block_stride, source_unit, SOURCE_PAGE_MAX)
        if stride != source_unit and (page_size > 1 or (local is not None and local.source == "global")):
            raise ValueError(
                f"block_stride must be {source_unit} but with page_size=1 and a table of this rank's own"
                f" blocks, got {block_stride}"
            )
    if not isinstance(compact, bool):
        raise TypeError(f"compact must be a bool, got {type(compact).__name__}")
    if dummy is not None:
        dummy = arguments.integer("dummy", dummy, -INT32_MAX - 1, INT32_MAX)
    return ChosenTokens(
        req_to_token, positions, positions, page_size, source_unit, stride, unit, shard=local,
        compact=compact, dummy=dummy,
        missing_id=arguments.integer("missing_id", missing_id, -INT32_MAX - 1, INT32_MAX),
    )  # fmt: skip


def _check_requests(
    build: ChosenTokens, token_to_req: Tensor | None, query_start_loc: Tensor | None,
    req_pool_indices: Tensor | None, seq_lens: Tensor | None,
) -> None:  # fmt: skip
    """Checks whose the query tokens are, and where these requests' rows are."""
    source, tokens = build.req_to_token, build.num_tokens
    if token_to_req is not None:
        if query_start_loc is not None:
            raise ValueError("query_start_loc must be None with token_to_req, got a tensor")
        arguments.tensor("token_to_req", token_to_req, 1, source)
        if token_to_req.shape[0] != tokens:
            raise ValueError(
                f"token_to_req must have {tokens} entries, one for each query token, got"
                f" {token_to_req.shape[0]}"
            )
    if query_start_loc is not None:
        arguments.tensor("query_start_loc", query_start_loc, 1, source)
        arguments.integer("number of entries of query_start_loc", query_start_loc.shape[0], 1, MAX_BATCH + 1)
    build.token_to_req, build.query_start_loc = token_to_req, query_start_loc
    for name, rows in (("req_pool_indices", req_pool_indices), ("seq_lens", seq_lens)):
        if rows is None:
            continue
        arguments.tensor(name, rows, 1, source)
        setattr(build, name, rows)
        one_each = token_to_req is None and query_start_loc is None
        expected = tokens if one_each else build.batch
        if rows.shape[0] != expected:
            raise ValueError(f"{name} must have {expected} entries, got {rows.shape[0]}")


def _check_outputs(
    build: ChosenTokens, out: Tensor | None, counts: Tensor | None, dtype: torch.dtype
) -> None:
    tokens, k = build.num_tokens, build.k
    reads = [
        x for x in (
            build.req_to_token, build.positions, build.token_to_req, build.query_start_loc,
            build.req_pool_indices, build.seq_lens, build.status,
        ) if x is not None
    ]  # fmt: skip
    if out is None:
        if dtype is not torch.int32 and dtype is not torch.int64:
            got = "a tensor" if isinstance(dtype, Tensor) else dtype
            raise TypeError(f"dtype must be torch.int32 or torch.int64, got {got}")
        out = torch.empty((tokens, k), dtype=dtype, device=build.req_to_token.device)
    else:
        arguments.output("out", out, 2, tokens, reads)
        if out.shape[1] != k:
            raise ValueError(f"out must have {k} columns, as positions, got {out.shape[1]}")
    build.out = out
    if counts is not None:
        if isinstance(counts, Tensor) and counts.dtype is not torch.int32:
            raise TypeError(f"counts must be int32, got {counts.dtype}")
        arguments.output("counts", counts, 1, tokens, [*reads, out])
        build.counts = counts


def _registered(
    req_to_token: Tensor, positions: Tensor, token_to_req: Tensor | None, query_start_loc: Tensor | None,
    req_pool_indices: Tensor | None, seq_lens: Tensor | None, out: Tensor, counts: Tensor | None,
    status: Tensor | None, **numbers: Any,
) -> None:  # fmt: skip
    """As torch's dispatcher calls it."""
    translate_positions(
        req_to_token, positions, token_to_req=token_to_req, query_start_loc=query_start_loc,
        req_pool_indices=req_pool_indices, seq_lens=seq_lens, out=out, counts=counts,
        status=None if status is None else Status.of(status),
        shard=torch_library.shard_of(numbers.pop("shard")), **numbers,
    )  # fmt: skip


torch_library.register_translation(_registered)
