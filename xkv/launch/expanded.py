"""Launches a checked expansion of requests into rows of query tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..expanded import Expansion
from ..platforms.detect import Platform, platform
from ..reference.expanded import expand
from . import compile
from .compile import int32_words
from .kept_calls import ALIGNED, KeptCalls, Known
from .launch import compile_only_builds

_MAX_PROGRAMS = 1 << 16  # of a table: beyond it a program copies several parts of its rows


@functools.cache
def expanded_kernel() -> Any:
    """The kernel."""
    from ..kernel.expanded import xkv_expand

    return xkv_expand


CALLS = KeptCalls(
    expanded_kernel,
    (
        "starts_ptr", "lens_ptr", "req_out_ptr", "position_out_ptr", "lens_out_ptr", "table_out_ptr",
        "table_ptr", "status_ptr",
    ),
    ("req_out_ptr", "position_out_ptr", "lens_out_ptr", "table_out_ptr"),
)  # fmt: skip


def run(build: Expansion, known: Known | None = None, inputs: Sequence[Tensor | None] = ()) -> None:
    """Runs it: one launch on a GPU, the torch reference on a CPU. Does not sync; safe in a graph.

    Args:
        build: the checked expansion.
        known: what keeps it for calls like it, if any.
        inputs: its tensors, as `CALLS` has them.
    """
    builds = compile_only_builds()
    if builds is not None:
        builds.append(build)
        return
    if build.num_tokens == 0 and build.status is None:
        return  # with a status, requests are checked
    if build.seq_lens.device.type == "cpu" and not compile.interpreted():
        expand(build)
        return
    target = platform(build.seq_lens.device)
    values, programs = arguments(build), grid(build)
    launch = CALLS.prepare(
        build.seq_lens.get_device(), config(build, target), options(target), programs, values
    )
    aligned = ("table_ptr", "table_out_ptr") if is_aligned(build) else ()
    CALLS.launch(launch, programs, values, known, inputs, aligned)


def warm(build: Expansion) -> int:
    """Compiles and loads what expansions like this one can need; returns how many kernels were not there.

    Whatever the sizes, and how page tables are aligned.
    """
    before = compile.loaded()
    if build.seq_lens.is_cuda:
        target = platform(build.seq_lens.device)
        for aligned in {False, build.page_table is not None}:
            compile.compiled(
                build.seq_lens.get_device(), expanded_kernel(), config(build, target, aligned=aligned),
                options(target), arguments(build),
            )  # fmt: skip
    return compile.loaded() - before


def options(target: Platform) -> dict[str, Any]:
    """Returns Triton's launch options. Reasoned: not measured."""
    # a token a thread; AMD's warps are twice as wide
    warps = 2 if target.vendor == "hip" else 4
    return {"num_warps": warps} | ({"launch_pdl": True} if _uses_pdl(target) else {})


def _uses_pdl(target: Platform) -> bool:
    return target.supports_pdl and not compile.interpreted()


def block_of(build: Expansion) -> tuple[int, int, int]:
    """Query tokens of a tile, columns of a table, and requests, that a program looks at at a time."""
    if compile.interpreted():  # small, so that small cases have several
        return (8 if build.page_table is None else 4), 16, 4
    return (128, 1, 128) if build.page_table is None else (8, 256, 128)


def grid(build: Expansion) -> tuple[int, int, int]:
    """Returns the programs: tiles of query tokens, and of a table parts of its columns."""
    tokens, columns, _ = block_of(build)
    tiles = max(-(-build.num_tokens // tokens), 1)
    return tiles, max(min(-(-build.columns // columns), _MAX_PROGRAMS // tiles), 1), 1


def config(build: Expansion, target: Platform, aligned: bool | None = None) -> Any:
    """Returns the kernel's `ExpandedConfig`; the same object for equal fields.

    Args:
        build: the expansion.
        target: the device.
        aligned: of one like it whose tables are aligned, or are not; None: of this one.
    """
    shard = build.shard
    ranks = (1, 1) if shard is None or build.out.seq_lens is None else (shard.size, shard.interleave)
    return _config(
        build.causal, *ranks, *block_of(build), is_aligned(build) if aligned is None else aligned,
        _uses_pdl(target),
    )  # fmt: skip


def is_aligned(build: Expansion) -> bool:
    """Whether each row of both page tables begins at a multiple of 16 bytes, and is copied up to one."""
    tables = [x for x in (build.page_table, build.out.out_page_table) if x is not None]
    return bool(tables) and build.columns % 4 == 0 and all(
        x.data_ptr() % ALIGNED == 0 and x.stride(0) * x.element_size() % ALIGNED == 0 for x in tables
    )  # fmt: skip


@functools.cache
def _config(*fields: Any) -> Any:
    from ..kernel.expanded_args import ExpandedConfig

    return ExpandedConfig(*fields)


def arguments(build: Expansion) -> list[Any]:
    """Returns the kernel's arguments in order, without the constexpr."""
    table, out = build.page_table, build.out
    values = {
        "num_tokens": build.num_tokens, "batch": build.batch,
        **int32_words("starts", build.query_start_loc), **int32_words("lens", build.seq_lens),
        "pad_req": build.pad_req, "width": build.columns,
        "table_stride": 0 if table is None else table.stride(0),
        "table_out_stride": 0 if out.out_page_table is None else out.out_page_table.stride(0),
        "req_out_ptr": out.token_to_req, "position_out_ptr": out.positions, "lens_out_ptr": out.seq_lens,
        "table_ptr": table, "table_out_ptr": out.out_page_table,
        "shard_rank": None if build.shard is None else int(build.shard.rank), "status_ptr": build.status,
    }  # fmt: skip
    return [values[name] for name in expanded_kernel().arg_names[:-1]]
