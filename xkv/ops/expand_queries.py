"""`expand_queries`: a row for each query token: its request, its position, what it sees, its page table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import arguments, torch_library
from ..expanded import MAX_TOKENS, MAX_WIDTH, ExpandedQueries, Expansion
from ..launch import expanded
from ..params import INT32_MAX, MAX_BATCH
from ..shard import Shard
from ..status import Status


def expand_queries(
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    num_tokens: int | None = None,
    shard: Shard | None = None,
    causal: bool = True,
    page_table: Tensor | None = None,
    pad_req: int = 0,
    out: ExpandedQueries | None = None,
    status: Status | None = None,
) -> ExpandedQueries:
    """Expands requests into one row per query token, as sparse attention and the verification of drafts read.

    Query token i of the q of a request with n tokens is at position ``n - q + i`` and sees ``n - q + i + 1``
    tokens. Query tokens from ``query_start_loc[batch]`` on are padding, as those of a larger graph.

    With ``out`` it makes one launch, does not sync or allocate, and is safe in a CUDA or HIP graph. Without
    ``out`` it allocates, and syncs unless ``num_tokens`` is given. CPU tensors take the torch reference.
    Follows FlashInfer's get_batch_indices_positions, vLLM's _token_request_mapping_kernel and
    _indexer_decode_metadata_kernel, and SGLang's seqlens_expand_triton.

    Args:
        query_start_loc: ``[batch + 1]`` int32 or int64, at least 0 and not decreasing: query tokens
            ``[query_start_loc[b], query_start_loc[b + 1])`` are request b's. As it is not trusted, a request
            that begins before 0 has none, and a token that several requests claim is of one of them or
            padding.
        seq_lens: ``[batch]`` int32 or int64, 0 to 2**28 - 1: tokens of each request, query tokens included.
            A request of length 0 is padding: its query tokens keep their request, at position 0, and see
            none.
        num_tokens: query tokens, padding included, at most 2**24. Entries of ``out`` from there on are left
            unwritten. None: as many as ``out`` has room for, or, without it, ``query_start_loc[batch]``.
        shard: this rank's share of each row, an `xkv.Shard`: of the tokens that a query token sees, only the
            rank's are counted. ``seq_lens`` and positions are those of the whole rows. None: all.
        causal: whether a query token sees the row up to itself. False: each sees the whole row.
        page_table: ``[>= batch, width]`` int32 or int64, inner stride 1, width at most 2**24: a row for each
            request, of which every query token of it gets a copy. None: there is no ``out_page_table``.
        pad_req: int32, the request of padding.
        out: the tensors to write, an `xkv.ExpandedQueries`: vectors ``[>= num_tokens]``, and the table
            ``[>= num_tokens, <= width]`` of ``page_table``'s dtype, inner stride 1, which gets the first
            entries of each row. One that is None is not written. With ``num_tokens`` None all have as many
            entries or rows. None: allocated, positions as int64.
        status: where a request is reported whose length is out of range (BAD_LENGTH), that begins before 0
            or ends before it begins or, unless its length is 0, has more query tokens than tokens
            (BAD_QUERY), or that ends behind ``num_tokens`` (TRUNCATED). A query token before the row's first
            token is at position 0 and, if ``causal``, sees none.

    Returns:
        ``out``, or new tensors.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: a rank, shape, stride, device, range or overlap that is not allowed.

    Examples:
        Two requests, of one and of three query tokens, in a graph of 5 query tokens:

        >>> import torch
        >>> import xkv
        >>> starts, lens = torch.tensor([0, 1, 4]), torch.tensor([7, 5])
        >>> pages = torch.tensor([[4, 6], [9, 3]], dtype=torch.int32)
        >>> rows = xkv.expand_queries(starts, lens, num_tokens=5, page_table=pages)
        >>> rows.token_to_req
        tensor([0, 1, 1, 1, 0], dtype=torch.int32)
        >>> rows.positions
        tensor([6, 2, 3, 4, 0])
        >>> rows.seq_lens
        tensor([7, 3, 4, 5, 0], dtype=torch.int32)
        >>> rows.out_page_table
        tensor([[4, 6],
                [9, 3],
                [9, 3],
                [9, 3],
                [0, 0]], dtype=torch.int32)
    """
    known: Any = None
    inputs: tuple[Any, ...] = ()
    can_repeat = isinstance(out, ExpandedQueries) and isinstance(status, Status | None)
    if can_repeat and not is_dynamo_compiling():
        assert out is not None
        inputs = query_start_loc, seq_lens, *out, page_table, getattr(status, "word", status)
        known = expanded.CALLS.lookup(inputs, (num_tokens, shard, causal, pad_req))
        if known is not None and known.launch(inputs):
            return out
    build = _checked(query_start_loc, seq_lens, shard, causal, page_table, pad_req)
    if status is not None:
        if not isinstance(status, Status):
            raise TypeError(f"status must be an xkv.Status, got {type(status).__name__}")
        build.status = arguments.status_word(_input("status.word", status.word, 1, seq_lens), seq_lens)
    if num_tokens is not None:
        num_tokens = arguments.integer("num_tokens", num_tokens, 0, MAX_TOKENS)
    if out is None:
        if num_tokens is None:
            num_tokens = int(query_start_loc[-1].to(torch.int64).clamp(0, MAX_TOKENS))
        out = _new(build, num_tokens)
    else:
        num_tokens = _check_out(build, out, num_tokens)
    build.num_tokens, build.out = num_tokens, out
    if is_dynamo_compiling():
        torch_library.run_expansion(build)
    else:
        expanded.run(build, known, inputs)
    return out


def _input(name: str, value: Any, rank: int, like: Any) -> Tensor:
    """Returns ``value``, a tensor as the ops take them, on the device of ``like``."""
    tensor = arguments.tensor(name, value, rank)
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like seq_lens, got {tensor.device}")
    return tensor


def _checked(
    query_start_loc: Tensor, seq_lens: Tensor, shard: Shard | None, causal: bool, page_table: Tensor | None,
    pad_req: int,
) -> Expansion:  # fmt: skip
    """Checks the inputs and the numbers."""
    arguments.tensor("seq_lens", seq_lens, 1)
    # checked first: meta tensors share one data pointer, other devices fail later with an error of torch's
    if seq_lens.device.type not in ("cpu", "cuda"):
        raise ValueError(
            "seq_lens must be on a GPU (torch device 'cuda', ROCm's too) or on the CPU, got"
            f" {seq_lens.device}"
        )
    batch = seq_lens.shape[0]
    if batch > MAX_BATCH:
        raise ValueError(f"seq_lens must have at most {MAX_BATCH} entries, got {batch}")
    _input("query_start_loc", query_start_loc, 1, seq_lens)
    if query_start_loc.shape[0] != batch + 1:
        raise ValueError(
            f"query_start_loc must have {batch + 1} entries, one more than seq_lens, got"
            f" {query_start_loc.shape[0]}"
        )
    if shard is not None and not isinstance(shard, Shard):
        raise TypeError(f"shard must be an xkv.Shard, got {type(shard).__name__}")
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    if page_table is not None:
        _input("page_table", page_table, 2, seq_lens)
        if page_table.shape[0] < batch:
            raise ValueError(
                f"page_table must have at least {batch} rows, one per request, got {page_table.shape[0]}"
            )
        if page_table.shape[1] > MAX_WIDTH:
            raise ValueError(f"page_table must have at most {MAX_WIDTH} columns, got {page_table.shape[1]}")
    return Expansion(
        query_start_loc, seq_lens, 0, ExpandedQueries(), page_table,
        shard=None if shard is None or shard.size == 1 else shard, causal=causal,
        pad_req=arguments.integer("pad_req", pad_req, -INT32_MAX - 1, INT32_MAX),
    )  # fmt: skip


def _new(build: Expansion, num_tokens: int) -> ExpandedQueries:
    device, table = build.seq_lens.device, build.page_table
    return ExpandedQueries(
        torch.empty(num_tokens, dtype=torch.int32, device=device),
        torch.empty(num_tokens, dtype=torch.int64, device=device),
        torch.empty(num_tokens, dtype=torch.int32, device=device),
        None if table is None else table.new_empty((num_tokens, table.shape[1])),
    )


def _check_out(build: Expansion, out: ExpandedQueries, num_tokens: int | None) -> int:
    """Checks what is written; returns the number of query tokens."""
    if not isinstance(out, ExpandedQueries):
        raise TypeError(f"out must be an xkv.ExpandedQueries, got {type(out).__name__}")
    reads = [
        x for x in (build.seq_lens, build.query_start_loc, build.page_table, build.status) if x is not None
    ]  # fmt: skip
    size = num_tokens
    for name, x, rank, dtype in (
        ("out.token_to_req", out.token_to_req, 1, torch.int32), ("out.positions", out.positions, 1, None),
        ("out.seq_lens", out.seq_lens, 1, torch.int32), ("out.out_page_table", out.out_page_table, 2, None),
    ):  # fmt: skip
        if x is None:
            continue
        _input(name, x, rank, build.seq_lens)
        if dtype is not None and x.dtype is not dtype:
            raise TypeError(f"{name} must be int32, got {x.dtype}")
        if size is None:
            size = arguments.integer("number of query tokens", x.shape[0], 0, MAX_TOKENS)
        if num_tokens is None and x.shape[0] != size:
            raise ValueError(
                f"{name} must have {size} entries or rows, as others of out without num_tokens, got"
                f" {x.shape[0]}"
            )
        arguments.output(name, x, rank, size, reads)
        reads = [*reads, x]
    if size is None or all(x is None for x in out):
        raise ValueError("out must have a tensor to write, got None alone")
    _check_tables(build.page_table, out.out_page_table)
    return size


def _check_tables(table: Tensor | None, out: Tensor | None) -> None:
    if table is None and out is not None:
        raise TypeError("page_table must be a torch.Tensor with out.out_page_table, got None")
    if table is None or out is None:
        if table is not None:
            raise TypeError("out.out_page_table must be a torch.Tensor with page_table, got None")
        return
    if out.dtype is not table.dtype:
        raise TypeError(f"out.out_page_table must be {table.dtype}, as page_table, got {out.dtype}")
    if out.shape[1] > table.shape[1]:
        raise ValueError(
            f"out.out_page_table must have at most {table.shape[1]} columns, as page_table, got"
            f" {out.shape[1]}"
        )


def _registered(
    query_start_loc: Tensor, seq_lens: Tensor, page_table: Tensor | None, token_to_req: Tensor | None,
    positions: Tensor | None, out_seq_lens: Tensor | None, out_page_table: Tensor | None,
    status: Tensor | None, **numbers: Any,
) -> None:  # fmt: skip
    """As torch's dispatcher calls it."""
    expand_queries(
        query_start_loc, seq_lens, page_table=page_table,
        out=ExpandedQueries(token_to_req, positions, out_seq_lens, out_page_table),
        status=None if status is None else Status.of(status),
        shard=torch_library.shard_of(numbers.pop("shard")), **numbers,
    )  # fmt: skip


torch_library.register_expansion(_registered)
