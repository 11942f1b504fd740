"""vLLM's lengths of one rank of decode context parallelism, as a launch that writes no ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...params import MAX_BATCH, NO_IDS, TABLE, Build, View
from ...shard import MAX_INTERLEAVE, MAX_SIZE, Shard
from ..cached_calls import CachedCalls, LaunchSizes

_UNIT = 1 << 12  # tokens of an entry of a source that has room for any row


def _sizes(
    lens: Tensor, out: Tensor, batch: int, requests: int, size: int, rank: int, interleave: int
) -> LaunchSizes | None:
    if not 1 < size <= MAX_SIZE or not 0 <= rank < size or not 0 < interleave <= MAX_INTERLEAVE:
        return None
    if out.numel() < batch or not out.is_contiguous() or not lens.is_contiguous():
        return None
    names = "batch", "src_rows", "shard_rank"
    return LaunchSizes((size, interleave), names, (batch, requests, rank), NO_IDS)


def _build(
    lens: Tensor, out: Tensor, batch: int, requests: int, size: int, rank: int, interleave: int
) -> Build | None:
    if out.dtype is not torch.int32:
        return None
    # Row b is request b's, and those behind the requests are not there. No entry of the source is accessed.
    source = out[:1].expand(requests, MAX_BATCH)
    return Build(
        source, None, lens.as_strided((batch,), (1,)), TABLE, 1, _UNIT, 1,
        (View(out.view(1, -1), cache_seqlens=out[:batch]),), report_missing=False,
        shard=Shard(size, rank, interleave), writes_ids=False,
    )  # fmt: skip


lengths = CachedCalls("lens_ptr seqlens_ptr", _sizes, _build)


def warm(out: Tensor, seq_lens: Tensor, dcp_size: int, dcp_rank: int, cp_interleave: int) -> int:
    """Compiles and loads what these calls need; returns how many kernels were not there before."""
    return lengths.warm((seq_lens, out), 1, 1, dcp_size, dcp_rank, cp_interleave)


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
    return lengths((seq_lens_ptr, out_ptr), max_num_reqs, num_reqs, dcp_size, dcp_rank, cp_interleave)
