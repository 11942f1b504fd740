"""Curated launches, each with its why; every kernel test, device and executor draws on them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from building import Launch, paged_ids

from xkv.cli.check.families import I32, I64, Family
from xkv.cli.check.memory import Spec
from xkv.cli.check.sizes import Sizes
from xkv.params import CSR, OUTPUTS, SLOTS, TABLE, Build
from xkv.shard import Shard


@dataclass
class Case:
    """What differs from a plain launch, in pages and tokens of the page size at hand.

    Attributes:
        why: what it would catch.
        lens: of the page size: the length of every row, in tokens.
        vectors: of the page size: other inputs with an entry a request.
        maps: of their size: maps of tokens or pages.
        windows: of the page size: of every view.
        fields: of the `Build`.
        source: changes the source.
        query: query tokens of every request, and of every other request of slots one more.
        width: pages the output has room for; None: enough for the longest row.
        forms: which forms it makes sense for.
    """

    why: str
    lens: Callable[[int], list[int]]
    vectors: dict[str, Callable[[int], list[int]]] = field(default_factory=dict)
    maps: dict[str, Callable[[int], list[int]]] = field(default_factory=dict)
    windows: Callable[[int], list[int | None]] = lambda P: [None]
    fields: dict[str, Any] = field(default_factory=dict)
    source: Callable[[torch.Tensor], None] = lambda source: None
    query: int | Callable[[int], int] = 2
    width: int | None = None
    forms: tuple[int, ...] = (TABLE, CSR)


def _holes(source: torch.Tensor) -> None:
    source[:, ::3] = -1


def _too_large(source: torch.Tensor) -> None:
    """Ids on either side of the limit, where the source's dtype holds them."""
    if source.dtype == I64:
        source[:, ::2] = (1 << 47) - 1
        source[:, 1::3] = 1 << 47
    else:
        source[:, ::2] = (1 << 31) - 1


def _ragged(page_size: int) -> list[int]:
    return [page_size + 2, 0, 5]


def _page_map(size: int) -> list[int]:
    return [size - 1 - n if n % 4 else -1 for n in range(size)]


def _token_map(size: int) -> list[int]:
    return [(n * 3) % size if n % 7 else -1 for n in range(size)]


