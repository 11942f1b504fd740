"""Curated builds, each with its why; every kernel test, device and executor draws on them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from building import guarded, guarded_1d, paged_source

from xkv.params import CSR, SLOTS, TABLE, Build, View


@dataclass
class Case:
    """Lengths in pages and tokens of the page size at hand, and what else differs from a plain build.

    Attributes:
        why: what it would catch.
        lens: of the page size: the length of every row, in tokens.
        change: makes further changes to the build.
        width: pages the output has room for; None: enough for the longest row.
        forms: which forms it makes sense for.
    """

    why: str
    lens: Callable[[int], list[int]]
    change: Callable[[Build, Callable[[list[int]], torch.Tensor]], None] = lambda b, t: None
    width: int | None = None
    forms: tuple[int, ...] = (TABLE, CSR)
    options: dict[str, Any] = field(default_factory=dict)


def _set(**fields: Any) -> Callable[..., None]:
    def change(build: Build, _: Callable[..., torch.Tensor]) -> None:
        for name, value in fields.items():
            setattr(build, name, value)

    return change


def _view(**makers: Callable[[Build, Callable[..., torch.Tensor]], Any]) -> Callable[..., None]:
    def change(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
        for name, make in makers.items():
            setattr(build.views[0], name, make(build, tensor))

    return change


def _holes(build: Build, _: Callable[..., torch.Tensor]) -> None:
    build.req_to_token[:, ::3] = -1


def _too_large(build: Build, _: Callable[..., torch.Tensor]) -> None:
    """Ids on either side of the limit, where the source's dtype holds them."""
    if build.req_to_token.dtype == torch.int64:
        build.req_to_token[:, ::2] = (1 << 48) - 1
        build.req_to_token[:, 1::3] = 1 << 48
    else:
        build.req_to_token[:, ::2] = (1 << 31) - 1


