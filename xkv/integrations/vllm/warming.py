"""Compiles at vLLM's start, in its own warm-up of kernels, what its steps can launch of ours."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..patching import replacing
from . import indices, lengths, step, tables
from .launching import served

_FLASHINFER = "vllm.v1.attention.backends.flashinfer"
_I32, _I64 = torch.int32, torch.int64
_PAD = -1  # vLLM's PAD_SLOT_ID in every version that is known; another one compiles when it is first launched


def kernel_warmup(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    """As vLLM's ``kernel_warmup`` of any version, and ours after it."""
    result = original(worker, *args, **kwargs)
    for warm in (block_tables, slot_mapping, page_indices, local_lengths):
        try:
            warm(worker.model_runner)
        except Exception as error:  # an engine of another layout has to start, too
            logging.getLogger("vllm.xkv").warning(
                "xkv compiles %s while serving, not at the start: %s: %s",
                warm.__name__, type(error).__name__, error,
            )  # fmt: skip
    return result


def block_tables(runner: Any) -> None:
    """Model runner V2's rows and slots: of a step, and each alone, as speculators ask for them."""
    made = getattr(runner, "block_tables", None)
    if made is None or made.num_kv_cache_groups == 0:
        return
    device, buffers = served(made.slot_mappings), runner.input_buffers
    if device is None:
        return
    at, positions = buffers.query_start_loc.dtype, buffers.positions.dtype
    sharded, reach = getattr(made, "dcp_sharded", None), getattr(made, "sliding_window_reach", None)
    sharded = None if sharded is None else sharded.dtype
    layout = (made.block_table_ptrs.dtype, made.block_table_strides.dtype, made.block_sizes_tensor.dtype)
    pointers, widths, sizes = layout
    masked = (_I32, _I32, sizes) if reach is not None else (None, None, None)
    windows = {False, bool(getattr(made, "has_sliding_window_groups", False))}
    for order in (_I64, _I32):  # requests of a step, as vLLM 0.33 has them, and as others may
        rows = (order, pointers, pointers, widths, made.num_blocks.gpu.dtype, *masked)
        slots = (
            made.slot_mappings.dtype, order, at, positions, *layout, made.slot_mapping_enabled.dtype, sharded,
        )  # fmt: skip
        for window in windows:
            tables.rows.prepare(device, rows, 2, tables.rows_constexprs(window))
        tables.slots.prepare(device, slots, 8, tables.slots_constexprs(True, made.cp_size, _PAD))
        if step.pad_of(made.__class__) is not None:
            both = (*rows, slots[0], at, positions, slots[-2], sharded)
            shape = step.constexprs(max(windows), made.cp_size, _PAD)
            step.both.prepare(device, both, step.NUMBERS, shape)


def slot_mapping(runner: Any) -> None:
    """Model runner V1's slots."""
    made = getattr(getattr(runner, "input_batch", None), "block_table", None)
    for table in getattr(made, "block_tables", ()):
        device = served(table.slot_mapping.gpu)
        if device is None:
            return
        at, positions = (getattr(x, "gpu", x).dtype for x in (runner.query_start_loc, runner.positions))
        dtypes = (table.slot_mapping.gpu.dtype, None, at, positions, table.block_table.gpu.dtype)
        for ranks in {1, table.dcp_world_size}:
            shape = tables.slots_constexprs(False, ranks, _PAD)
            tables.slots.prepare(device, (*dtypes, None, None, None, None), 8, shape)


def page_indices(runner: Any) -> None:
    """FlashInfer's page indices, at any batch and width."""
    kernel = getattr(sys.modules.get(_FLASHINFER), "_copy_page_indices_kernel", None)
    if kernel is not None and replacing.replaced(kernel) and runner.device.type == "cuda":
        device = torch.empty(0, device=runner.device).get_device()  # of a device without a number, too
        indices.pages.prepare(device, (_I32, _I32, _I32), 3, indices.PAGES_CONSTEXPRS)


def local_lengths(runner: Any) -> None:
    """Model runner V2's lengths of a rank."""
    made = getattr(runner, "block_tables", None)
    if made is not None and getattr(made, "cp_size", 1) > 1:
        buffers = runner.input_buffers
        lengths.warm(
            buffers.dcp_local_seq_lens, buffers.seq_lens, made.cp_size, made.cp_rank, made.cp_interleave
        )
