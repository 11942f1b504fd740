"""The page indices of vLLM's FlashInfer and Aiter MLA backends: CSR as `xkv.build_kv_indices` has it.

vLLM gives the prefix sums and wants the ids alone: a row's length is the difference of two of them. Aiter's
are xkv's kernel; FlashInfer's, which are a copy of the table's rows, are a kernel of the plugin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...launch import launch
from ...launch.cache import LaunchCache
from ...launch.guards import addresses, have_memory
from ...launch.triton_launcher import launch_hooks_active
from ...params import CAPACITY_MAX, CSR, LENGTH_MAX, MAX_BATCH, ROW_MAX, Build, View
from ..cached_calls import CachedCalls, LaunchSizes
from ..repeats import Repeats
from .launching import PROGRAMS, Launcher, parts, served

_BLOCK_SIZES = {1 << n for n in range(11)}
# Blocks of a row in flight, and programs that rows are shared out over: more where a row can be very long.
# H200, 256 rows of ~256 blocks in tables of 8192 and of 65536: 1.1 and 1.7 us, vLLM's own 1.3; if one of them
# has all of the 65536: 5.9, with 264 programs 15.5, vLLM's own 21
_COPIED = 1024
_LONG, _PROGRAMS = 16384, 264
PAGES_CONSTEXPRS = (_COPIED,)
pages = Launcher("copy_page_indices")

_POINTERS = ("src_ptr", "lens_ptr", "query_ptr", "indptr_ptr", "out_ptr")
_SIZES = ("src_stride", "src_rows", "src_tokens", "batch", "capacity")
_entries = LaunchCache()
_repeats = Repeats()


def forget() -> None:
    """Forgets every call."""
    _entries.clear()
    _repeats.clear()
    clamped.clear()


def copy_page_indices(
    grid: Any, page_indices: Any, block_table: Any, block_table_stride: int, cu_num_blocks: Any,
    BLOCK_SIZE: int,
) -> bool:  # fmt: skip
    """As ``_copy_page_indices_kernel``: the first blocks of each row, one row behind the other.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    device, batch = served(page_indices), grid[0]
    rows, width = block_table.shape
    # few questions, as each costs a step its microsecond: vLLM's kernel asks none
    if (
        device is None
        or block_table.stride(0) != block_table_stride
        or not 0 < batch <= rows
        or cu_num_blocks.shape[0] <= batch
    ):
        return False
    programs = PROGRAMS if width > _LONG else _PROGRAMS
    row_parts = parts(batch, 1, -(-width // _COPIED), programs)
    pages(
        device, (batch, row_parts, 1), (page_indices, block_table, cu_num_blocks),
        (block_table_stride, width, page_indices.shape[0]), PAGES_CONSTEXPRS,
    )  # fmt: skip
    return True


def expand_page_indices(
    grid: Any, page_indices: Any, block_table: Any, block_table_stride_0: int, block_table_stride_1: int,
    cu_num_tokens: Any, num_real_tokens: Any, KERNEL_BLOCK_SIZE: int, BLOCK_SIZE: int,
    CLAMP_TAIL: bool = False,
) -> bool:  # fmt: skip
    """As ``_expand_page_indices_kernel``: the token slots of each row, one row behind the other.

    With CLAMP_TAIL what lies past a request's ``num_real_tokens`` repeats its first slot.

    Returns:
        Whether it was launched; False leaves the call to vLLM's own kernel.
    """
    if block_table_stride_1 != 1:
        return False
    if CLAMP_TAIL:
        inputs = block_table, num_real_tokens, cu_num_tokens, page_indices
        return clamped(inputs, grid[0], block_table_stride_0, KERNEL_BLOCK_SIZE)
    return _build(grid[0], page_indices, block_table, block_table_stride_0, cu_num_tokens, KERNEL_BLOCK_SIZE)


def _build(batch: int, out: Any, table: Any, stride: int, sums: Any, block_size: int) -> bool:
    device = served(out)
    if device is None or not 0 < batch <= MAX_BATCH or out.shape[0] > LENGTH_MAX:
        return False
    tensors = out, table, sums
    begin, first, start = addresses(tensors)
    key = batch, stride, block_size, begin, first, start
    if _repeats.launch(key, tensors):
        return True
    if not _fits(batch, out, table, stride, sums, block_size):
        return False
    signature = device, block_size, out.dtype, table.dtype, sums.dtype
    entry = _entries.get(signature)
    if entry is not None and not launch_hooks_active() and have_memory((begin, first, start), tensors):
        tokens = table.size(1) * block_size
        pointers = (first, start + sums.element_size(), start, start, begin)
        sizes = (stride, table.size(0), tokens, batch, out.size(0))
        found = entry.call(pointers, sizes, batch, min(out.size(0), tokens + 1))
        if found is not None:
            call, compiled = found
            compiled.launch(call)
            _repeats.add(key, tensors, call, compiled)
            return True
    build = _as_build(batch, View(out, kv_indptr=sums[:batch]), table, sums, block_size)
    _entries.add(signature, build, launch.run(build), _POINTERS, _SIZES)
    return True


def _fits(batch: int, out: Tensor, table: Tensor, stride: int, sums: Tensor, block_size: int) -> bool:
    ints = (torch.int32, torch.int64)
    return (
        block_size in _BLOCK_SIZES
        and out.device == table.device == sums.device
        and all(x.dtype in ints for x in (out, table, sums))
        and (out.dim(), table.dim(), sums.dim()) == (1, 2, 1)
        and all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in (out, table, sums))
        and table.stride(0) == stride
        and table.shape[0] >= batch
        and sums.shape[0] > batch
        and table.shape[1] * block_size <= ROW_MAX
    )


def _as_build(batch: int, view: View, table: Tensor, sums: Tensor, block_size: int) -> Build:
    """Row b is row b of the table, ``sums[b + 1] - sums[b]`` long, and begins at ``sums[b]``."""
    return Build(
        table, None, sums[1 : batch + 1], CSR, 1, block_size, 1, (view,),
        query_lens=sums[:batch], query_sign=-1, report_missing=False, indptr_is_input=True,
    )  # fmt: skip


def _clamped_sizes(
    table: Tensor, lens: Tensor, sums: Tensor, out: Tensor, batch: int, stride: int, block_size: int
) -> LaunchSizes | None:
    if not _fits(batch, out, table, stride, sums, block_size) or lens.dim() != 1 or lens.numel() < batch:
        return None
    tokens, capacity = table.size(1) * block_size, min(out.size(0), CAPACITY_MAX)
    values = (stride, table.size(0), tokens, batch, capacity)
    return LaunchSizes((block_size,), _SIZES, values, capacity)


def _clamped_build(
    table: Tensor, lens: Tensor, sums: Tensor, out: Tensor, batch: int, stride: int, block_size: int
) -> Build | None:
    if lens.stride(0) != 1:
        return None
    return Build(
        table, None, lens[:batch], CSR, 1, block_size, 1, (View(out, kv_indptr=sums[: batch + 1]),),
        report_missing=False, indptr_is_input=True, clamps_tail=True,
    )  # fmt: skip


clamped = CachedCalls("src_ptr lens_ptr indptr_ptr out_ptr", _clamped_sizes, _clamped_build)
