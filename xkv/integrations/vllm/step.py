"""vLLM's methods that make a step's block tables and slots: what is replaced around its kernels, too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..patching import replacing
from ..patching.codes import code
from .launching import Launcher, few_parts, parts, served

_BLOCK = 512
_COPIED = 2048
NUMBERS = 10
both = Launcher("gather_and_slots", num_warps=8)

# of `BlockTables`: what its two methods do is done here in their place, so that they have to be these
_METHODS = {
    "gather_block_tables": {"807a2d82c92e"},
    "compute_slot_mappings": {"8fd3029a3fed"},
    "init_block_table_layout_tensors": {"e869c3ad9bdb"},
}
_KERNELS = ("_gather_block_tables_kernel", "_compute_slot_mappings_kernel")


def prepare_attn(original: Callable[..., Any], self: Any, input_batch: Any) -> Any:
    """As model runner V2's ``prepare_attn``: block tables and slots of a batch, in one launch."""
    if self.pcp_manager is not None or not gather_and_slots(
        self.block_tables, input_batch, self.req_states.num_computed_tokens.gpu
    ):
        return original(self, input_batch)
    tables, rows = self.block_tables, input_batch.num_reqs_after_padding
    return (
        tuple([table[:rows] for table in tables.input_block_tables]),
        tables.slot_mappings[:, : input_batch.num_tokens_after_padding],
    )


def gather_and_slots(tables: Any, batch: Any, computed: Any) -> bool:
    """Launches it.

    Args:
        tables: vLLM's ``BlockTables``.
        batch: its ``InputBatch``.
        computed: tokens that each request has computed.

    Returns:
        Whether it was launched; False leaves the step to vLLM.
    """
    order, groups, slots = batch.idx_mapping, tables.num_kv_cache_groups, tables.slot_mappings
    device = served(order)
    pad = pad_of(tables.__class__)
    if device is None or pad is None or groups == 0 or slots.dtype is not torch.int64:
        return False
    requests = order.shape[0]
    rows = max(batch.num_reqs_after_padding, tables._num_dirty_rows)
    window, counts, capacity = tables.has_sliding_window_groups, tables.num_blocks.gpu, slots.shape[1]
    row_parts = few_parts(rows, groups, 16)
    token_parts = parts(requests + 1, groups, -(-capacity // _BLOCK))
    tables._num_dirty_rows = requests
    both(
        device, (rows * row_parts + (requests + 1) * token_parts, groups, 1),
        (order, tables.block_table_ptrs, tables.input_block_table_ptrs, tables.block_table_strides, counts,
         computed, tables.sliding_window_reach, tables.block_sizes_tensor, slots, batch.query_start_loc,
         batch.positions, tables.slot_mapping_enabled, tables.dcp_sharded),
        (counts.stride(0), requests, rows * row_parts, row_parts, token_parts, slots.stride(0), capacity,
         tables.cp_size, tables.cp_rank, tables.cp_interleave),
        constexprs(window, tables.cp_size, pad),
    )  # fmt: skip
    return True


def constexprs(window: bool, cp_size: int, pad: int) -> tuple[Any, ...]:
    """What its kernel is compiled for."""
    return window, cp_size != 1, pad, _COPIED, _BLOCK


@functools.cache
def pad_of(tables_class: Any) -> int | None:
    """What that ``BlockTables`` pads slots with; None: it is not one that is known."""
    for name, codes in _METHODS.items():
        method = getattr(tables_class, name, None)
        # its own code: a wrapper would be taken for what it wraps
        if not inspect.isfunction(method) or code(inspect.getsource(method.__code__)) not in codes:
            return None
    scope = vars(tables_class)["compute_slot_mappings"].__globals__
    if not all(replacing.replaced(scope[name]) for name in _KERNELS):
        return None
    pad: int = scope["PAD_SLOT_ID"]
    return pad


def compute_slot_mapping(
    original: Callable[..., Any], self: Any, num_reqs: int, query_start_loc: Any, positions: Any
) -> None:
    """As model runner V1's ``BlockTable.compute_slot_mapping``, without what finds a kernel's arguments."""
    scope = original.__globals__
    kernel = type(scope["_COMPUTE_SLOT_MAPPING_KERNEL"]).kernel
    if self.slot_mapping_mode is not scope["SlotMappingMode"].TOKEN_TO_KV_SLOT or not replacing.replaced(
        kernel
    ):
        original(self, num_reqs, query_start_loc, positions)
        return
    table = self.block_table.gpu
    if not kernel.xkv_launch(
        (num_reqs + 1,), positions.shape[0], self.max_num_batched_tokens, query_start_loc, positions,
        table, table.stride(0), self.slot_mapping.gpu, self.block_size, self.dcp_world_size, self.dcp_rank,
        self.cp_kv_cache_interleave_size, scope["PAD_SLOT_ID"], _BLOCK,
    ):  # fmt: skip
        original(self, num_reqs, query_start_loc, positions)
