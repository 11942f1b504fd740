"""Random calls of SGLang's kernels that write a whole step."""

from __future__ import annotations

import random
from typing import Any

import torch
from sglang_batches import Call, any_pages

from xkv.cli.check.memory import guarded, guarded_1d


def graph_metadata(rng: random.Random, device: str) -> Call:
    more, q_mode = rng.choice([0, 4]), rng.choice([0, 1, 2])
    x, page_size = any_pages(rng, device, more)
    out, swa = x.table(-(-x.width // page_size) + rng.choice([0, 4])), rng.random() < 0.5
    skip = rng.random() < 0.2
    swa_out = swa and rng.random() < 0.6
    mapping = x.mapping(lost=True) if swa else None
    sums = lambda n: guarded_1d(x.size + n, torch.int32, device)  # noqa: E731
    new = rng.randint(0, 9)
    args = {
        "req_pool_indices_ptr": x.pool, "seq_lens_ptr": x.lens, "req_to_token_ptr": x.ids,
        "swa_mapping_ptr": mapping,
        "out_cache_loc_ptr": x.slots(new, lost=True) if swa_out else None,
        "qlens_ptr": x.ints(0, 5) if q_mode == 1 else None,
        "cache_seqlens_ptr": sums(0), "cu_seqlens_k_ptr": sums(1),
        "cu_seqlens_q_ptr": sums(1) if q_mode else None, "page_table_ptr": out,
        "swa_page_table_ptr": x.table(out.shape[1]) if swa else None,
        "swa_out_cache_loc_ptr": guarded_1d(new + 3, torch.int64, device) if swa_out else None,
        "bs": x.size, "seqlen_offset": more, "max_seq_pages": out.shape[1] - rng.choice([0, 0, 1]) or 1,
        "q_stride": 3, "num_out_tokens": new, "swa_out_len": new + rng.choice([0, 3]) if swa_out else 0,
        "req_to_token_stride": x.ids.stride(0),
        "page_table_stride": out.stride(0), "swa_page_table_stride": 0, "PAGE_SIZE": page_size,
        "HAS_SWA": swa, "HAS_SWA_OUT": swa_out, "Q_MODE": q_mode, "PAGE_BLOCK": 64, "BS_BLOCK": 16,
        "SKIP_PAGE_TABLE": int(skip),
    }  # fmt: skip
    if swa:
        args["swa_page_table_stride"] = args["swa_page_table_ptr"].stride(0)
    x.lens.clamp_(max=max(args["max_seq_pages"] * page_size - more, 0))
    outs = (
        "cache_seqlens_ptr", "cu_seqlens_k_ptr", "cu_seqlens_q_ptr", "page_table_ptr", "swa_page_table_ptr",
        "swa_out_cache_loc_ptr",
    )  # fmt: skip
    return Call((x.size + 1 + swa_out,), args, outs)


def _strides(args: dict[str, Any], names: dict[str, str]) -> dict[str, int]:
    """The strides that a kernel is given beside its tensors, 0 for one that is not there."""
    found = {}
    for name, prefix in names.items():
        x = args[name]
        for n in range(2 if prefix.endswith("#") else 1):
            key = f"{prefix.rstrip('#')}_stride_{n}"
            found[key] = 0 if x is None else x.stride(n) if x.dim() > n else 1
    return found


def decode_metadata(rng: random.Random, device: str) -> Call:
    more, skip, kind = rng.choice([0, 0, 4]), rng.random() < 0.2, rng.choice(["", "swa", "pools", "pool"])
    x, page_size = any_pages(rng, device, more)
    out = x.table(-(-x.width // page_size) + rng.choice([0, 4]))
    sums = lambda n: guarded_1d(x.size + n, torch.int32, device)  # noqa: E731
    swa = kind in ("swa", "pools")
    args = {
        "seq_lens": x.lens, "req_to_token": x.ids, "req_pool_indices": x.pool,
        "cache_seqlens_int32": sums(0), "cu_seqlens_k": sums(1), "page_table": out,
        "swa_page_table": x.table(out.shape[1]) if swa else None,
        "full_to_swa_index_mapping": x.mapping(lost=False) if kind == "swa" else None,
        "full_v2p": x.pages(lost=True) if kind in ("pool", "pools") else None,
        "swa_v2p": x.pages(lost=True) if kind == "pools" else None,
        "B": x.size, "max_seq_pages": out.shape[1] - rng.choice([0, 0, 1]), "PAGE_SIZE": page_size,
        "SEQ_LEN_DELTA": more, "BLOCK_COLS": 128, "SKIP_PAGE_TABLE": skip, "ZERO_TAIL": rng.random() < 0.4,
    }  # fmt: skip
    names = {
        "seq_lens": "seq_lens", "req_to_token": "req_to_token#", "req_pool_indices": "req_pool_indices",
        "cache_seqlens_int32": "cache_seqlens_int32", "cu_seqlens_k": "cu_seqlens_k",
        "page_table": "page_table#", "swa_page_table": "swa_page_table#",
        "full_to_swa_index_mapping": "full_to_swa_mapping", "full_v2p": "full_v2p", "swa_v2p": "swa_v2p",
    }  # fmt: skip
    args |= _strides(args, names)
    x.lens.clamp_(max=max(args["max_seq_pages"] * page_size - more, 0))
    blocks = 1 if skip or not args["max_seq_pages"] else -(-args["max_seq_pages"] // 128)
    outs = ("cache_seqlens_int32", "cu_seqlens_k", "page_table", "swa_page_table")
    return Call((1, 1) if skip or not args["max_seq_pages"] else (x.size, blocks), args, outs)


def draft_extend(rng: random.Random, device: str) -> Call:
    x, page_size = any_pages(rng, device)
    out, swa, each = x.table(-(-x.width // page_size) + rng.choice([0, 4])), rng.random() < 0.6, 4
    sums = lambda n: guarded_1d(x.size + n, torch.int32, device)  # noqa: E731
    new = x.size * each
    args = {
        "seq_lens": x.lens, "extend_seq_lens": x.ints(0, 5), "req_to_token": x.ids,
        "req_pool_indices": x.pool, "cache_seqlens_int32": sums(0), "cu_seqlens_k": sums(1),
        "cu_seqlens_q": sums(1), "page_table": out,
        "full_to_swa_index_mapping": x.mapping(lost=True) if swa else None,
        "swa_page_table": guarded(*out.shape, out.stride(0), torch.int32, device) if swa else None,
        "out_cache_loc": x.slots(new, lost=False) if swa else None,
        "swa_out_cache_loc": guarded_1d(new, torch.int64, device) if swa else None,
        "B": x.size, "max_seq_pages": out.shape[1], "tokens_per_req": each if swa else 0,
        "PAGE_SIZE_ONE": page_size == 1, "SHIFT": page_size.bit_length() - 1, "BLOCK_COLS": 256,
        "HAS_SWA": swa, "OUT_BLOCK": each if swa else 1,
    }  # fmt: skip
    names = {
        "seq_lens": "seq_lens", "extend_seq_lens": "extend_seq_lens", "req_to_token": "req_to_token#",
        "req_pool_indices": "req_pool_indices", "cache_seqlens_int32": "cache_seqlens_int32",
        "cu_seqlens_k": "cu_seqlens_k", "cu_seqlens_q": "cu_seqlens_q", "page_table": "page_table#",
    }  # fmt: skip
    args |= _strides(args, names)
    outs = (
        "cache_seqlens_int32", "cu_seqlens_k", "cu_seqlens_q", "page_table", "swa_page_table",
        "swa_out_cache_loc",
    )  # fmt: skip
    return Call((x.size, -(-out.shape[1] // 256)), args, outs)


CALLS = {
    "update_trtllm_mha_graph_metadata_kernel": graph_metadata,
    "_fused_decode_metadata_kernel": decode_metadata,
    "_draft_extend_metadata_kernel": draft_extend,
}
