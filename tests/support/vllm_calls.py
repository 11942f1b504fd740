"""Random calls of vLLM's kernels, by the names of the arguments that any version's text has."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch

from xkv.cli.check.memory import guarded, guarded_1d


class Call(NamedTuple):
    """A grid, arguments by name, and what is written."""

    grid: tuple[int, ...]
    args: dict[str, Any]
    written: list[torch.Tensor]


def _ints(rng: random.Random, *shape: int, high: int, device: str) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.tensor([rng.randrange(high) for _ in range(size)], dtype=torch.int32).view(shape).to(device)


def _pointers(tensors: list[torch.Tensor], device: str) -> torch.Tensor:
    return torch.tensor([x.data_ptr() for x in tensors], dtype=torch.uint64).to(device)


def _tokens(rng: random.Random, longest: int, device: str) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Requests, where each one's tokens begin, and their positions."""
    queries = [min(rng.choice([0, 1, 1, rng.randint(1, 40)]), longest) for _ in range(rng.randint(1, 6))]
    at = torch.tensor([0, *queries]).cumsum(0).int()
    first = [rng.randint(0, longest - n) for n in queries]
    flat = [p for s, n in zip(first, queries, strict=True) for p in range(s, s + n)]
    return len(queries), at.to(device), torch.tensor(flat, dtype=torch.int64, device=device)


