"""Selects the kernel variant of a build, and compiles and loads it once through Triton's `JITFunction`.

Nothing is launched here, so that every variant can be compiled before serving begins.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, switches
from ..params import INT32_MAX, MAX_BATCH, SLOTS, TABLE, Build, View, second_view
from ..platforms.detect import Platform, platform
from ..platforms.tuning import Tuning
from .grid import PartSchedule, Schedule, make_schedule, with_balance
from .triton_launcher import LOADING, Call, record

_compiled: dict[tuple[Any, ...], Call | None] = {}


def compiled(
    device: int, kernel: Any, config_: Any, options_: dict[str, Any], tensors: list[Any]
) -> Call | None:
    """Compiles and loads a kernel, once, without a launch; returns Triton's call of the driver's launcher."""
    key = (device, config_, *options_.values(), *map(_argument_signature, tensors))
    if key not in _compiled:
        with LOADING, torch.cuda.device(device):
            if key not in _compiled:
                loaded = kernel.warmup(*tensors, config_, grid=(1,), **options_)
                _compiled[key] = record(loaded, len(tensors) + 1)
    return _compiled[key]


def loaded() -> int:
    """The number of kernels that were loaded."""
    return len(_compiled)


def warm(build: Build, max_batch: int | None) -> int:
    """Compiles and loads every variant that builds of this signature can need, whatever their lengths.

    Launches nothing. Does nothing on a CPU.

    Args:
        build: one of them.
        max_batch: requests: for batches up to it, at the build's width. None: for any batch and width.

    Returns:
        The number of kernels that were newly loaded.
    """
    before = loaded()
    device = build.req_to_token.get_device()
    if device >= 0:
        target = platform(build.req_to_token.device)
        for tuning, schedule in launch_variants(build, target, max_batch):
            fields = config(build, tuning, schedule, target)
            args = arguments(build, schedule)
            compiled(device, xkv_kernel(), fields, options(tuning, target), args)
    return loaded() - before


def launch_variants(
    build: Build, target: Platform, max_batch: int | None
) -> Iterator[tuple[Tuning, Schedule]]:
    """Yields the tuning rows and schedules that builds of this signature can have."""
    pattern, smallest = build.access_pattern, 1
    for tuning in dispatch.rows_of(target)[1]:
        if tuning.access_pattern != pattern:
            continue
        largest = min(tuning.max_batch or MAX_BATCH, max_batch or MAX_BATCH)
        if smallest > largest:
            return
        # what the batch size decides changes at most once between the smallest and the largest
        for batch in (smallest, largest):
            schedule = make_schedule(build, tuning, target, batch)
            yield tuning, schedule
            # without balance in any case: a later build's inputs may be in host memory
            widths_differ = max_batch is None and not build.tiles_of_tokens  # tiles of tokens have no balance
            for balance in (False, True) if widths_differ else (False,):
                yield tuning, with_balance(schedule, build, tuning, balance)
        smallest = largest + 1


def _argument_signature(x: Any) -> Any:
    """What of a kernel's argument selects the compiled kernel."""
    if x is None:
        return None
    return x > INT32_MAX if type(x) is int else x.dtype


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 runs the kernel on the CPU."""
    return switches.on("TRITON_INTERPRET")


@functools.cache
def xkv_kernel() -> Any:
    """The kernel. Imported late: importing Triton takes a second."""
    from ..kernel.entry import xkv_build

    return xkv_build


@functools.cache
def group_kernel() -> Any:
    """The kernel of a group."""
    from ..kernel.group import xkv_build_group

    return xkv_build_group


def config(build: Build, tuning: Tuning, schedule: Schedule | PartSchedule, target: Platform) -> Any:
    """Returns the kernel's `Config`; the same object for equal fields."""
    shard, draft = build.shard, build.draft
    return _config(
        build.page_size, build.source_page_size, build.map_page_size, build.form,
        build.pad_value is not None, schedule.num_page_per_block, tuning.batch_block, schedule.balance,
        schedule.int64_tiles, uses_pdl(tuning, target),
        target.vendor == "hip", build.indptr_is_input, vec_16b(build, target),
        # set only if they make a difference, so that other builds share a kernel
        build.window_is_prefix_only and any(view.window is not None for view in build.views),
        build.starts_are_aligned and any(view.kv_start is not None for view in build.views),
        *((1, 1, False) if shard is None else (shard.size, shard.interleave, shard.source == "global")),
        build.lens_are_local and shard is not None, build.writes_ids, build.clamps_tail,
        build.views[0].is_absolute, build.views[0].sink is not None,
        *((0, 0, 1) if draft is None else (draft.topk, draft.num_steps, draft.page_size)),
        build.sums_fit, tuning.tiles_per_program if build.extends else 0,
        schedule.sums_in_column,
    )  # fmt: skip


def vec_16b(build: Build, target: Platform) -> bool:
    """Whether each lane loads and stores 16 bytes of contiguous entries, if the tile's addresses allow it.

    Not on NVIDIA with a status word: the check of each entry then needs a layout conversion through shared
    memory for every tile (256 x 4K tokens, CSR, on an H100: 10.0 us instead of 7.6). Nor for CSR there, whose
    rows begin at any entry: an unaligned vector takes four accesses (256 x ~4K: 7.9 us instead of 6.7).
    """
    contiguous = build.page_size == build.source_page_size
    if build.shard is not None and (build.form == SLOTS or build.shard.source == "global"):
        contiguous = False
    has_sinks = build.views[0].sink is not None
    if build.tiles_of_tokens or has_sinks or build.draft or build.clamps_tail or build.extends:
        contiguous = False
    return contiguous and (target.vendor != "cuda" or (build.form == TABLE and build.status is None))


