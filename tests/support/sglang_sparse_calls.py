"""Random calls of SGLang's kernels of sparse attention."""

from __future__ import annotations

import random
from typing import Any

import torch
from sglang_batches import Call

from xkv.cli.check.memory import guarded


def _table(rng: random.Random, rows: int, width: int, device: str) -> torch.Tensor:
    table = guarded(rows, width, width + rng.choice([0, 3]), torch.int32, device)
    table.copy_(torch.randint(1 << 20, (rows, width), dtype=torch.int32))
    table[torch.rand(rows, width) < 0.05] = -1
    return table


def _chosen(rng: random.Random, rows: int, k: int, width: int, device: str) -> torch.Tensor:
    found = torch.randint(width, (rows, k), dtype=torch.int32)
    found[torch.rand(rows, k) < 0.2] = -1
    return found.to(device)


def decode(rng: random.Random, device: str) -> Call:
    rows, width = rng.randint(1, 3), rng.randint(1, 300)
    table = _table(rng, rows, width, device)
    out = guarded(rows, 2048, 2048, torch.int32, device)
    args = {
        "page_table_ptr": table, "topk_indices_ptr": _chosen(rng, rows, 2048, width, device),
        "result_ptr": out, "page_size": 1, "page_table_row_stride": table.stride(0),
    }  # fmt: skip
    return Call((rows,), args, ("result_ptr",))


def tiled(rng: random.Random, device: str) -> Call:
    rows, width, k = rng.randint(1, 5), rng.randint(1, 300), rng.choice([1, 7, 64, 300])
    table, out = _table(rng, rows, width, device), guarded(rows, k, k + 3, torch.int32, device)
    chosen = _chosen(rng, rows, k, width, device)
    args = {
        "page_table_ptr": table, "topk_indices_ptr": chosen, "result_ptr": out,
        "page_table_row_stride": table.stride(0), "topk_indices_stride_0": chosen.stride(0),
        "topk_indices_stride_1": 1, "result_stride_0": out.stride(0), "result_stride_1": 1, "TOPK": k,
        "BLOCK_TOPK": 256,
    }  # fmt: skip
    return Call((rows, -(-k // 256)), args, ("result_ptr",))


def prefill(rng: random.Random, device: str) -> Call:
    rows, width, k = rng.randint(1, 5), rng.randint(1, 300), rng.choice([1, 7, 64, 300])
    queries = [rng.choice([0, 1, rng.randint(0, 9)]) for _ in range(rows)]
    starts = torch.tensor([0, *queries]).cumsum(0).int().to(device)
    tokens, expanded = sum(queries), rng.random() < 0.3
    more = rng.choice([0, 0, 2])  # query tokens of padding, whose result has -1 already
    table = _table(rng, tokens + more if expanded else rows, width, device)
    out, chosen = (
        guarded(tokens + more, k, k, torch.int32, device),
        _chosen(rng, tokens + more, k, width, device),
    )
    out[tokens:] = -1
    longest = max(max(queries), 1)
    args: dict[str, Any] = {
        "page_table_ptr": table, "topk_indices_ptr": chosen, "cu_seqlens_q_ptr": starts, "result_ptr": out,
        "page_table_stride_0": table.stride(0), "page_table_stride_1": 1,
        "topk_indices_stride_0": chosen.stride(0), "topk_indices_stride_1": 1,
        "result_stride_0": out.stride(0), "result_stride_1": 1, "PAGE_TABLE_IS_EXPANDED": expanded, "TOPK": k,
        "BLOCK_Q": 4, "BLOCK_TOPK": 256,
    }  # fmt: skip
    return Call((rows, -(-longest // 4), -(-k // 256)), args, ("result_ptr",))


CALLS = {
    "transform_index_page_table_decode_kernel": decode,
    "transform_index_page_table_decode_tiled_kernel": tiled,
    "transform_index_page_table_prefill_kernel": prefill,
}