CASES = {
    "one token": Case("the smallest row that has a page", lambda P: [1]),
    "empty batch": Case("prefix sums of nothing are [0]", lambda P: []),
    "empty rows": Case("a row of length 0 writes nothing", lambda P: [0, 3, 0, 0, P + 1, 0]),
    "boundaries": Case("a page more at P + 1, not at P", lambda P: [P - 1, P, P + 1, 2 * P]),
    "odd lengths": Case("nothing is a multiple", lambda P: [3 * P + 1, 5 * P - 1, 7, P * 11 + 2]),
    "skewed": Case(
        "a long row among short ones is shared by all programs",
        lambda P: [1, 150 * P + 3, 2, P, 0, 17 * P],
    ),
    "many rows": Case(
        "a batch of several chunks of BATCH_BLOCK rows, and more rows than programs",
        lambda P: [(n * 5) % (3 * P) for n in range(37)],
    ),
    "many rows, long last": Case(
        "row offsets are sums over several chunks of BATCH_BLOCK rows", lambda P: [P] * 33 + [0, 70 * P - 1]
    ),
    "whole tiles": Case(
        "a lane takes 16 bytes if a tile is full and aligned to them, and otherwise not",
        lambda P: [n * P for n in (64, 15, 16, 17, 35, 34, 33, 32, 50)],
        {"kv_start": lambda P: [n % 4 * P for n in range(9)]}, forms=(TABLE, CSR, SLOTS), query=32,
    ),
    "shared rows": Case(
        "two requests on one row", lambda P: [5, 2 * P, P], {"req_pool_indices": lambda P: [1, 1, 0]}
    ),
    "delta": Case("verify: draft tokens count", lambda P: [P - 2, P, 0], fields={"seq_lens_delta": 4}),
    "negative delta": Case("below zero is empty", lambda P: [2, P + 3, 9], fields={"seq_lens_delta": -3}),
    "delta a row": Case("draft extend", lambda P: [P, P + 2, 1], {"seq_lens_delta": lambda P: [3, -2, 0]}),
    "query lengths added": Case(
        "ragged verify", lambda P: [P - 1, P, 0], {"query_lens": lambda P: [3, 0, 5]},
        fields={"query_sign": 1},
    ),
    "negative query lengths": Case(
        "they count as 0 and are reported", lambda P: [P - 1, P, 0], {"query_lens": lambda P: [2, -1, 5]},
        fields={"query_sign": 1},
    ),
    "beyond the source": Case(
        "a length past the table is cut", lambda P: [10**6, 5, 2**31 - 1], width=40
    ),
    "no room": Case("what the output cannot hold is cut", lambda P: [9 * P, 3, 6 * P], width=4),
    "unknown rows": Case(
        "row indices out of range read nothing", lambda P: [P, 3, 0, 2 * P],
        {"req_pool_indices": lambda P: [-1, 99, -5, 2]},
    ),
    "start": Case(
        "a chunk from the middle of a page", lambda P: [3 * P, 2 * P + 1, P],
        {"kv_start": lambda P: [P + P // 2, P, P]},
    ),
    "start beyond": Case(
        "starts out of range are cut", lambda P: [3 * P, 5, 4],
        {"kv_start": lambda P: [10**6, -7, 4]},
    ),
    "start inside a page": Case(
        "reported where the reader cannot skip tokens", lambda P: [3 * P, 2 * P + 1, P],
        {"kv_start": lambda P: [P, P + P // 2, P]}, fields={"starts_are_aligned": True},
    ),
    "longer than the host says": Case(
        "a bound of the host is one", lambda P: [3 * P, 5, 4], fields={"max_seq_len": 4},
    ),
    "window of several query tokens": Case(
        "it covers what the first of them sees", lambda P: [5 * P + 3, P + 1, 2 * P],
        windows=lambda P: [P], query=lambda P: P + 2,
    ),
    "window of ragged query tokens": Case(
        "the same, of each row", lambda P: [5 * P + 3, P + 1, 2 * P + 5],
        {"query_lens": _ragged}, windows=lambda P: [P], fields={"query_sign": 1},
    ),
    "window of a draft extend": Case(
        "the query tokens that are taken off count", lambda P: [5 * P + 9, P + 9, 2 * P + 9],
        {"query_lens": _ragged}, windows=lambda P: [P], fields={"query_sign": -1, "seq_lens_delta": 7},
    ),
    "window of the prefix alone": Case(
        "query tokens come from elsewhere", lambda P: [5 * P + 9, P + 9, 2 * P + 9],
        {"query_lens": _ragged}, windows=lambda P: [P],
        fields={"query_sign": 1, "window_is_prefix_only": True},
    ),
    "window": Case(
        "the last tokens alone", lambda P: [5 * P + 3, 2, 2 * P],
        windows=lambda P: [P + 2],
    ),
    "two views": Case(
        "window and whole in one launch", lambda P: [5 * P + 3, 0, 2 * P, 1],
        maps={"window_map": lambda size: [(n * 7) % size if n % 5 else -1 for n in range(size)]},
        windows=lambda P: [None, 2 * P + 1],
    ),
    "fill the width": Case("padding", lambda P: [P, 0, 3 * P - 1], fields={"pad_value": 0}, width=20),
    "fill the tile": Case(
        "padding to a multiple, in an empty row too", lambda P: [P, 0, 3 * P - 1, 4 * P],
        fields={"pad_value": 0, "pad_to_multiple_of": 4}, width=18,
    ),
    "least length": Case(
        "padded rows that must not be empty", lambda P: [0, P, 2 * P + 1],
        fields={"min_seq_len": 2, "missing_id": 0, "min_last_page_len": 1},
    ),
    "holes": Case("a live token without an id is -1 and reported", lambda P: [2 * P, 7], source=_holes),
    "holes replaced": Case(
        "... or what is asked for", lambda P: [2 * P, 7], source=_holes,
        fields={"missing_id": 0, "report_missing": False},
    ),
    "ids past 2**47": Case("what is no id is reported, not shown", lambda P: [2 * P, 7], source=_too_large),
    "token map": Case("window slots", lambda P: [2 * P + 3, 7], maps={"token_map": _token_map}),
    "page map": Case("physical pages", lambda P: [2 * P + 3, 7], maps={"page_map": _page_map}),
    "short map": Case(
        "an id past the map", lambda P: [2 * P + 3, 9], maps={"page_map": lambda size: [*range(5)]}
    ),
    "both maps": Case(
        "in turn", lambda P: [2 * P + 3, 9], maps={"token_map": _token_map, "page_map": _page_map}
    ),
    "shard": Case(
        "the rank's tokens alone, some rows without any", lambda P: [5 * P + 3, 1, 0, 2 * P, 3 * P - 1],
        {"kv_start": lambda P: [P + 1, 0, 0, 2 * P, 7 % P]}, forms=(TABLE, CSR, SLOTS), query=9,
        fields={"shard": Shard(2, 1), "starts_are_aligned": True},
    ),
    "shard of a global source": Case(
        "ids of all ranks' cache", lambda P: [5 * P + 3, 1, 0, 2 * P, 3 * P - 1],
        {"kv_start": lambda P: [P + 1, 0, 0, 2 * P, 7 % P]}, forms=(TABLE, CSR, SLOTS), query=9,
        fields={"shard": Shard(3, 1, 4, "global"), "min_last_page_len": 1},
    ),
    "shard with a window": Case(
        "whole rows are cut, then the rank's share taken", lambda P: [5 * P + 3, P + 1, 2 * P],
        windows=lambda P: [P + 1], query=lambda P: P, fields={"shard": Shard(2, 1, 1, "global")},
    ),
    "shard and least length": Case(
        "empty shards have an entry", lambda P: [1, 0, 2 * P, P],
        fields={"shard": Shard(4, 3), "min_seq_len": 1, "missing_id": 0},
    ),
    "shard and page map": Case(
        "local pages are mapped", lambda P: [2 * P + 3, 9], maps={"page_map": _page_map},
        fields={"shard": Shard(2, 1, 1, "global")},
    ),
    "shard beyond the source": Case(
        "the whole row's length is cut", lambda P: [10**6, 5, 2**31 - 1], width=40,
        fields={"shard": Shard(2, 0)},
    ),
    "slots": Case(
        "the last tokens of each row, in order", lambda P: [P + 3, 0, 5, 2 * P], forms=(SLOTS,)
    ),
    "slots with padding": Case(
        "padding after the last slot", lambda P: [P + 3, 2, 5], fields={"pad_value": -1}, forms=(SLOTS,)
    ),
    "slots at positions": Case(
        "anywhere in a row, from a limit on none, and padding past the last", lambda P: [P + 3, 7, 5, 2 * P],
        {
            "positions": lambda P: [P + 2, 0, P, 4, 1, 2 * P - 1, 2 * P, -1, 0],
            "query_start_loc": lambda P: [0, 3, 5, 5, 8], "req_pool_indices": lambda P: [3, -1, 0, 2],
        },
        fields={"max_position": 17, "pad_value": -1}, forms=(SLOTS,), width=11,
    ),
    "slots at positions of rows that cannot be": Case(
        "what an engine should not write is cut and reported", lambda P: [P + 3, P, 5, 2 * P, 1, 3],
        {
            "positions": lambda P: [0, 1, 2, 3, 4, 0, 1, 10**9, 3, 2],
            "query_start_loc": lambda P: [0, 4, 2, 7, 99, -3, 5],
            "req_pool_indices": lambda P: [1, 2, -1, 9, 0, 0],
        },
        fields={"pad_value": -2}, forms=(SLOTS,), width=14,
    ),
    "slots of short rows": Case(
        "query tokens before the row's first keep their place", lambda P: [1, P + 1, 0, 2],
        forms=(SLOTS,), query=4,
    ),
}  # fmt: skip


def make(
    case: Case, form: int, page_size: int, source_page_size: int, dtype: torch.dtype, device: str
) -> Build:
    """The case as a build: ids in ``dtype``, lengths and rows in the other one; all outputs of the form."""
    P, S, rows, other = (1 if form == SLOTS else page_size), source_page_size, 5, I64 if dtype == I32 else I32
    lens = case.lens(page_size)
    known = [n for n in lens if n < 10**6]
    width = -(-(max(known, default=page_size) + 8) // S)
    source = paged_ids(random.Random(1), rows, width, max(page_size, S), S).to(dtype)
    tokens = (int(source.max()) + 1) * S
    case.source(source)
    query = case.query if isinstance(case.query, int) else case.query(page_size)
    vectors: dict[str, list[int]] = {"req_pool_indices": [(3 * n + 1) % rows for n in range(len(lens))]}
    vectors |= {"seq_lens": lens} | {k: of(page_size) for k, of in case.vectors.items()}
    if form == SLOTS:
        vectors = {k: v for k, v in vectors.items() if k != "kv_start"}
        if "positions" not in vectors:
            vectors["query_lens"] = [query + n % 2 for n in range(len(lens))]
    vectors |= {k: of(tokens // P + 1 if k == "page_map" else tokens) for k, of in case.maps.items()}
    values = {k: torch.tensor(v, dtype=other) for k, v in vectors.items()} | {"req_to_token": source}

    entries = [-(-(n + 8) // P) for n in known] or [1]
    room = case.width or (max(entries) if form == TABLE else sum(entries))
    names = {TABLE: ["cu_seqlens_k"], CSR: ["kv_indptr", "kv_last_page_len"], SLOTS: []}[form]
    names += (
        [] if form == SLOTS else ["cache_seqlens", *(["kv_start_offset"] if "kv_start" in vectors else [])]
    )
    names += ["empty_rows"] if form != SLOTS and "shard" in case.fields else []
    found = {"out": Spec((len(lens), room) if form == TABLE else (room,), dtype, gap=3)}
    for name in names:
        found[name] = Spec((len(lens) + OUTPUTS[name],), I32)
    found |= {f"window.{name}": spec for name, spec in found.items()}
    found["cu_seqlens_q"] = Spec((len(lens) + 1,), I32)
    explicit = found | {k: Spec(tuple(v.shape), v.dtype, gap=3) for k, v in values.items()}

    family = Family("launch", case.why, form, P, S, dtype, dtype, frozenset({"status", *vectors}))
    sizes = Sizes(family, random.Random(1), small=True)
    vars(sizes).update(batch=len(lens), shifts=(0,))
    fields = {"query_len": query} | case.fields
    launch = Launch(case.why, family, sizes, explicit, fields, case.windows(page_size), print, device)
    for name, value in values.items():
        launch.memory.host[name].copy_(value)
    launch.memory.host["status"].fill_(2**63 - 1)
    launch.memory.send()
    return launch.launch(launch.memory.tensors)
