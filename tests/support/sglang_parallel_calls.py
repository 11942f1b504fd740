"""Random calls of SGLang's kernels of decode context parallelism, and of draft decoding."""

from __future__ import annotations

import random
from typing import Any

import torch
from sglang_batches import Batch, Call

from xkv.cli.check.memory import guarded, guarded_1d
from xkv.shard import Shard


class Ranks:
    """A batch whose slots are dealt out to ranks, and the lengths of one of them."""

    def __init__(self, rng: random.Random, device: str) -> None:
        size = rng.choice([2, 3, 4, 8])
        self.shard = Shard(size, rng.randrange(size), source="global")
        self.page_size = rng.choice([1, 16, 64])
        self.x = Batch(rng, device, self.page_size * size, rng.randint(size, 900))

    def local(self, starts: list[int] | None = None) -> torch.Tensor:
        """The rank's tokens of each row, from its start on."""
        lens, count = self.x.lens.tolist(), self.shard.local_length
        starts = starts or [0] * len(lens)
        found = [
            max(count(max(n, 0)) - count(min(s, max(n, 0))), 0) for n, s in zip(lens, starts, strict=False)
        ]
        return torch.tensor(found, dtype=torch.int32, device=self.x.device)


def page_table(rng: random.Random, device: str) -> Call:
    ranks = Ranks(rng, device)
    x, shard, page_size, lens = ranks.x, ranks.shard, ranks.page_size, ranks.local()
    out = x.table(max(-(-int(lens.max()) // page_size), 1) + rng.choice([0, 3]))
    v2p = x.pages(lost=True) if rng.random() < 0.5 else None
    args = {
        "req_to_token_ptr": x.ids, "req_pool_indices_ptr": x.pool, "local_seq_lens_ptr": lens,
        "block_kv_indices_ptr": out, "v2p_ptr": v2p, "req_to_token_stride": x.ids.stride(0),
        "block_table_stride": out.stride(0), "PHYSICAL_PAGE_SIZE": page_size, "DCP_SIZE": shard.size,
        "DCP_RANK": shard.rank, "PAGES_PER_BLOCK": 16, "HAS_V2P": v2p is not None,
    }  # fmt: skip
    return Call((x.size, -(-out.shape[1] // 16)), args, ("block_kv_indices_ptr",))


def _sums(x: Batch, lens: torch.Tensor) -> tuple[torch.Tensor, int]:
    sums = torch.cat([lens.new_zeros(1), lens[: x.size].cumsum(0)]).to(torch.int32)
    return sums, int(sums[-1])


def dcp_indices(rng: random.Random, device: str) -> Call:
    ranks = Ranks(rng, device)
    x, start = ranks.x, None
    lens = ranks.local()
    if rng.random() < 0.5:
        start = torch.tensor([rng.randint(0, max(n, 0)) for n in x.lens.tolist()], device=device)
        lens = ranks.local(start.tolist())
    sums, room = _sums(x, lens)
    args = {
        "req_to_token_ptr": x.ids, "req_pool_indices_ptr": x.pool, "dcp_kernel_lens_ptr": lens,
        "kv_indptr": sums, "kv_start_idx": start,
        "kv_indices_ptr": guarded_1d(room + 5, torch.int64, device),
        "req_to_token_ptr_stride": x.ids.stride(0), "dcp_size": ranks.shard.size,
        "dcp_rank": ranks.shard.rank,
    }  # fmt: skip
    return Call((x.size,), args, ("kv_indices_ptr",))


def compact(rng: random.Random, device: str) -> Call:
    x, queries, width = Batch(rng, device, 1, 9), rng.randint(1, 4), rng.randint(1, 1100)
    table = torch.randint(0, 1 << 20, (x.size * queries, width), dtype=torch.int32).to(device)
    lens = [rng.choice([0, 1, rng.randint(0, width)]) for _ in range(x.size)]
    local = torch.tensor(lens, dtype=torch.int32, device=device)
    sums, room = _sums(x, local.clamp(min=1))
    args = {
        "token_table_ptr": table, "local_kv_lens_ptr": local, "kv_indptr_ptr": sums,
        "kv_indices_ptr": guarded_1d(room + 5, torch.int32, device), "table_stride": width,
        "Q_LEN": queries, "BLOCK_SIZE": 128,
    }  # fmt: skip
    return Call((x.size,), args, ("kv_indices_ptr",))


def draft(rng: random.Random, device: str) -> Call:
    return _draft(rng, device, window=False)


def draft_window(rng: random.Random, device: str) -> Call:
    return _draft(rng, device, window=True)


def _draft(rng: random.Random, device: str, *, window: bool) -> Call:
    page_size, topk, steps = rng.choice([1, 4, 16]), rng.choice([1, 1, 2, 4]), rng.randint(1, 5)
    tokens = rng.randint(1, 300)
    x = Batch(rng, device, 16, tokens + topk * (steps + 2 * page_size))
    lens = torch.tensor([rng.randint(1, tokens) for _ in range(x.size)], device=device)
    rows, entry = x.size * topk, rng.choice([1, 1, 16])
    ids, width = x.ids, int(lens.sum()) * topk + rows * steps + rng.choice([0, 9])
    if entry > 1:
        ids = ids[:, ::entry].contiguous() // entry
    v2p = Batch.pages(x, lost=True) if page_size == 16 and rng.random() < 0.3 else None
    names = ("window_kv_indices", "window_kv_indptr") if window else ("kv_indices", "kv_indptr")
    dtype = rng.choice([torch.int32, torch.int64])
    sums = guarded(steps, rows + 3, rows + 3, torch.int32, device)
    sums[:, 0] = 0
    power = lambda n: 1 << (n - 1).bit_length()  # noqa: E731
    args: dict[str, Any] = {
        "req_pool_indices": x.pool, "req_to_token": ids, "paged_kernel_lens": lens,
        names[0]: guarded(steps, width, width, dtype, device), names[1]: sums,
        "positions": lens.repeat_interleave(topk), "row_stride": ids.stride(0), "kv_indices_stride": width,
        "kv_indptr_stride": rows + 3, "bs_upper": power(x.size), "iter_upper": power(steps),
        "num_tokens_upper": power(rows), "page_size": page_size,
    }  # fmt: skip
    grid = (steps, x.size, topk)
    if window:
        args["window"] = rng.randint(1, 200)
    else:
        args["window_size"] = rng.choice([0, 0, rng.randint(1, 100)])
        args["sink_size"] = rng.randint(0, 5) if args["window_size"] else 0
        args["NUM_STEPS"] = rng.choice([0, steps])
        grid = (steps * (3 if args["NUM_STEPS"] else 1), x.size, topk)
    args |= {"ENTRY_PAGE_SIZE": entry, "v2p": v2p, "TRANSLATE": v2p is not None}
    return Call(grid, args, names)


CALLS = {
    "create_triton_kv_indices_for_dcp_triton": dcp_indices,
    "create_mla_kv_page_table_for_dcp": page_table,
    "compact_dcp_verify_token_table_to_ragged": compact,
    "generate_draft_decode_kv_indices": draft,
    "generate_draft_decode_window_kv_indices": draft_window,
}
