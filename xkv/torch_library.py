"""Registers the ops with `torch.library`: `torch.compile` puts them into its graph in place of a launch.

torch.compile traces the public ops: checks of dtypes and shapes become guards of the graph, and the graph
makes the ops' allocations. An op of the graph is the public op with ``out``, so that checks that need real
memory are made when it runs. Eager calls bypass the dispatcher, which costs more than a launch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .chosen import ChosenTokens
from .expanded import Expansion
from .params import CSR, SLOTS, TABLE, Build
from .shard import Shard
from .status import Status

# The namespace in torch.ops: "xkv", or the name that this copy of the package was loaded under, so that
# several copies in one process, as the Kernel Hub's loader makes them, do not collide.
NAMESPACE = re.sub(r"\W", "_", __package__)

# The schema of every op begins with these tensors and ends with these numbers.
_TENSORS = (
    "Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens, Tensor? seq_lens_deltas,"
    " Tensor? token_map, Tensor? page_map, Tensor(z!)? status"
)
_NUMBERS = (
    "SymInt source_page_size, SymInt seq_lens_delta, SymInt map_page_size, SymInt? missing_id,"
    " SymInt? pad_value, SymInt? pad_to_multiple_of, int[]? shard"
)
# By form: the op's own tensors, between those, and its own numbers, after them.
_OWN = {
    TABLE: (
        "Tensor? kv_start, Tensor(a!) out, Tensor(b!)? kv_start_offset",
        ", SymInt page_size, SymInt? max_seq_len",
    ),
    CSR: (
        "Tensor? kv_start, Tensor(a!) kv_indptr, Tensor(b!) kv_indices, Tensor(c!) kv_last_page_len,"
        " Tensor(d!)? kv_start_offset",
        ", SymInt page_size, SymInt min_last_page_len",
    ),
    SLOTS: (
        "Tensor? query_lens, Tensor? positions, Tensor? query_start_loc, Tensor(a!) out",
        ", SymInt? max_position",
    ),
}
_OPS: dict[int, Any] = {}  # the registered ops, by form


def run(build: Build) -> None:
    """Adds a checked build to the graph that is being traced, as a call of its registered op."""
    view = build.views[0]
    tensors: list[Any] = [
        build.req_to_token, build.req_pool_indices, build.seq_lens, build.seq_lens_delta_rows,
        view.token_map, view.page_map, build.status,
    ]  # fmt: skip
    numbers: dict[str, Any] = {
        "source_page_size": build.source_page_size, "seq_lens_delta": build.seq_lens_delta,
        "map_page_size": build.map_page_size,
        "missing_id": None if build.report_missing else build.missing_id,
        "pad_value": build.pad_value, "pad_to_multiple_of": build.pad_to_multiple_of,
        "shard": _shard_numbers(build.shard),
    }  # fmt: skip
    if build.form == TABLE:
        tensors += [view.kv_start, view.out, view.kv_start_offset]
        numbers["max_seq_len"] = build.max_seq_len
    elif build.form == CSR:
        tensors += [view.kv_start, view.kv_indptr, view.out, view.kv_last_page_len, view.kv_start_offset]
        numbers["min_last_page_len"] = build.min_last_page_len
    else:
        tensors += [build.query_lens, build.positions, view.kv_indptr, view.out]
        numbers["max_position"] = build.max_position
    if build.form != SLOTS:
        numbers["page_size"] = build.page_size
    _OPS[build.form](*tensors, **numbers)


def register(form: int, op: Callable[..., Any], outputs: Callable[..., Any] | None = None) -> None:
    """Registers a public op with PyTorch, as one that writes into its arguments and returns nothing.

    Args:
        form: TABLE, CSR or SLOTS.
        op: the public op.
        outputs: combines the op's outputs into its ``out``. None: it has one output.
    """

    def call(
        source: Tensor, rows: Tensor, lens: Tensor, deltas: Tensor | None, token_map: Tensor | None,
        page_map: Tensor | None, word: Tensor | None, *own: Any, **numbers: Any,
    ) -> None:  # fmt: skip
        inputs = [source, rows, lens]
        if form == SLOTS:
            numbers["query_lens"], numbers["positions"], numbers["query_start_loc"], *outs = own
        else:
            numbers["kv_start"], *outs, numbers["kv_start_offset"] = own
        numbers["shard"] = shard_of(numbers["shard"])
        if deltas is not None:
            numbers["seq_lens_delta"] = deltas
        out = outputs(*outs) if outputs else outs[0]
        status = None if word is None else Status.of(word)
        op(*inputs, out=out, token_map=token_map, page_map=page_map, status=status, **numbers)

    tensors, more = _OWN[form]
    name = f"{NAMESPACE}::{op.__name__}"
    schema = f"({_TENSORS}, {tensors}, *, {_NUMBERS}{more}) -> ()"
    # not custom_op, whose wrapper costs ten times as much per call; not needs_exact_strides, with which torch
    # 2.13 fails to order the generated code for a new table of one row
    torch.library.define(name, schema, tags=torch.Tag.needs_fixed_stride_order)
    torch.library.impl(name, ("cpu", "cuda"), call)
    torch.library.register_fake(name, lambda *tensors, **numbers: None)
    _OPS[form] = getattr(getattr(torch.ops, NAMESPACE), op.__name__).default


_TRANSLATION = (
    "(Tensor req_to_token, Tensor positions, Tensor? token_to_req, Tensor? query_start_loc,"
    " Tensor? req_pool_indices, Tensor? seq_lens, Tensor(a!) out, Tensor(b!)? counts, Tensor(z!)? status, *,"
    " SymInt unit, SymInt page_size, SymInt source_page_size, SymInt block_stride, int[]? shard,"
    " bool compact, SymInt? dummy, SymInt missing_id) -> ()"
)


def run_translation(build: ChosenTokens) -> None:
    """Adds a checked translation of chosen positions to the graph that is being traced."""
    op = getattr(torch.ops, NAMESPACE).translate_positions.default
    op(
        build.req_to_token, build.positions, build.token_to_req, build.query_start_loc,
        build.req_pool_indices, build.seq_lens, build.out, build.counts, build.status, unit=build.unit,
        page_size=build.page_size, source_page_size=build.source_page_size, block_stride=build.block_stride,
        shard=_shard_numbers(build.shard), compact=build.compact, dummy=build.dummy,
        missing_id=build.missing_id,
    )  # fmt: skip


def register_translation(call: Callable[..., None]) -> None:
    """Registers `xkv.translate_positions` with PyTorch, as one that writes into its arguments."""
    _register("translate_positions", _TRANSLATION, call)


_EXPANSION = (
    "(Tensor query_start_loc, Tensor seq_lens, Tensor? page_table, Tensor(a!)? token_to_req,"
    " Tensor(b!)? positions, Tensor(c!)? out_seq_lens, Tensor(d!)? out_page_table, Tensor(z!)? status, *,"
    " SymInt num_tokens, int[]? shard, bool causal, SymInt pad_req) -> ()"
)


def run_expansion(build: Expansion) -> None:
    """Adds a checked expansion of requests into query tokens to the graph that is being traced."""
    op = getattr(torch.ops, NAMESPACE).expand_queries.default
    op(
        build.query_start_loc, build.seq_lens, build.page_table, *build.out, build.status,
        num_tokens=build.num_tokens, shard=_shard_numbers(build.shard), causal=build.causal,
        pad_req=build.pad_req,
    )  # fmt: skip


def register_expansion(call: Callable[..., None]) -> None:
    """Registers `xkv.expand_queries` with PyTorch, as one that writes into its arguments."""
    _register("expand_queries", _EXPANSION, call)


def _register(op: str, schema: str, call: Callable[..., None]) -> None:
    name = f"{NAMESPACE}::{op}"
    torch.library.define(name, schema, tags=torch.Tag.needs_fixed_stride_order)
    torch.library.impl(name, ("cpu", "cuda"), call)
    torch.library.register_fake(name, lambda *tensors, **numbers: None)


def _shard_numbers(shard: Shard | None) -> list[int] | None:
    if shard is None:
        return None
    return [shard.size, shard.rank, shard.interleave, int(shard.source == "global")]


def shard_of(numbers: list[int] | None) -> Shard | None:
    """The shard that an op of a graph has as numbers."""
    if numbers is None:
        return None
    size, rank, interleave, is_global = numbers
    return Shard(size, rank, interleave, "global" if is_global else "local")