def options(tuning: Tuning, target: Platform) -> dict[str, Any]:
    """Returns Triton's launch options."""
    # AMD's back end has no launch_pdl
    return {"num_warps": tuning.num_warps} | ({"launch_pdl": True} if uses_pdl(tuning, target) else {})


def uses_pdl(tuning: Tuning, target: Platform) -> bool:
    """Whether launches on a stream use programmatic dependent launch; never in the interpreter."""
    return tuning.pdl_on_streams and target.supports_pdl and not interpreted()


@functools.cache
def _config(*fields: Any) -> Any:
    from ..kernel.entry import Config

    return Config(*fields)


def arguments(build: Build, schedule: Schedule) -> list[Any]:
    """Returns the kernel's arguments in order, without the constexpr."""
    values = named_arguments(build)
    values["own_tiles"] = schedule.own_tiles
    return [values[name] for name in xkv_kernel().arg_names[:-1]]


def named_arguments(build: Build) -> dict[str, Any]:
    """Returns the kernel's arguments by name, without ``own_tiles`` and the constexpr.

    An unused argument is None, so that it is no argument of the compiled kernel: a launch costs less,
    and the constant bank that every program reads first stays small.
    """
    source, padded, queries = build.req_to_token, build.pad_value is not None, build.query_lens
    given, translated = build.positions, build.window_out_cache_loc
    cu_q, record = build.views[0].cu_seqlens_q, build.views[0].record
    last_tokens = build.form == SLOTS and given is None
    # a record's past is without the query tokens
    reads_query_len = last_tokens or cu_q is not None or record is not None
    first = _view_arguments(build, build.views[0])
    other = _view_arguments(build, build.views[1]) if len(build.views) == 2 else dict.fromkeys(first)
    wants_last = any(view.kv_last_page_len is not None for view in build.views)
    return {
        "src_ptr": source, "src_stride": source.stride(0), "src_rows": source.shape[0],
        "src_tokens": build.max_tokens,
        **int32_words("rows", build.req_pool_indices), **int32_words("lens", build.seq_lens),
        "batch": build.batch,
        **int32_words("delta", build.seq_lens_delta_rows), "delta": build.seq_lens_delta,
        **int32_words("query", queries), "query_sign": None if queries is None else build.query_sign,
        "query_len": build.query_len if queries is None and reads_query_len else None,
        "shard_rank": None if build.shard is None else int(build.shard.rank),
        **int32_words("positions", given),
        "positions_len": None if given is None else given.shape[0],
        "max_position": build.max_position,
        "loc_ptr": build.out_cache_loc,
        "loc_len": None if build.out_cache_loc is None else build.translated_slots,
        "loc_out_ptr": build.window_out_cache_loc,
        "loc_out_len": None if translated is None else translated.shape[0],
        **first, "cu_q_ptr": cu_q,
        **{second_view(name): value for name, value in other.items()},
        "min_len": build.min_seq_len or None,
        "min_last": build.min_last_page_len if wants_last else None,
        "pad_multiple": (build.pad_to_multiple_of or INT32_MAX) if padded else None,
        "pad_value": build.pad_value, "missing_id": build.missing_id,
        "report_missing": None if build.status is None else int(build.report_missing),
        "status_ptr": build.status,
    }  # fmt: skip


def int32_words(name: str, x: Tensor | None) -> dict[str, Any]:
    """A vector of int32 or int64 as int32, and its stride: 1 or 2. One kernel reads both, without a copy."""
    stride = 1
    if x is not None and x.dtype is not torch.int32:
        # a vector of one entry may have any stride
        x, stride = x.as_strided(x.shape, (1,)).view(torch.int32), 2
    return {f"{name}_ptr": x, f"{name}_stride": None if x is None else stride}


def _view_arguments(build: Build, view: View) -> dict[str, Any]:
    token_map, page_map = view.token_map, view.page_map
    return {
        **int32_words("start", view.kv_start), "window": build.window_tokens(view),
        "token_map_ptr": token_map, "token_map_len": None if token_map is None else token_map.shape[0],
        "page_map_ptr": page_map, "page_map_len": None if page_map is None else page_map.shape[0],
        "out_ptr": view.out if build.writes_ids else None,
        "out_stride": view.out.stride(0) if build.form == TABLE and build.writes_ids else 0,
        "capacity": view.capacity(build.form) if build.writes_ids else 0,
        "seqlens_ptr": view.cache_seqlens, "cu_k_ptr": view.cu_seqlens_k, "indptr_ptr": view.kv_indptr,
        "last_ptr": view.kv_last_page_len, "offset_ptr": view.kv_start_offset, "empty_ptr": view.empty_rows,
        "record_ptr": view.record,
    }  # fmt: skip


@functools.cache
def positions() -> dict[str, int]:
    """The index of each of the kernel's arguments, relative to `CompiledLaunch.first`."""
    return {name: n for n, name in enumerate(xkv_kernel().arg_names)}
