"""A step's metadata in SGLang's buffers, in one launch: tables, lengths, prefix sums, slots of new tokens.

`launch` launches, and `warm` compiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...launch.cache import fits_int32, sums_fit
from ...params import CAPACITY_MAX, LENGTH_MAX, NO_IDS, TABLE, Build, View
from ..cached_calls import SIZES, CachedCalls, LaunchSizes
from .tensors import long_enough, source, source_sizes, table, table_width, vector, vector_or_none


class StepTensors(NamedTuple):
    """The tensors of a step; `Build` and `View` describe those of the same names.

    Attributes:
        rows: None where there is no table: lengths do not depend on them, and nothing waits for their load.
        out, out2: the table and the window's.
        swa_map: slots of the window's pool, by slot.
        v2p, swa_v2p: physical pages by page, of the table and of the window's.
        locs, swa_locs: ``out_cache_loc`` and its twin of the window's pool.
    """

    ids: Tensor
    rows: Tensor | None
    lens: Tensor
    seqlens: Tensor
    out: Tensor | None = None
    out2: Tensor | None = None
    cu_k: Tensor | None = None
    cu_q: Tensor | None = None
    qlens: Tensor | None = None
    swa_map: Tensor | None = None
    v2p: Tensor | None = None
    swa_v2p: Tensor | None = None
    locs: Tensor | None = None
    swa_locs: Tensor | None = None


class StepNumbers(NamedTuple):
    """The numbers of a step.

    Attributes:
        stride: entries from a row of ``ids`` to the next.
        page_size: tokens.
        pages: entries of a row that may be written.
        out_stride, out2_stride: entries from a row of the tables to the next.
        more: tokens added to each length.
        query_len: query tokens of each row, if there are no ``qlens``.
        num_locs, num_swa_locs: entries of ``locs`` that are read, and of ``swa_locs`` that are written.
        missing: written for a token without a slot.
        zero_tail: whether a row is written up to ``pages``, with zeros behind its own.
        zero_first: whether the prefix sums' first entry is written.
    """

    stride: int
    page_size: int
    pages: int = 0
    out_stride: int = 0
    out2_stride: int = 0
    more: int = 0
    query_len: int = 0
    num_locs: int = 0
    num_swa_locs: int = 0
    missing: int = -1
    zero_tail: bool = False
    zero_first: bool = False


_TENSORS = len(StepTensors._fields)
_NAMES = (
    "src_ptr rows_ptr lens_ptr seqlens_ptr out_ptr out2_ptr cu_k_ptr cu_q_ptr query_ptr {swa_map}"
    " page_map_ptr page_map2_ptr loc_ptr loc_out_ptr"
)


def _sums_fit(batch: int, source_size: tuple[int, ...], page_size: int) -> bool:
    """Whether the lengths of a batch add up to an int32: of all rows, so that it does not change with it."""
    rows, tokens = source_size
    return sums_fit(max(batch, rows), tokens, page_size)


def _sizes(*given: Any) -> LaunchSizes | None:
    t, batch, n = StepTensors(*given[:_TENSORS]), given[_TENSORS], StepNumbers(*given[_TENSORS + 1 :])
    found = source_sizes(t.ids, n.stride, 1)
    if found is None or not long_enough(batch, t.rows, t.lens, t.qlens, t.seqlens):
        return None
    if n.page_size < 1 or not long_enough(batch + 1, t.cu_k, t.cu_q):
        return None
    maps = [x for x in (t.swa_map, t.v2p, t.swa_v2p) if x is not None]
    if not all(x.is_contiguous() and fits_int32(x.numel()) for x in maps):
        return None
    more: dict[str, int] = {}
    row_items = NO_IDS
    if t.out is not None:
        width = table_width(t.out, batch, n.out_stride)
        if width is None:
            return None
        width = min(width, n.pages, CAPACITY_MAX)
        more |= {"out_stride": n.out_stride, "capacity": width}
        if t.v2p is not None:
            more["page_map_len"] = t.v2p.numel()
        if t.out2 is not None:
            width2 = table_width(t.out2, batch, n.out2_stride)
            if width2 is None or (t.swa_map is None) == (t.swa_v2p is None):
                return None
            width2 = min(width2, n.pages, CAPACITY_MAX)
            more |= {"out_stride2": n.out2_stride, "capacity2": width2}
            if t.swa_v2p is not None:
                more["page_map_len2"] = t.swa_v2p.numel()
            if not fits_int32(n.out2_stride):
                return None
            width = max(width, width2)
        row_items = width if n.zero_tail else min(width, found[1] // n.page_size + 1)
    if t.swa_map is not None:
        more["token_map_len" if t.out2 is None else "token_map_len2"] = t.swa_map.numel()
    if t.cu_q is not None and t.qlens is None:
        more["query_len"] = n.query_len
    if t.locs is not None:
        # only in one launch with what has the map
        if t.swa_locs is None or t.swa_map is None or not 0 <= n.num_swa_locs <= LENGTH_MAX:
            return None
        if not long_enough(n.num_locs, t.locs) or not long_enough(n.num_swa_locs, t.swa_locs):
            return None
        more |= {"loc_len": max(n.num_locs, 0), "loc_out_len": n.num_swa_locs}
    names = (*SIZES[:5], *more)
    fixed = (n.page_size, n.missing, n.zero_tail, n.zero_first, _sums_fit(batch, found, n.page_size))
    stride, rows = (0, batch) if t.rows is None else (n.stride, found[0])
    return LaunchSizes(fixed, names, (stride, rows, found[1], batch, n.more, *more.values()), row_items)


def _build(*given: Any) -> Build | None:
    t, batch, n = StepTensors(*given[:_TENSORS]), given[_TENSORS], StepNumbers(*given[_TENSORS + 1 :])
    if any(x is not None and x.dtype is not torch.int32 for x in (t.seqlens, t.cu_k, t.cu_q)):
        return None
    if n.page_size & (n.page_size - 1) and (t.v2p is not None or t.swa_v2p is not None):
        return None
    out = t.seqlens.view(1, -1) if t.out is None else table(t.out, batch, n.out_stride)[:, : n.pages]
    first = View(
        out, page_map=None if t.v2p is None else t.v2p.view(-1), cache_seqlens=vector(t.seqlens, batch),
        cu_seqlens_k=vector_or_none(t.cu_k, batch + 1), cu_seqlens_q=vector_or_none(t.cu_q, batch + 1),
    )  # fmt: skip
    views = [first]
    if t.out2 is not None:
        out2 = table(t.out2, batch, n.out2_stride)[:, : n.pages]
        views.append(View(out2, page_map=None if t.swa_v2p is None else t.swa_v2p.view(-1)))
    views[-1].token_map = None if t.swa_map is None else t.swa_map.view(-1)
    ids = source(t.ids, n.stride)
    fits = _sums_fit(batch, ids.shape, n.page_size)
    if t.rows is None:
        ids = ids.as_strided((batch, ids.shape[1]), (0, 1))
    return Build(
        ids, vector_or_none(t.rows, batch), vector(t.lens, batch), TABLE, n.page_size, 1,
        n.page_size, tuple(views), seq_lens_delta=n.more, query_lens=vector_or_none(t.qlens, batch),
        query_len=n.query_len, missing_id=n.missing, report_missing=False,
        indptr_is_input=not n.zero_first, writes_ids=t.out is not None, pad_value=0 if n.zero_tail else None,
        out_cache_loc=None if t.locs is None else t.locs.view(-1),
        window_out_cache_loc=None if t.locs is None else vector_or_none(t.swa_locs, n.num_swa_locs),
        num_out_tokens=n.num_locs, sums_fit=fits,
    )  # fmt: skip


# the map is that of the last table
_one_table = CachedCalls(_NAMES.format(swa_map="token_map_ptr"), _sizes, _build)
_two_tables = CachedCalls(_NAMES.format(swa_map="token_map2_ptr"), _sizes, _build)


def calls_of(t: StepTensors) -> CachedCalls:
    """The calls that write as many tables."""
    return _one_table if t.out2 is None else _two_tables


def launch(batch: int, t: StepTensors, n: StepNumbers) -> bool:
    """Launches a step's metadata, unless it is left to the original: then returns False."""
    if batch == 0:  # whatever does not belong to a row is the original's to write
        return not n.zero_first and t.locs is None
    return calls_of(t)(t, batch, *n)


def warm(t: StepTensors, n: StepNumbers) -> int:
    """Compiles and loads what steps like this one need; returns how many kernels were not there before."""
    return calls_of(t).warm(t, 1, *n)


def clear() -> None:
    """Forgets every call."""
    _one_table.clear()
    _two_tables.clear()
