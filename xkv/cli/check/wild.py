"""Hostile values: what no engine should write, and one day does."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

_NEAR = (1 << 28, 1 << 31)  # where lengths are cut, and where int32 ends
_ODD_IDS = [-1, -7, (1 << 31) - 1, (1 << 31) - 64, -(1 << 31)]
_WIDE_IDS = [1 << 31, 1 << 32, 1 << 40, (1 << 48) - 1, 1 << 48, 1 << 62, (1 << 63) - 1, -(1 << 63)]


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
