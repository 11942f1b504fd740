"""Arguments of the public ops, by plain lists, and what their results are compared with."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from building import SENTINEL, guarded, guarded_1d, whole

from xkv import KVIndices, Status

I32, I64 = torch.int32, torch.int64
TABLE, CSR, SLOTS = "build_page_table", "build_kv_indices", "build_slot_mapping"
ALL = (TABLE, CSR, SLOTS)
TOKENS = 128  # in a row of the source
ROWS = [3, 0, 2, 2, 1, 4]
LENS = [0, 1, 17, 64, TOKENS, 70]
STARTS = [0, 0, 5, 63, 100, 70]
BATCH = len(LENS)
SIZES = [(1, 1), (16, 1), (64, 1), (16, 16), (64, 16), (16, 64), (1, 16)]  # page, source page
sizes = pytest.mark.parametrize(("P", "S"), SIZES)


def ids(S: int, *, rows: int = 5, tokens: int = TOKENS, missing: int = 0) -> list[list[int]]:
    """A source: any ids at all, some of them missing."""
    rng = random.Random(S)
    width = tokens // S
    flat = rng.sample(range(4 * rows * width), rows * width)
    for k in rng.sample(range(len(flat)), missing):
        flat[k] = -1 - k
    return [flat[r * width : (r + 1) * width] for r in range(rows)]


def source_tensor(source: list[list[int]], dtype: torch.dtype, device: str) -> torch.Tensor:
    """The source inside a wider buffer."""
    out = guarded(len(source), len(source[0]), len(source[0]) + 3, dtype, device)
    out.copy_(torch.tensor(source))
    return out


def page(
    entry: int, t: int, P: int, S: int,
    token_map: list[int] | None = None, page_map: list[int] | None = None, M: int = 1,
) -> int | None:  # fmt: skip
    """The page of token t, which a source entry holds; None where an id is missing."""
    if entry < 0:
        return None
    token = entry * S + t % S
    if token_map is not None:
        token = token_map[token] if token < len(token_map) else -1
    if token >= 0 and page_map is not None:
        target = page_map[token // M] if token // M < len(page_map) else -1
        token = target * M + token % M if target >= 0 else -1
    return token // P if token >= 0 else None


def pages(
    source: list[list[int]], P: int, S: int, *,
    starts: list[int] | None = None, lens: list[int] = LENS, missing_id: int = -1, **maps: Any,
) -> list[list[int]]:  # fmt: skip
    """What each request's pages are: from the one with its first token to the one with its last."""
    table = []
    for r, start, end in zip(ROWS, starts or [0] * BATCH, lens, strict=True):
        positions = range(start // P * P, end, P) if start < end else ()
        found = [page(source[r][t // S], t, P, S, **maps) for t in positions]
        table.append([missing_id if p is None else p for p in found])
    return table


def last_lens(table: list[list[int]], P: int, lens: list[int] = LENS) -> list[int]:
    return [(n - 1) % P + 1 if row else 0 for row, n in zip(table, lens, strict=True)]


def fresh_table(rows: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return guarded(rows, width, width + 5, dtype, device)


def fresh_csr(capacity: int, dtype: torch.dtype, device: str, batch: int = BATCH) -> KVIndices:
    """Buffers longer than they need be, inside guard words."""
    return KVIndices(
        guarded_1d(batch + 3, I32, device),
        guarded_1d(capacity, dtype, device),
        guarded_1d(batch + 2, I32, device),
    )


def assert_holds(x: torch.Tensor, wanted: list[int] | list[list[int]]) -> None:
    """x begins (each row of it begins) with what is wanted; its whole buffer is else untouched."""
    expected = torch.full_like(whole(x), SENTINEL)
    view = expected.as_strided(x.shape, x.stride(), x.storage_offset())
    for n, part in enumerate(wanted):
        if isinstance(part, list):
            view[n, : len(part)] = torch.tensor(part, dtype=x.dtype)
        else:
            view[n] = part
    assert whole(x).tolist() == expected.tolist()


def assert_csr(out: KVIndices, table: list[list[int]], P: int, lens: list[int] = LENS, tail: int = 0) -> None:
    """Guarded buffers hold rows, prefix sums and last page lengths, and nothing more."""
    assert_holds(out.kv_indptr, [0, *itertools.accumulate(map(len, table))])
    assert_holds(out.kv_indices, [*itertools.chain(*table), *[0] * tail])
    assert_holds(out.kv_last_page_len, last_lens(table, P, lens))


def good(op: str, device: str) -> dict[str, Any]:
    """Arguments of an op that all is well with."""
    made: dict[str, Any] = {
        "req_to_token": source_tensor(ids(1), I32, device),
        "req_pool_indices": torch.tensor([1, 2], device=device),
        "seq_lens": torch.tensor([20, 33], device=device),
        "status": Status(device),
    }
    if op == SLOTS:
        made["query_lens"] = torch.tensor([2, 3], device=device)
        made["out"] = guarded_1d(9, I64, device)
    else:
        made["page_size"] = 16
        made["out"] = fresh_table(2, 4, I32, device) if op == TABLE else fresh_csr(9, I32, device, 2)
    return made


def tensors_in(given: dict[str, Any]) -> list[torch.Tensor]:
    """All tensors among arguments, those of named tuples and of a Status too."""
    found = []
    for value in given.values():
        parts = value if isinstance(value, tuple) else [getattr(value, "word", value)]
        found += [x for x in parts if isinstance(x, torch.Tensor)]
    return found


def contents(x: torch.Tensor) -> list[Any]:
    """The whole buffer, where x has one with something in it."""
    if x.is_meta or x.is_nested or x.layout is not torch.strided or x.numel() == 0:
        return []
    return whole(x).tolist()