def page_indices(rng: random.Random, device: str, names: Collection[str]) -> Call:
    size, rows, width = rng.choice([1, 16, 64]), rng.randint(1, 7), rng.randint(1, 60)
    size = size if "KERNEL_BLOCK_SIZE" in names else 1
    lens = torch.tensor([rng.choice([0, 1, rng.randint(0, width * size)]) for _ in range(rows)])
    sums = torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int().to(device)
    table = guarded(rows, width, width + rng.choice([0, 4]), torch.int32, device)
    table.copy_(_ints(rng, rows, width, high=1 << 20, device=device))
    out = guarded_1d(int(lens.sum()) + 5, torch.int32, device)
    stride = table.stride(0)
    args = {
        "page_indices": out, "block_table": table, "block_table_stride": stride, "cu_num_blocks": sums,
        "block_table_stride_0": stride, "block_table_stride_1": 1, "cu_num_tokens": sums,
        "num_real_tokens": sums, "KERNEL_BLOCK_SIZE": size, "BLOCK_SIZE": 1024, "CLAMP_TAIL": False,
    }  # fmt: skip
    if rng.random() < 0.5 and "CLAMP_TAIL" in names:  # of rows padded to a kernel's length
        args["CLAMP_TAIL"] = True
        real = [rng.choice([n, rng.randint(0, n)]) for n in lens.tolist()]
        args["num_real_tokens"] = torch.tensor(real, dtype=torch.int32).to(device)
    return Call((rows, -(-width * size // 1024) or 1), args, [out])


def local_lengths(rng: random.Random, device: str, names: Collection[str]) -> Call:
    requests, more = rng.randint(0, 6), rng.choice([0, 3])
    size = rng.choice([2, 3, 8])
    lens = _ints(rng, requests + more, high=1 << 20, device=device)
    out = guarded_1d(requests + more, torch.int32, device)
    args = {
        "out_ptr": out, "seq_lens_ptr": lens[: rng.randint(requests, requests + more)], "dcp_size": size,
        "dcp_rank": rng.randrange(size), "cp_interleave": rng.choice([1, 4, 64]), "num_reqs": requests,
        "max_num_reqs": requests + more, "BLOCK_SIZE": 128,
    }  # fmt: skip
    return Call((1,), args, [out])


def slot_mapping(rng: random.Random, device: str, names: Collection[str]) -> Call:
    size, ranks, longest = rng.choice([1, 16, 64]), rng.choice([1, 1, 2]), rng.randint(1, 300)
    parts = rng.choice([1, 2, 3]) if "BLOCKS_PER_KV_BLOCK" in names else 1
    rows, starts, positions = _tokens(rng, longest, device)
    width, tokens = -(-longest // size) + parts, positions.shape[0]
    table = _ints(rng, rows, width, high=1 << 20, device=device)
    out = guarded_1d(tokens + rng.choice([0, 9]), torch.int64, device)
    args = {
        "num_tokens": tokens, "max_num_tokens": out.shape[0], "query_start_loc_ptr": starts,
        "positions_ptr": positions, "block_table_ptr": table, "block_table_stride": width,
        "block_size": size, "slot_mapping_ptr": out, "KV_CACHE_BLOCK_SIZE": size * parts,
        "BLOCKS_PER_KV_BLOCK": parts, "TOTAL_CP_WORLD_SIZE": ranks, "TOTAL_CP_RANK": rng.randrange(ranks),
        "CP_KV_CACHE_INTERLEAVE_SIZE": rng.choice([1, size]), "PAD_ID": -1, "BLOCK_SIZE": 1024,
    }  # fmt: skip
    return Call((rows + 1,), args, [out])


def gather(rng: random.Random, device: str, names: Collection[str]) -> Call:
    groups, rows, batch = rng.randint(1, 3), rng.randint(2, 6), rng.randint(1, 6)
    padded, widths = batch + rng.randint(0, 2), [4 * rng.randint(1, 300) for _ in range(groups)]
    source = [_ints(rng, rows, width, high=1 << 20, device=device) for width in widths]
    out = [guarded(padded, width, width, torch.int32, device) for width in widths]
    counts = torch.tensor([[rng.choice([0, w, rng.randint(0, w)]) for _ in range(rows)] for w in widths])
    args = {
        "batch_idx_to_req_idx": _ints(rng, batch, high=rows, device=device),
        "src_block_table_ptrs": _pointers(source, device), "dst_block_table_ptrs": _pointers(out, device),
        "block_table_strides": torch.tensor(widths).to(device), "num_blocks_ptr": counts.int().to(device),
        "num_blocks_stride": rows, "num_reqs": batch,
        "num_computed_tokens_ptr": _ints(rng, rows, high=5000, device=device),
        "sliding_window_reach_ptr": _ints(rng, groups, high=2, device=device) * 100,
        "block_sizes_ptr": torch.tensor([16] * groups).int().to(device), "MASK_SLIDING_WINDOW": True,
        "BLOCK_SIZE": 1024, "keep": source,
    }  # fmt: skip
    return Call((groups, padded), args, out)


def slot_mappings(rng: random.Random, device: str, names: Collection[str]) -> Call:
    groups, ranks, longest = rng.randint(1, 3), rng.choice([1, 1, 2]), rng.randint(1, 300)
    sizes = [rng.choice([1, 16, 64]) for _ in range(groups)]
    parts = [rng.choice([1, 2]) if "kernel_block_sizes" in names else 1 for _ in sizes]
    batch, starts, positions = _tokens(rng, longest, device)
    rows, widths = batch + 2, [(-(-longest // size) + 5) // 4 * 4 for size in sizes]
    tables = [_ints(rng, rows, width, high=1 << 20, device=device) for width in widths]
    room = positions.shape[0] + rng.choice([0, 9])
    out = guarded(groups, room, room, torch.int64, device)
    order = rng.sample(range(rows), batch)
    if "dcp_sharded" in names:  # the texts since 0.31 know rows that are none
        order = [row if rng.random() < 0.8 else -1 for row in order]
    ints = lambda values: torch.tensor(values, dtype=torch.int32, device=device)  # noqa: E731
    flags = lambda: torch.tensor([rng.random() < 0.8 for _ in sizes], device=device)  # noqa: E731
    args = {
        "max_num_tokens": room, "idx_mapping": ints(order), "query_start_loc": starts, "pos": positions,
        "block_table_ptrs": _pointers(tables, device), "block_table_strides": torch.tensor(widths).to(device),
        "block_sizes": ints([s * p for s, p in zip(sizes, parts, strict=True)]),
        "kernel_block_sizes": ints(sizes), "slot_mapping_enabled": flags(), "dcp_sharded": flags(),
        "slot_mappings_ptr": out, "slot_mappings_stride": out.stride(0), "cp_rank": rng.randrange(ranks),
        "CP_SIZE": ranks, "CP_INTERLEAVE": 1, "PAD_ID": -1, "TRITON_BLOCK_SIZE": 1024, "keep": tables,
    }  # fmt: skip
    return Call((groups, batch + 1), args, [out])


def remap(rng: random.Random, device: str, names: Collection[str]) -> Call:
    size, ranks = rng.choice([1, 16, 64]), rng.choice([1, 1, 2, 8])
    stride, tokens, rows = size + rng.choice([0, 0, 5]), rng.randint(1, 9), rng.randint(1, 4)
    k, width = rng.choice([16, 128, 256]), rng.randint(1, 30)
    counted = rng.random() < 0.6
    single = counted and rng.random() < 0.7
    compact = counted and single and rng.random() < 0.7  # else theirs packs in any order
    table = guarded(rows, width, width + rng.choice([0, 4]), torch.int32, device)
    table.copy_(_ints(rng, rows, width, high=1 << 20, device=device))
    span = width * size * ranks
    chosen = _ints(rng, tokens, k, high=span + 4, device=device) - 1
    out, counts = guarded(tokens, k, k, torch.int32, device), guarded_1d(tokens, torch.int32, device)
    counts.zero_()
    block = k if single else 16
    args = {
        "req_id_ptr": _ints(rng, tokens, high=rows, device=device), "block_table_ptr": table,
        "token_indices_ptr": chosen, "out_ptr": out, "valid_count_ptr": counts, "idx_mapping_ptr": None,
        "prefill_request_id_ptr": None, "workspace_starts_ptr": None, "workspace_rank_stride": 0,
        "max_num_blocks_per_req": width, "BLOCK_SIZE": size, "BLOCK_STRIDE_ROWS": stride, "BLOCK_N": block,
        "NUM_TOPK_TOKENS": k, "HAS_PREFILL": False, "HAS_IDX_MAPPING": False, "COUNT_VALID": counted,
        "SINGLE_TILE": single, "COMPACT_TO_FRONT": compact, "DCP_SIZE": ranks,
        "DCP_RANK": rng.randrange(ranks), "DCP_INTERLEAVE": rng.choice([1, size]),
        "bt_stride0": table.stride(0), "bt_stride1": 1, "ti_stride0": k, "ti_stride1": 1, "out_stride0": k,
        "out_stride1": 1,
    }  # fmt: skip
    return Call((tokens, k // block), args, [out, counts] if counted else [out])


def token_requests(rng: random.Random, device: str, names: Collection[str]) -> Call:
    queries = [rng.choice([0, 1, rng.randint(0, 300)]) for _ in range(rng.randint(1, 9))]
    starts = torch.tensor([0, *queries]).cumsum(0).int().to(device)
    tokens = max(sum(queries) + rng.choice([0, 0, 7]), 1)
    out = guarded_1d(tokens + rng.choice([0, 3]), torch.int32, device)
    args = {
        "query_start_loc": starts, "output": out, "num_reqs": len(queries),
        "num_mapped": max(tokens - rng.choice([0, 0, 0, 2]), 0), "num_tokens": tokens,
    }  # fmt: skip
    return Call((-(-tokens // 256),), args, [out])


CALLS: dict[str, Callable[[random.Random, str, Collection[str]], Call]] = {
    "_copy_page_indices_kernel": page_indices,
    "_expand_page_indices_kernel": page_indices,
    "ConvertReqIndexToGlobalIndexKernel.sparse_mla_index_remap_kernel": remap,
    "_token_request_mapping_kernel": token_requests,
    "_dcp_local_seq_lens_kernel": local_lengths,
    "ComputeSlotMappingKernel.kernel": slot_mapping,
    "_gather_block_tables_kernel": gather,
    "_compute_slot_mappings_kernel": slot_mappings,
}
