"""The outputs of the ops: the check that they overlap no input, and their allocation if ``out`` is None."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import arguments
from ..params import INT32_MAX, LENGTH_MAX, Build
from ..reference.rows import local_lengths
from ..shard import local_length


def inputs_of(build: Build, *more: Tensor | None) -> list[Tensor]:
    """Returns every tensor that the launch reads, which no output may overlap."""
    shared = [
        build.req_to_token, build.req_pool_indices, build.seq_lens, build.seq_lens_delta_rows, build.status,
    ]  # fmt: skip
    return [x for x in (*shared, *more) if x is not None]


def check_start_offset(build: Build, kv_start_offset: Tensor | None, others: list[Tensor | None]) -> None:
    """Checks ``kv_start_offset``, which must not overlap the other tensors of the launch."""
    if kv_start_offset is not None:
        arguments.output("kv_start_offset", kv_start_offset, 1, build.batch, inputs_of(build, *others))
        if kv_start_offset.dtype is not torch.int32:
            raise TypeError(f"kv_start_offset must be int32, got {kv_start_offset.dtype}")


def _row_ends(build: Build) -> Tensor:
    delta = build.seq_lens_delta_rows
    ends = build.seq_lens.to(torch.int64).clamp(-LENGTH_MAX, LENGTH_MAX)
    ends = ends + (build.seq_lens_delta if delta is None else delta.clamp(-LENGTH_MAX, LENGTH_MAX))
    return ends.clamp(0, build.source_tokens)


def longest_row(build: Build) -> int:
    """Returns the tokens of the longest row, of a shard the rank's own. Syncs."""
    return int(local_lengths(_row_ends(build), build.shard).max()) if build.batch else 0


def total_pages(build: Build, kv_start: Tensor | None) -> int:
    """Returns the pages of all rows together. Syncs."""
    ends, page_size = local_lengths(_row_ends(build), build.shard), build.page_size
    pages = (ends + page_size - 1) // page_size
    if kv_start is not None:
        start = local_lengths(kv_start.to(torch.int64).clamp(min=0), build.shard)
        pages = torch.where(start < ends, pages - start // page_size, 0)
    return int(pages.sum())


def new_table(build: Build, max_seq_len: int | None, dtype: torch.dtype) -> Tensor:
    """Allocates a page table for ``max_seq_len`` tokens, or, if it is None, for the longest row, which syncs.

    Attention kernels take no table of width 0: it is at least 1, and a multiple of ``pad_to_multiple_of``.
    """
    tokens = longest_row(build) if max_seq_len is None else local_length(max_seq_len, build.shard)
    multiple = build.pad_to_multiple_of or 1
    width = -(-max(tokens, 1) // (build.page_size * multiple)) * multiple
    return _new(build, (build.batch, width), dtype)


def new_csr(
    build: Build, kv_start: Tensor | None, max_tokens: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates kv_indptr, kv_indices and kv_last_page_len for ``max_tokens``. If it is None, syncs."""
    batch, page_size = build.batch, build.page_size
    if max_tokens is None:
        size = total_pages(build, kv_start)
    else:
        # every row can have a partly filled page at its end and, if it has a kv_start, at its start
        partial = 0 if page_size == 1 else 1 if kv_start is None else 2
        tokens = max_tokens if build.shard is None else build.shard.max_tokens(max_tokens, batch)
        size = tokens // page_size + batch * partial
    return (
        _new(build, (batch + 1,), torch.int32), _new(build, (size,), dtype),
        _new(build, (batch,), torch.int32),
    )  # fmt: skip


def new_slots(build: Build, max_tokens: int | None, dtype: torch.dtype) -> Tensor:
    """Allocates the slots of ``max_tokens`` query tokens. If it is None, of all: syncs, but for positions."""
    if max_tokens is None and build.positions is not None:
        max_tokens = build.positions.shape[0]
    elif max_tokens is None:
        assert build.query_lens is not None  # checked: one of the two is given
        max_tokens = min(int(build.query_lens.to(torch.int64).clamp(0, LENGTH_MAX).sum()), INT32_MAX)
    return _new(build, (max_tokens,), dtype)


def _new(build: Build, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype is not torch.int32 and dtype is not torch.int64:
        got = "a tensor" if isinstance(dtype, Tensor) else dtype
        raise TypeError(f"dtype must be torch.int32 or torch.int64, got {got}")
    return torch.empty(shape, dtype=dtype, device=build.req_to_token.device)
