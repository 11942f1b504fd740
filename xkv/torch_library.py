"""The ops as PyTorch knows them: what `torch.compile` puts into its graph in place of a launch.

It traces the public ops themselves: checks of kinds and shapes become guards of the graph, and what a call
allocates, the graph allocates. An op of the graph is the public op with ``out``, so that what only real
memory shows is checked when it runs. Eager calls do not come here: the dispatcher costs more than a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import xkv
from xkv.params import CSR, SLOTS, TABLE, Build
from xkv.status import Status

# Every op's first arguments, and its last; between them stand what it reads and writes of its own.
_TENSORS = (
    "Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens, Tensor? seq_lens_deltas,"
    " Tensor? token_map, Tensor? page_map, Tensor(z!)? status"
)
_NUMBERS = (
    "SymInt source_page_size, SymInt seq_lens_delta, SymInt map_page_size, SymInt? missing_id,"
    " SymInt? tail_fill, SymInt? tail_tile"
)
_OPS: dict[int, Any] = {}


def run(build: Build) -> None:
    """Puts the checked build of one op into the graph that is being traced."""
    view = build.views[0]
    tensors: list[Any] = [
        build.req_to_token, build.req_pool_indices, build.seq_lens, build.seq_lens_delta_rows,
        view.token_map, view.page_map, build.status,
    ]  # fmt: skip
    numbers: dict[str, Any] = {
        "source_page_size": build.source_page_size, "seq_lens_delta": build.seq_lens_delta,
        "map_page_size": build.map_page_size, "missing_id": None if build.expect_all else build.missing_id,
        "tail_fill": build.tail_fill, "tail_tile": build.tail_tile,
    }  # fmt: skip
    if build.form == TABLE:
        tensors += [view.kv_start, view.out, view.kv_start_offset]
        numbers["max_seq_len"] = build.max_seq_len
    elif build.form == CSR:
        tensors += [view.kv_start, view.kv_indptr, view.out, view.kv_last_page_len, view.kv_start_offset]
        numbers["min_last_page_len"] = build.min_last_page_len
    else:
        tensors += [build.query_lens, view.out]
    if build.form != SLOTS:
        numbers["page_size"] = build.page_size
    _OPS[build.form](*tensors, **numbers)


def _call(
    op: str, inputs: list[Tensor], more: dict[str, Any], deltas: Tensor | None, token_map: Tensor | None,
    page_map: Tensor | None, word: Tensor | None, numbers: dict[str, Any],
) -> None:  # fmt: skip
    """Calls a public op with what an op of the graph was given."""
    if deltas is not None:
        numbers = {**numbers, "seq_lens_delta": deltas}
    status = None if word is None else Status.of(word)
    getattr(xkv, op)(*inputs, token_map=token_map, page_map=page_map, status=status, **more, **numbers)


def _page_table(
    source: Tensor, rows: Tensor, lens: Tensor, deltas: Any, token_map: Any, page_map: Any, word: Any,
    start: Tensor | None, out: Tensor, offset: Tensor | None, **numbers: Any,
) -> None:  # fmt: skip
    more = {"kv_start": start, "out": out, "kv_start_offset": offset}
    _call("build_page_table", [source, rows, lens], more, deltas, token_map, page_map, word, numbers)


def _kv_indices(
    source: Tensor, rows: Tensor, lens: Tensor, deltas: Any, token_map: Any, page_map: Any, word: Any,
    start: Tensor | None, indptr: Tensor, ids: Tensor, last: Tensor, offset: Tensor | None, **numbers: Any,
) -> None:  # fmt: skip
    more = {"kv_start": start, "out": xkv.KVIndices(indptr, ids, last), "kv_start_offset": offset}
    _call("build_kv_indices", [source, rows, lens], more, deltas, token_map, page_map, word, numbers)


def _slot_mapping(
    source: Tensor, rows: Tensor, lens: Tensor, deltas: Any, token_map: Any, page_map: Any, word: Any,
    query: Tensor, out: Tensor, **numbers: Any,
) -> None:  # fmt: skip
    inputs = [source, rows, lens, query]
    _call("build_slot_mapping", inputs, {"out": out}, deltas, token_map, page_map, word, numbers)


def _register(form: int, name: str, tensors: str, numbers: str, call: Callable[..., None]) -> None:
    """Registers an op that writes to tensors that it is given, and returns nothing."""
    schema = f"({_TENSORS}, {tensors}, *, {_NUMBERS}{numbers}) -> ()"
    # not custom_op, whose wrapper costs ten times as much at every call; and not needs_exact_strides, with
    # which torch 2.13 cannot order the code of a new table of one row
    torch.library.define(f"xkv::{name}", schema, tags=torch.Tag.needs_fixed_stride_order)
    torch.library.impl(f"xkv::{name}", ("cpu", "cuda"), call)
    torch.library.register_fake(f"xkv::{name}", lambda *tensors, **numbers: None)
    _OPS[form] = getattr(torch.ops.xkv, name).default


_register(
    TABLE, "build_page_table", "Tensor? kv_start, Tensor(a!) out, Tensor(b!)? kv_start_offset",
    ", SymInt page_size, SymInt? max_seq_len", _page_table,
)  # fmt: skip
_register(
    CSR, "build_kv_indices",
    "Tensor? kv_start, Tensor(a!) kv_indptr, Tensor(b!) kv_indices, Tensor(c!) kv_last_page_len,"
    " Tensor(d!)? kv_start_offset",
    ", SymInt page_size, SymInt min_last_page_len", _kv_indices,
)  # fmt: skip
_register(SLOTS, "build_slot_mapping", "Tensor query_lens, Tensor(a!) out", "", _slot_mapping)