def _replaced_holes(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
    _holes(build, tensor)
    build.missing_id, build.report_missing = 0, False


def _rows(values: list[int]) -> Callable[..., None]:
    def change(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
        build.req_pool_indices = tensor(values)

    return change


def _per_row_delta(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
    build.seq_lens_delta_rows = tensor([3, -2, 0])


def _ragged_verify(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
    build.query_lens, build.query_sign = tensor([3, 0, 5]), 1


def _window(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
    """A second view: the last tokens alone, through a token map, beside the whole."""
    first, P = build.views[0], build.page_size
    size = int(build.req_to_token.max()) + 1
    ids = [(n * 7) % size if n % 5 else -1 for n in range(size)]
    second = View(torch.empty(0), window=2 * P + 1, token_map=tensor(ids))
    made = make_view(build, first.out.dtype, first.out.shape[-1], str(first.out.device))
    second.out, second.kv_indptr = made.out, made.kv_indptr
    second.kv_last_page_len, second.cu_seqlens_k = made.kv_last_page_len, made.cu_seqlens_k
    second.cache_seqlens = made.cache_seqlens
    build.views = (first, second)


def _verify_in_a_window(build: Build, _: Callable[..., torch.Tensor]) -> None:
    build.views[0].window, build.query_len = build.page_size, build.page_size + 2


def _ragged_in_a_window(sign: int, prefix: bool = False) -> Callable[..., None]:
    def change(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
        build.views[0].window = build.page_size
        build.query_lens, build.query_sign = tensor([build.page_size + 2, 0, 5]), sign
        build.seq_lens_delta, build.window_is_prefix_only = (7 if sign < 0 else 0), prefix

    return change


def _start_inside_a_page(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
    build.starts_are_aligned = True
    build.views[0].kv_start = tensor([build.page_size, page_and_a_half(build), build.page_size])
    build.views[0].kv_start_offset = guarded_1d(build.batch, torch.int32, str(build.views[0].out.device))


def _page_map(build: Build, tensor: Callable[..., torch.Tensor]) -> list[int]:
    size = int(build.req_to_token.max()) // build.page_size + 1
    return tensor([size - 1 - n if n % 4 else -1 for n in range(size)])


def _short_map(build: Build, tensor: Callable[..., torch.Tensor]) -> torch.Tensor:
    return tensor(list(range(5)))


def _token_map(build: Build, tensor: Callable[..., torch.Tensor]) -> torch.Tensor:
    size = int(build.req_to_token.max()) + 1
    return tensor([(n * 3) % size if n % 7 else -1 for n in range(size)])


def _anywhere(build: Build, tensor: Callable[..., torch.Tensor]) -> None:
    if build.form != SLOTS:
        build.views[0].kv_start = tensor([n % 4 * build.page_size for n in range(build.batch)])


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
        lambda P: [n * P for n in (64, 15, 16, 17, 35, 34, 33, 32, 50)], _anywhere,
        forms=(TABLE, CSR, SLOTS), options={"query": 32},
    ),
    "shared rows": Case("two requests on one row", lambda P: [5, 2 * P, P], _rows([1, 1, 0])),
    "delta": Case("verify: draft tokens count", lambda P: [P - 2, P, 0], _set(seq_lens_delta=4)),
    "negative delta": Case("below zero is empty", lambda P: [2, P + 3, 9], _set(seq_lens_delta=-3)),
    "delta a row": Case("draft extend", lambda P: [P, P + 2, 1], _per_row_delta),
    "query lengths added": Case("ragged verify", lambda P: [P - 1, P, 0], _ragged_verify),
    "beyond the source": Case(
        "a length past the table is cut", lambda P: [10**6, 5, 2**31 - 1], width=40
    ),
    "no room": Case("what the output cannot hold is cut", lambda P: [9 * P, 3, 6 * P], width=4),
    "unknown rows": Case(
        "row indices out of range read nothing", lambda P: [P, 3, 0, 2 * P], _rows([-1, 99, -5, 2])
    ),
    "start": Case(
        "a chunk from the middle of a page", lambda P: [3 * P, 2 * P + 1, P],
        _view(kv_start=lambda b, t: t([page_and_a_half(b), b.page_size, b.page_size])),
    ),
    "start beyond": Case(
        "starts out of range are cut", lambda P: [3 * P, 5, 4],
        _view(kv_start=lambda b, t: t([10**6, -7, 4])),
    ),
    "start inside a page": Case(
        "reported where the reader cannot skip tokens", lambda P: [3 * P, 2 * P + 1, P],
        _start_inside_a_page,
    ),
    "longer than the host says": Case(
        "a bound of the host is one", lambda P: [3 * P, 5, 4], _set(max_seq_len=4),
    ),
    "window of several query tokens": Case(
        "it covers what the first of them sees", lambda P: [5 * P + 3, P + 1, 2 * P],
        _verify_in_a_window,
    ),
    "window of ragged query tokens": Case(
        "the same, of each row", lambda P: [5 * P + 3, P + 1, 2 * P + 5], _ragged_in_a_window(1),
    ),
    "window of a draft extend": Case(
        "the query tokens that are taken off count", lambda P: [5 * P + 9, P + 9, 2 * P + 9],
        _ragged_in_a_window(-1),
    ),
    "window of the prefix alone": Case(
        "query tokens come from elsewhere", lambda P: [5 * P + 9, P + 9, 2 * P + 9],
        _ragged_in_a_window(1, prefix=True),
    ),
    "window": Case(
        "the last tokens alone", lambda P: [5 * P + 3, 2, 2 * P],
        _view(window=lambda b, t: b.page_size + 2),
    ),
    "two views": Case("window and whole in one launch", lambda P: [5 * P + 3, 0, 2 * P, 1], _window),
    "fill the width": Case("padding", lambda P: [P, 0, 3 * P - 1], _set(pad_value=0), width=20),
    "fill the tile": Case(
        "padding to a multiple, in an empty row too", lambda P: [P, 0, 3 * P - 1, 4 * P],
        _set(pad_value=0, pad_to_multiple_of=4), width=18,
    ),
    "least length": Case(
        "padded rows that must not be empty", lambda P: [0, P, 2 * P + 1],
        _set(min_seq_len=2, missing_id=0, min_last_page_len=1),
    ),
    "holes": Case("a live token without an id is -1 and reported", lambda P: [2 * P, 7], _holes),
    "holes replaced": Case("... or what is asked for", lambda P: [2 * P, 7], _replaced_holes),
    "ids past 2**48": Case("what is no id is reported, not shown", lambda P: [2 * P, 7], _too_large),
    "token map": Case("window slots", lambda P: [2 * P + 3, 7], _view(token_map=_token_map)),
    "page map": Case("physical pages", lambda P: [2 * P + 3, 7], _view(page_map=_page_map)),
    "short map": Case("an id past the map", lambda P: [2 * P + 3, 9], _view(page_map=_short_map)),
    "both maps": Case(
        "in turn", lambda P: [2 * P + 3, 9], _view(token_map=_token_map, page_map=_page_map)
    ),
    "slots": Case(
        "the last tokens of each row, in order", lambda P: [P + 3, 0, 5, 2 * P], forms=(SLOTS,)
    ),
    "slots with padding": Case(
        "padding after the last slot", lambda P: [P + 3, 2, 5], _set(pad_value=-1), forms=(SLOTS,)
    ),
    "slots of short rows": Case(
        "query tokens before the row's first keep their place", lambda P: [1, P + 1, 0, 2],
        forms=(SLOTS,), options={"query": 4},
    ),
}  # fmt: skip


def page_and_a_half(build: Build) -> int:
    return build.page_size + build.page_size // 2


def make_view(build: Build, dtype: torch.dtype, room: int, device: str) -> View:
    """Every output that the form has, between guard words; tables with rows wider than they look."""
    batch, form = build.batch, build.form
    ints = lambda n: guarded_1d(n, torch.int32, device)  # noqa: E731
    if form == TABLE:
        out = guarded(batch, room, room + 3, dtype, device)
        return View(out, cache_seqlens=ints(batch), cu_seqlens_k=ints(batch + 1))
    view = View(guarded_1d(room, dtype, device))
    if form == CSR:
        view.kv_indptr, view.kv_last_page_len = ints(batch + 1), ints(batch)
        view.cache_seqlens = ints(batch)
    return view


def make(
    case: Case, form: int, page_size: int, source_page_size: int, dtype: torch.dtype, device: str
) -> Build:
    """The case as a build: ids in ``dtype``, lengths and rows in the other one."""
    P, S = (1 if form == SLOTS else page_size), source_page_size
    other = torch.int64 if dtype == torch.int32 else torch.int32
    tensor = lambda values: torch.tensor(values, dtype=other, device=device)  # noqa: E731
    lens = case.lens(page_size)
    sane = [min(n, 40 * page_size) for n in lens if n < 10**6] or [page_size]
    rng, rows = random.Random(1), 5
    width = -(-(max([*sane, *[n for n in lens if n < 10**6]]) + 8) // S)
    source = paged_source(rng, rows, width, max(page_size, S), S, dtype, device)
    build = Build(
        source, tensor([(3 * n + 1) % rows for n in range(len(lens))]), tensor(lens), form, P, S, P, ()
    )
    build.status = guarded_1d(1, torch.int64, device)
    build.status.fill_(2**63 - 1)
    build.query_len = 2
    if form == SLOTS:
        build.query_lens = tensor([case.options.get("query", 2) + n % 2 for n in range(len(lens))])
    entries = [-(-(n + 8) // P) for n in lens if n < 10**6] or [1]
    room = case.width or (max(entries) if form == TABLE else sum(entries))
    build.views = (make_view(build, dtype, room, device),)
    build.views[0].cu_seqlens_q = guarded_1d(len(lens) + 1, torch.int32, device)
    case.change(build, tensor)
    return build
