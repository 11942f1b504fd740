"""vLLM's lengths of one rank of decode context parallelism, as a launch that writes no ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...launch import verify
from ...params import MAX_BATCH, NO_IDS, TABLE, Build, View
from ...shard import MAX_INTERLEAVE, MAX_SIZE, Shard
from ..cached_calls import CachedCalls, LaunchSizes
from ..rows import every_row

_UNIT = 1 << 12  # tokens of an entry of a source that has room for any row
# for each device: the row 0 as often as the largest batch has requests, then -1 as often
_rows: dict[torch.device, Tensor] = {}
_first: dict[tuple[torch.device, int], Tensor] = {}


def _rows_of(device: torch.device, requests: int) -> Tensor | None:
    """Returns rows of which so many exist; None: a capture, in which they cannot be put on the device."""
    found = _first.get((device, requests))
    if found is None:
        if device not in _rows:
            every = every_row(device)
            if every is None or verify.capturing(every):
                return None
            _rows[device] = torch.cat([torch.zeros_like(every), torch.full_like(every, -1)])
        found = _first[device, requests] = _rows[device][MAX_BATCH - requests :]
    return found


def _sizes(
    rows: Tensor, lens: Tensor, out: Tensor, batch: int, size: int, rank: int, interleave: int
) -> LaunchSizes | None:
    if not 1 < size <= MAX_SIZE or not 0 <= rank < size or not 0 < interleave <= MAX_INTERLEAVE:
        return None
    if out.numel() < batch or not out.is_contiguous() or not lens.is_contiguous():
        return None
    return LaunchSizes((size, interleave), ("batch", "shard_rank"), (batch, rank), NO_IDS)


def _build(
    rows: Tensor, lens: Tensor, out: Tensor, batch: int, size: int, rank: int, interleave: int
) -> Build | None:
    every = every_row(out.device)
    if every is None or out.dtype is not torch.int32:
        return None
    return Build(
        every.view(1, -1), rows[:batch], lens.as_strided((batch,), (1,)), TABLE, 1, _UNIT, 1,
        (View(out.view(1, -1), cache_seqlens=out[:batch]),), report_missing=False,
        shard=Shard(size, rank, interleave), writes_ids=False,
    )  # fmt: skip


lengths = CachedCalls("rows_ptr lens_ptr seqlens_ptr", _sizes, _build)


def warm(out: Tensor, seq_lens: Tensor, dcp_size: int, dcp_rank: int, cp_interleave: int) -> int:
    """Compiles and loads what these calls need; returns how many kernels were not there before."""
    rows = _rows_of(out.device, 0)
    return 0 if rows is None else lengths.warm((rows, seq_lens, out), 1, dcp_size, dcp_rank, cp_interleave)


def dcp_local_seq_lens(
    grid: Any, out_ptr: Any, seq_lens_ptr: Any, dcp_size: int, dcp_rank: int, cp_interleave: int,
    num_reqs: int, max_num_reqs: int, BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """As ``_dcp_local_seq_lens_kernel``: what the rank has of each row; 0 behind the requests.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    if not 0 <= num_reqs <= max_num_reqs <= MAX_BATCH:
        return False
    # its lengths are the first of a buffer for as many: what lies behind them is read, and not used
    buffer = seq_lens_ptr.untyped_storage().nbytes() // seq_lens_ptr.element_size()
    if seq_lens_ptr.storage_offset() + max_num_reqs > buffer:
        return False
    rows = _rows_of(out_ptr.device, num_reqs)
    if rows is None:
        return False
    return lengths((rows, seq_lens_ptr, out_ptr), max_num_reqs, dcp_size, dcp_rank, cp_interleave)
