"""Launches a checked translation of chosen positions."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import dispatch, reference
from ..chosen import ChosenTokens
from ..platforms.detect import Platform, platform
from ..platforms.tuning import ChosenTuning
from . import compile
from .compile import int32_words
from .guards import addresses, make_guard, refuse
from .launch import KernelLaunch, compile_only_builds
from .triton_launcher import launch_hooks_active

_ALIGNED = 16  # bytes
_MAX_KNOWN = 1024
_POSITIONS, _OUT = 1, 2  # among the inputs of a call
# the kernel's names of those
_INPUTS = (
    "src_ptr", "pos_ptr", "out_ptr", "to_req_ptr", "starts_ptr", "rows_ptr", "lens_ptr", "counts_ptr",
    "status_ptr",
)  # fmt: skip
_launches: dict[Any, KernelLaunch] = {}


@functools.cache
def chosen_kernel() -> Any:
    """The kernel."""
    from ..kernel.chosen import xkv_translate

    return xkv_translate


class Known:
    """The last call with the same options and the same tensors present, to be made again with others.

    It keeps no tensor alive.
    """

    def __init__(self) -> None:
        self._guard: Callable[..., bool] = refuse
        self._launch: KernelLaunch | None = None
        self._grid = (0, 0, 0)
        self._places: list[int] = []
        self._aligned = False

    def launch(self, inputs: Sequence[Tensor | None]) -> bool:
        """Launches a call of the same sizes; False if it is another, or needs the full checks."""
        try:
            tensors = [x for x in inputs if x is not None]
            pointers = addresses(tensors)
        except (AttributeError, RuntimeError):
            return False  # no tensors: the full checks name them
        launch = self._launch
        if launch is None or 0 in pointers or not self._guard(*tensors) or launch_hooks_active():
            return False
        if self._aligned and (pointers[_POSITIONS] | pointers[_OUT]) % _ALIGNED:
            return False
        call, _ = launch.make_call(self._places, pointers, self._grid)
        launch.launch(call)
        return True

    def keep(
        self, build: ChosenTokens, launch: KernelLaunch, inputs: Sequence[Tensor | None],
        programs: tuple[int, int, int],
    ) -> None:  # fmt: skip
        """Remembers a call that was launched just now."""
        if not launch.fast_path:
            return
        names, args = list(chosen_kernel().arg_names), arguments(build)
        args = [x.data_ptr() if isinstance(x, Tensor) else x for x in args]
        # of its own: what a launch has is that of the call that it was made for
        self._launch = own = copy.copy(launch)
        own.call, own.args = launch.make_call(range(launch.first, launch.first + len(args)), args, programs)
        self._places = [
            launch.first + names.index(name)
            for name, x in zip(_INPUTS, inputs, strict=True) if x is not None
        ]  # fmt: skip
        self._aligned, self._grid = _is_aligned(build), programs
        self._guard = make_guard([x for x in inputs if x is not None], sizes=True)  # last: it lets calls in


@functools.lru_cache(maxsize=_MAX_KNOWN)
def _known(options: Any, present: tuple[bool, ...]) -> Known:
    return Known()


def lookup(inputs: Sequence[Any], options: tuple[Any, ...]) -> Known | None:
    """Returns what is known of calls with these options; None if one cannot be hashed.

    Args:
        inputs: a tensor or None for each of `_INPUTS`.
        options: everything else.
    """
    try:
        # an int and a bool are equal, but not the same option
        return _known((options, tuple(map(type, options))), tuple([x is not None for x in inputs]))
    except TypeError:
        return None


def forget() -> None:
    """Removes every known call."""
    _known.cache_clear()


def run(build: ChosenTokens, known: Known | None = None, inputs: Sequence[Tensor | None] = ()) -> None:
    """Runs it: one launch on a GPU, the torch reference on a CPU. Does not sync; safe in a graph.

    Args:
        build: the checked translation.
        known: what keeps it for calls like it, if any.
        inputs: its tensors, as in `lookup`.
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
    launch, tuning = prepare(build, target)
    values, programs = arguments(build), grid(build, tuning)
    if launch.fast_path and not launch_hooks_active():
        pointers = [x.data_ptr() if isinstance(x, Tensor) else x for x in values]
        call, _ = launch.make_call(range(launch.first, launch.first + len(values)), pointers, programs)
        launch.launch(call)
        if known is not None:
            known.keep(build, launch, inputs, programs)
    else:
        launch.run_tensors(programs, values)


def prepare(build: ChosenTokens, target: Platform) -> tuple[KernelLaunch, ChosenTuning]:
    """Compiles and loads the kernel, if it is not, and returns its launch and its tuning row."""
    tuning = dispatch.chosen_row(target, build.num_tokens, build.whole_rows)
    settings, device = config(build, tuning, target), build.req_to_token.get_device()
    values = arguments(build)
    types = [x.dtype if isinstance(x, Tensor) else x is None for x in values]
    how = options(build, tuning, target)
    key = (device, settings, *how.values(), *types)
    launch = _launches.get(key)
    if launch is None:
        launch = _launches[key] = KernelLaunch(
            chosen_kernel(), device, settings, how, grid(build, tuning), values
        )
    return launch, tuning


def warm(build: ChosenTokens) -> int:
    """Compiles and loads what translations like this one can need; returns how many kernels were not there.

    Whatever the number of query tokens, and how positions and ids are aligned.
    """
    before = compile.loaded()
    if build.req_to_token.is_cuda:
        target = platform(build.req_to_token.device)
        for tokens in dispatch.chosen_sizes(target):
            for aligned in (False, True):
                tuning = dispatch.chosen_row(target, tokens, build.whole_rows)
                compile.compiled(
                    build.req_to_token.get_device(), chosen_kernel(),
                    config(build, tuning, target, aligned=aligned), options(build, tuning, target),
                    arguments(build),
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
        build.whole_rows, build.k <= block_of(build, tuning), block_of(build, tuning), tuning.batch_block,
        _is_aligned(build) if aligned is None else aligned,
        _uses_pdl(tuning, target),
    )  # fmt: skip


def _is_aligned(build: ChosenTokens) -> bool:
    """Whether each query token's positions and ids begin at a multiple of 16 bytes, and end so."""
    return build.k % (_ALIGNED // 4) == 0 and all(
        x.data_ptr() % _ALIGNED == 0 and x.stride(0) * x.element_size() % _ALIGNED == 0
        for x in (build.positions, build.out)
    )


@functools.cache
def _config(*fields: Any) -> Any:
    from ..kernel.chosen_args import ChosenConfig

    return ChosenConfig(*fields)


def arguments(build: ChosenTokens) -> list[Any]:
    """Returns the kernel's arguments in order, without the constexpr."""
    source = build.req_to_token
    values = {
        "num_tokens": build.num_tokens, "k": build.k, "pos_ptr": build.positions,
        "pos_stride": build.positions.stride(0), "src_ptr": source, "src_stride": source.stride(0),
        "src_rows": source.shape[0], "src_tokens": build.max_tokens, "batch": build.batch,
        "out_ptr": build.out, "out_stride": build.out.stride(0), "missing_id": build.missing_id,
        **int32_words("to_req", build.token_to_req), **int32_words("starts", build.query_start_loc),
        **int32_words("rows", build.req_pool_indices), **int32_words("lens", build.seq_lens),
        "shard_rank": None if build.shard is None else int(build.shard.rank), "counts_ptr": build.counts,
        "dummy": build.dummy, "status_ptr": build.status,
    }  # fmt: skip
    return [values[name] for name in chosen_kernel().arg_names[:-1]]
