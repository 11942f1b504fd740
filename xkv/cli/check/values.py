"""Values of a case, any of them hostile: what no engine should write, and one day does."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from .case import VECTORS, Case
from .engine_rows import RAGGED, RANK_STREAMS, RANK_TABLES
from .memory import SENTINEL

INDPTR = (
    "begins",
    "sums",
    "query_start_loc",
)  # where rows of a stream begin; the latter two end with its end
_CLEAN = (1 << 63) - 1  # a status word that nothing was reported to

_NEAR = (1 << 28, 1 << 31)  # where lengths are cut, and where int32 ends
_ODD_IDS = [-1, -7, (1 << 31) - 1, (1 << 31) - 64, -(1 << 31)]
_WIDE_IDS = [1 << 31, 1 << 32, 1 << 40, (1 << 47) - 1, 1 << 47, 1 << 62, (1 << 63) - 1, -(1 << 63)]


def held(numbers: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype) -> torch.Tensor:
    """Such numbers, those that the dtype cannot hold cut to what it can."""
    limit = torch.iinfo(dtype)
    return torch.tensor(numbers, dtype=torch.int64).clamp(limit.min, limit.max).to(dtype)


def vector(
    rng: random.Random, most: Sequence[int], dtype: torch.dtype, heat: float, edge: int
) -> torch.Tensor:
    """Lengths, starts, deltas or row indices.

    Args:
        rng: decides everything.
        most: the largest sane value of each entry; the least is 0.
        dtype: int32 or int64.
        heat: how likely an entry is hostile.
        edge: the first value that is too large for any entry.
    """
    return torch.tensor(
        [_odd(rng, dtype, edge) if rng.random() < heat else rng.randint(0, max(n, 0)) for n in most],
        dtype=dtype,
    )


def _odd(rng: random.Random, dtype: torch.dtype, edge: int) -> int:
    near = rng.choice(_NEAR)
    odd = [
        -1, -5, 0, edge, edge + 1, 3 * edge + 7, -edge, near - 1, near - 7, -near, rng.getrandbits(31),
    ]  # fmt: skip
    if dtype == torch.int64:
        # sane low halves too: what reads one half alone takes these for values like any other
        high = rng.choice([1, -1, 1 << 8, 1 << 30, -(1 << 31)])
        odd += [near, near + 1, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63), (high << 32) + rng.randint(0, edge)]
    return rng.choice(odd)


def ids(
    rng: random.Random, shape: Sequence[int], dtype: torch.dtype, top: int, heat: float, step: int = 1
) -> torch.Tensor:
    """Source entries or a map's targets.

    Args:
        rng: decides everything.
        shape: of the result.
        dtype: int32 or int64.
        top: ids below it are sane.
        heat: how likely they are all random; where it is not 0, some of them may be hostile.
        step: hostile ones are put at every so many columns, where a page's first token has its entry.
    """
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    low, high = 0, max(top, 1)
    if rng.random() < heat / 3:  # any 32 bits
        low, high = -(1 << 31), 1 << 31
    found = torch.randint(low, high, list(shape), generator=generator).to(dtype)
    if heat and found.numel() and rng.random() < 0.7:
        odd = _ODD_IDS + (_WIDE_IDS if dtype == torch.int64 else [])
        spots = found[..., ::step]
        count = spots.numel()
        for _ in range(rng.choice([1, 3, count // 9 + 1, count // 3 + 1])):
            spots[tuple(rng.randrange(n) for n in spots.shape)] = rng.choice(odd)
    return found


def fill(case: Case, rng: random.Random, sane: bool = False) -> None:
    """Puts values in a case's image, sentinels everywhere else.

    Args:
        case: the case.
        rng: decides everything.
        sane: every id is one, and in every map; else some of the tensors are hostile.
    """
    family, sizes, host = case.family, case.sizes, case.memory.host
    batch, tokens, unit = sizes.batch, sizes.tokens, family.source_page_size
    case.memory.image.fill_(SENTINEL)
    level = 0 if sane else rng.choice([0, 0.1, 0.1, 0.3, 1])

    def heat() -> float:
        return level * (rng.random() < 0.7)

    before = rng.randrange(256 * (batch + 1)) if rng.random() < 0.1 and not sane else _CLEAN
    if "status" in host:
        host["status"].fill_(before)
    room = tokens - sizes.delta if abs(sizes.delta) <= tokens else tokens
    lens = vector(rng, [room] * batch, torch.int64, 0, tokens).tolist()
    right = {
        "req_pool_indices": [sizes.rows - 1] * batch, "seq_lens": lens, "seq_lens_delta": [4] * batch,
        "query_lens": [min(n, 9) for n in lens], "kv_start": lens, "window_kv_start": lens,
    }  # fmt: skip
    if family.function in (RANK_TABLES, RANK_STREAMS) and family.shard is not None:  # a rank's own
        right["seq_lens"] = [n // family.shard.size for n in lens]
    for name in ("req_pool_indices", "seq_lens", *VECTORS):
        if name in host:
            edge = sizes.rows if name == "req_pool_indices" else tokens + 1
            host[name][:batch].copy_(vector(rng, right[name], host[name].dtype, heat(), edge))
    mapped = {"token_map", "window_map", "page_map", "window_page_map"} & host.keys()
    top = sizes.top if mapped or rng.random() < 0.5 else 1 << rng.choice([31, 31, 40])
    if family.ids == torch.int32:
        top = min(top, 1 << 31)
    # one entry past the map at times, so that its end is met
    pages = {"page_map": sizes.map_page_size, "window_page_map": family.page_size}
    tops = {"req_to_token": top // unit + 1} | {k: sizes.top // size + 1 for k, size in pages.items()}
    if sane:
        least = min((len(host[name]) * pages.get(name, 1) for name in mapped), default=top)
        wide = family.ids == family.dtype == torch.int64
        top = least if mapped else 1 << (40 if wide else 31)
        tops = {"req_to_token": top // unit, "token_map": top}
    steps = {"req_to_token": 1 if family.shard else max(family.page_size // unit, 1)}
    for name in ("req_to_token", *sorted(mapped)):
        to = host[name]
        to.copy_(ids(rng, to.shape, to.dtype, tops.get(name, sizes.top), heat(), steps.get(name, 1)))
    if "out_cache_loc" in host:
        to = host["out_cache_loc"]
        to.copy_(ids(rng, to.shape, to.dtype, sizes.top, heat()))
    if "positions" in host:
        most = [tokens - 1] * sizes.queries
        host["positions"].copy_(vector(rng, most, host["positions"].dtype, heat(), tokens))
    stream = "slots.out" if "slots.out" in host else "out"
    for name in host.keys() & set(INDPTR):
        lens = [rng.randint(0, tokens) for _ in range(batch)]
        if name == "begins":
            least = 1 if family.function == RAGGED else 0
            lens = [max(least, min(n, tokens)) for n in host["seq_lens"].tolist()]
        if name == "query_start_loc":  # few enough for the stream, mostly
            lens = [rng.randint(0, 2 * sizes.queries // max(batch, 1)) for _ in range(batch)]
        heat_of_sums = rng.choice([0, 0.3, 0.6, 1])  # of its own: the rows are to have tokens too
        host[name].copy_(
            indptr(rng, lens, host[name].shape[0], host[name].dtype, len(host[stream]), heat_of_sums)
        )


def indptr(
    rng: random.Random, lens: Sequence[int], size: int, dtype: torch.dtype, room: int, heat: float
) -> torch.Tensor:
    """Where rows of a stream begin: one behind the other, apart from each other in any order, or anywhere.

    Args:
        rng: decides everything.
        lens: entries of each row.
        size: of the result: a row each, or one more, the end of the last.
        dtype: int32 or int64.
        room: entries of the stream.
        heat: how likely an entry is hostile.
    """
    order, apart, at = list(range(size)), size == len(lens) and rng.random() < 0.5, 0
    if apart:
        rng.shuffle(order)
    found = [0] * size
    for b in order:
        found[b] = at
        at += (lens[b] if b < len(lens) else 0) + (rng.choice([0, 2]) if apart else 0)
    anywhere = vector(rng, [room] * size, dtype, 0, room + 1).tolist()
    odd = vector(rng, [0] * size, dtype, 1, room + 1).tolist()
    share = rng.choice([0, 0, 0.3, 1])
    for b in range(size):
        value = anywhere[b] if rng.random() < share else found[b]
        # a row across either end, and what is sane where half of it is read alone
        near = [-rng.randint(1, 9), room - rng.randint(0, 3)]
        if dtype == torch.int64:
            near += [value + (high << 32) for high in (1, rng.choice([-1, 1 << 30, -(1 << 31)]))]
        hostile = odd[b] if rng.random() < 0.3 else rng.choice(near)
        found[b] = hostile if rng.random() < heat else value
    return torch.tensor(found, dtype=dtype)
