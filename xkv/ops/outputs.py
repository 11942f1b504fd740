"""The outputs of the ops: what they may not overlap, and what is allocated where none is given."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import arguments
from ..params import INT32_MAX, LENGTH_MAX, Build


def reads(build: Build, *more: Tensor | None) -> list[Tensor]:
    """Every tensor that the launch reads, which no output may overlap."""
    mine = [
        build.req_to_token, build.req_pool_indices, build.seq_lens, build.seq_lens_delta_rows, build.status,
    ]  # fmt: skip
    return [x for x in (*mine, *more) if x is not None]


def offsets(build: Build, kv_start_offset: Tensor | None, others: list[Tensor | None]) -> None:
    """Checks the output of that name, beside what else the launch reads and writes."""
    if kv_start_offset is not None:
        arguments.output("kv_start_offset", kv_start_offset, 1, build.batch, reads(build, *others))
        if kv_start_offset.dtype is not torch.int32:
            raise TypeError(f"kv_start_offset must be int32, got {kv_start_offset.dtype}")


def _ends(build: Build) -> Tensor:
    delta = build.seq_lens_delta_rows
    ends = build.seq_lens.to(torch.int64).clamp(-LENGTH_MAX, LENGTH_MAX)
    ends = ends + (build.seq_lens_delta if delta is None else delta.clamp(-LENGTH_MAX, LENGTH_MAX))
    return ends.clamp(0, build.source_tokens)


def longest(build: Build) -> int:
    """Tokens of the longest row. Syncs."""
    return int(_ends(build).max()) if build.batch else 0


def entries(build: Build, kv_start: Tensor | None) -> int:
    """Pages of all rows. Syncs."""
    ends, page_size = _ends(build), build.page_size
    pages = (ends + page_size - 1) // page_size
    if kv_start is not None:
        start = kv_start.to(torch.int64).clamp(min=0)
        pages = torch.where(start < ends, pages - start // page_size, 0)
    return int(pages.sum())


def new_table(build: Build, max_seq_len: int | None, dtype: torch.dtype) -> Tensor:
    """A page table for the longest row, or for ``max_seq_len`` tokens. Syncs without that.

    Readers take no table without a column, so it has one at least; and whole tiles, where it has tiles.
    """
    tokens = longest(build) if max_seq_len is None else max_seq_len
    tile = build.pad_to_multiple_of or 1
    return _new(build, (build.batch, -(-max(tokens, 1) // (build.page_size * tile)) * tile), dtype)


def new_csr(
    build: Build, kv_start: Tensor | None, max_tokens: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix sums, ids and last page lengths, with room for ``max_tokens``. Syncs without that."""
    batch, page_size = build.batch, build.page_size
    if max_tokens is None:
        size = entries(build, kv_start)
    else:
        # every row can leave a page partly filled at its end and, if it may start anywhere, its start
        ragged = 0 if page_size == 1 else 1 if kv_start is None else 2
        size = max_tokens // page_size + batch * ragged
    return (
        _new(build, (batch + 1,), torch.int32), _new(build, (size,), dtype),
        _new(build, (batch,), torch.int32),
    )  # fmt: skip


def new_slots(build: Build, query_lens: Tensor, max_tokens: int | None, dtype: torch.dtype) -> Tensor:
    """Slots for all query tokens, or for ``max_tokens``. Syncs without that."""
    if max_tokens is None:
        max_tokens = min(int(query_lens.to(torch.int64).clamp(0, LENGTH_MAX).sum()), INT32_MAX)
    return _new(build, (max_tokens,), dtype)


def _new(build: Build, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype is not torch.int32 and dtype is not torch.int64:
        got = "a tensor" if isinstance(dtype, Tensor) else dtype
        raise TypeError(f"dtype must be torch.int32 or torch.int64, got {got}")
    return torch.empty(shape, dtype=dtype, device=build.req_to_token.device)
