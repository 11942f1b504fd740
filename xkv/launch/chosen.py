"""Launches a checked translation of chosen positions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, reference
from ..chosen import ChosenTokens
from ..platforms.detect import Platform, platform
from ..platforms.tuning import ChosenTuning
from ..shard import source_tokens
from . import compile
from .compile import int32_words
from .kept_calls import ALIGNED, KeptCalls, Known
from .launch import compile_only_builds


@functools.cache
def chosen_kernel() -> Any:
    """The kernel."""
    from ..kernel.chosen import xkv_translate

    return xkv_translate


CALLS = KeptCalls(
    chosen_kernel,
    (
        "src_ptr", "pos_ptr", "out_ptr", "to_req_ptr", "starts_ptr", "rows_ptr", "lens_ptr", "counts_ptr",
        "status_ptr",
    ),
    ("out_ptr", "counts_ptr"),
)  # fmt: skip


def run(build: ChosenTokens, known: Known | None = None, inputs: Sequence[Tensor | None] = ()) -> None:
    """Runs it: one launch on a GPU, the torch reference on a CPU. Does not sync; safe in a graph.

    Args:
        build: the checked translation.
        known: what keeps it for calls like it, if any.
        inputs: its tensors, as `CALLS` has them.
    """
    builds = compile_only_builds()
    if builds is not None:
        builds.append(build)
        return
    if build.num_tokens == 0:
        return
    if build.req_to_token.device.type == "cpu" and not compile.interpreted():
        reference.translate(build)
        return
    target = platform(build.req_to_token.device)
    tuning = dispatch.chosen_row(target, build.num_tokens, build.whole_rows)
    values, programs, settings = arguments(build), grid(build, tuning), config(build, tuning, target)
    launch = CALLS.prepare(
        build.req_to_token.get_device(), settings, options(build, tuning, target), programs, values
    )  # fmt: skip
    aligned = ("pos_ptr", "out_ptr") if settings.VEC_16B else ()
    CALLS.launch(launch, programs, values, known, inputs, aligned)


def warm(build: ChosenTokens) -> int:
    """Compiles and loads what translations like this one can need; returns how many kernels were not there.

    Whatever the number of query tokens, how positions and ids are aligned, and the dtypes of vectors.
    """
    before = compile.loaded()
    if build.req_to_token.is_cuda:
        target = platform(build.req_to_token.device)
        both = (False, True)
        for tokens, aligned, narrow in itertools.product(dispatch.chosen_sizes(target), both, both):
            tuning = dispatch.chosen_row(target, tokens, build.whole_rows)
            compile.compiled(
                build.req_to_token.get_device(), chosen_kernel(),
                config(build, tuning, target, aligned=aligned), options(build, tuning, target),
                arguments(build, narrow),
            )  # fmt: skip
    return compile.loaded() - before


def block_of(build: ChosenTokens, tuning: ChosenTuning) -> int:
    """Positions of a tile."""
    return min(tuning.block, 1 << max(build.k - 1, 15).bit_length())


def options(build: ChosenTokens, tuning: ChosenTuning, target: Platform) -> dict[str, Any]:
    """Returns Triton's launch options."""
    block = block_of(build, tuning)
    # no more than there are positions for
    least = min(tuning.min_warps, max(block // target.warp_size, 1))
    warps = max(tuning.num_warps * block // tuning.block, least)
    return {"num_warps": warps} | ({"launch_pdl": True} if _uses_pdl(tuning, target) else {})


def _uses_pdl(tuning: ChosenTuning, target: Platform) -> bool:
    return tuning.pdl_on_streams and target.supports_pdl and not compile.interpreted()


def grid(build: ChosenTokens, tuning: ChosenTuning) -> tuple[int, int, int]:
    """Returns the programs: of each query token one, or one for each of its tiles."""
    tiles = 1 if build.whole_rows else -(-build.k // block_of(build, tuning))
    return build.num_tokens, tiles, 1


def config(build: ChosenTokens, tuning: ChosenTuning, target: Platform, aligned: bool | None = None) -> Any:
    """Returns the kernel's `ChosenConfig`; the same object for equal fields.

    Args:
        build: the translation.
        tuning: its tuning row.
        target: the device.
        aligned: of one like it that is, or is not; None: of this one.
    """
    shard = build.shard
    ranks = (1, 1, False) if shard is None else (shard.size, shard.interleave, shard.source == "global")
    return _config(
        build.page_size, build.source_page_size, build.block_stride, build.unit, *ranks, build.compact,
        build.whole_rows, build.k <= block_of(build, tuning), build.k % block_of(build, tuning) == 0,
        block_of(build, tuning), tuning.batch_block,
        _has_vectors(build, tuning, target, _is_aligned(build) if aligned is None else aligned),
        "evict_first" if tuning.evict_first else "", _uses_pdl(tuning, target),
    )  # fmt: skip


def _has_vectors(build: ChosenTokens, tuning: ChosenTuning, target: Platform, aligned: bool) -> bool:
    """Whether lanes have several positions one after the other.

    Where ids are packed these change lanes between two barriers, which costs more than two loads save.
    """
    each_lane = block_of(build, tuning) // (options(build, tuning, target)["num_warps"] * target.warp_size)
    pays = each_lane > 2 and source_tokens(build.source_page_size, build.shard) >= tuning.vectors_from
    return aligned and (pays or not build.compact)


def _is_aligned(build: ChosenTokens) -> bool:
    """Whether each query token's positions and ids begin at a multiple of 16 bytes, and end so."""
    return build.k % (ALIGNED // 4) == 0 and all(
        x.data_ptr() % ALIGNED == 0 and x.stride(0) * x.element_size() % ALIGNED == 0
        for x in (build.positions, build.out)
    )


@functools.cache
def _config(*fields: Any) -> Any:
    from ..kernel.chosen_args import ChosenConfig

    return ChosenConfig(*fields)


def arguments(build: ChosenTokens, narrow: bool | None = None) -> list[Any]:
    """Returns the kernel's arguments in order, without the constexpr.

    Args:
        build: the translation.
        narrow: of one like it whose vectors are all int32, which have no strides, or are not; None: of this
            one. A fifth of the instructions is saved, of a kernel that runs in every layer.
    """
    source = build.req_to_token
    vectors = {
        "to_req": build.token_to_req, "starts": build.query_start_loc, "rows": build.req_pool_indices,
        "lens": build.seq_lens,
    }  # fmt: skip
    if narrow is None:
        narrow = all(x is None or x.dtype is torch.int32 for x in vectors.values())
    words = {key: value for name, x in vectors.items() for key, value in int32_words(name, x).items()}
    if narrow:
        words |= dict.fromkeys([f"{name}_stride" for name in vectors])
    values = {
        "num_tokens": build.num_tokens, "k": build.k, "pos_ptr": build.positions,
        "pos_stride": build.positions.stride(0), "src_ptr": source, "src_stride": source.stride(0),
        "src_rows": source.shape[0], "src_tokens": build.max_tokens, "batch": build.batch,
        "out_ptr": build.out, "out_stride": build.out.stride(0), "missing_id": build.missing_id,
        **words,
        "shard_rank": None if build.shard is None else int(build.shard.rank), "counts_ptr": build.counts,
        "dummy": build.dummy, "status_ptr": build.status,
    }  # fmt: skip
    return [values[name] for name in chosen_kernel().arg_names[:-1]]
