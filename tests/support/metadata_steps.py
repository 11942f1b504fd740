"""MetadataBuilders over a small source, their steps, and the metadata that they must give."""

from __future__ import annotations

import random

import building
import torch

import xkv
from xkv import dispatch

NAMES = sorted(dispatch.specs_of("cpu"))
PAGE_SIZES = [(name, p) for name in NAMES for p in dispatch.specs_of("cpu")[name].page_sizes if p <= 128]
CONTEXT = 1000
LENS = [300, 0, 897, 64, 1]


def source(device: str, unit: int, source_page_size: int = 1) -> torch.Tensor:
    width = -(-(CONTEXT + 4) // source_page_size)
    return building.paged_source(
        random.Random(0), 9, width, max(unit, source_page_size), source_page_size, torch.int32, device
    )


def make(name: str, device: str, page_size: int | None = None, **options: object):
    unit = page_size or dispatch.specs_of("cpu")[name].page_size
    table = source(device, unit, options.get("source_page_size", 1))
    return xkv.MetadataBuilder(
        name, table, max_batch_size=8, max_context_len=CONTEXT, page_size=page_size, **options
    )


def batch(device: str, lens: list[int] = LENS) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor([(3 * n + 1) % 9 for n in range(len(lens))], device=device)
    return rows, torch.tensor(lens, device=device)


def tokens(table: torch.Tensor, row: int, begin: int, end: int, unit: int = 1) -> list[int]:
    """Where the tokens [begin, end) of a source row lie: the formula, one by one."""
    entries = table[row].tolist()
    return [entries[t // unit] * unit + t % unit for t in range(begin, end)]


def check(builder, meta, rows, begins: list[int], ends: list[int], window_map=None) -> None:
    """All that the metadata holds against lists made token by token."""
    spec, P = builder.spec, builder.page_size
    begins = [b // P * P if b < e else e for b, e in zip(begins, ends, strict=True)]
    lens = [e - b for b, e in zip(begins, ends, strict=True)]
    slots = [
        tokens(builder.req_to_token, int(r), b, e, builder.source_page_size)
        for r, b, e in zip(rows, begins, ends, strict=True)
    ]
    if window_map is not None:
        slots = [[int(window_map[t]) for t in row] for row in slots]
    pages = [[t // P if t >= 0 else spec.fill_id for t in row[::P]] for row in slots]
    if spec.form == "table":
        for b, row in enumerate(pages):
            assert meta.page_table[b, : len(row)].tolist() == row
            tile = spec.pad_to_multiple_of(P)
            if tile is not None:
                end = -(-max(len(row), 1) // tile) * tile
                assert meta.page_table[b, len(row) : end].tolist() == [0] * (end - len(row))
    else:
        flat = [p for row in pages for p in row]
        assert meta.kv_indices[: len(flat)].tolist() == flat
        sums = [sum(map(len, pages[:n])) for n in range(len(pages) + 1)]
        assert meta.kv_indptr.tolist() == sums
    for name, want in (
        ("cache_seqlens", lens),
        ("cu_seqlens_k", [sum(lens[:n]) for n in range(len(lens) + 1)]),
        ("kv_last_page_len", [max((n - 1) % P + 1 if n else 0, spec.min_last_page_len) for n in lens]),
    ):
        if name in spec.outputs:
            assert getattr(meta, name).tolist() == want, name
