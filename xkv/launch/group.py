"""Launches several builds of one batch as one: the parts of a group (`xkv.kernel.group`).

What does not change from step to step, sources, outputs and options, is written to device memory once. All
launches of a signature take one kernel, whatever the batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import arguments
from ..params import SLOTS, Build
from ..platforms.detect import Platform
from . import compile
from .grid import group_grid, part_schedule
from .launch import KernelLaunch


class GroupPart(NamedTuple):
    """One part of a group.

    Attributes:
        table: a build of one view.
        slots: the slots beside it, or None.
        is_window: whether ``window_kv_start`` bounds its rows, not ``kv_start``.
    """

    table: Build
    slots: Build | None
    is_window: bool


class GroupInputs(NamedTuple):
    """What a launch takes, the same for every part; `MetadataBuilder.build` describes it."""

    req_pool_indices: Tensor
    seq_lens: Tensor
    seq_lens_delta: int | Tensor
    query_lens: int | Tensor
    query_lens_sign: int
    kv_start: Tensor | None
    window_kv_start: Tensor | None
    positions: Tensor | None
    query_start_loc: Tensor | None


def sort_parts(parts: Sequence[GroupPart], max_batch: int, target: Platform) -> list[int]:
    """Returns an order of the parts in which those that are compiled to the same code are neighbours."""
    keys = [
        (
            part.is_window,
            *(str(_kind_of(build, part, max_batch, target)) for build in (part.table, part.slots)),
        )
        for part in parts
    ]
    return sorted(range(len(parts)), key=keys.__getitem__)


def part_words(parts: Sequence[GroupPart]) -> Tensor:
    """Returns what each part has of its own, those of the slots behind, for the device to read. May sync.

    ``[2 * parts, fields]`` int64.
    """
    builds = [*(part.table for part in parts), *(part.slots or part.table for part in parts)]
    rows = [[x.data_ptr() if isinstance(x, Tensor) else x or 0 for x in _values(build)] for build in builds]
    return torch.tensor(rows, dtype=torch.int64, device=builds[0].req_to_token.device)


class GroupKernel:
    """The kernel of a group's launches of one signature.

    Args:
        parts: in the order of ``words``, with inputs of this signature.
        words: `part_words` of the same sources, outputs and options.
        max_batch: requests, at most.
        target: the device.

    Attributes:
        config: the kernel's constexpr.
        options: Triton's.
    """

    def __init__(
        self, parts: Sequence[GroupPart], words: Tensor, max_batch: int, target: Platform
    ) -> None:  # fmt: skip
        from ..kernel.parts import Parts

        self._target, self._words = target, words
        self._topk = max(part.table.draft.topk if part.table.draft else 1 for part in parts)
        self._device = parts[0].table.req_to_token.get_device()
        self._tables = [part_schedule(part.table, target, max_batch) for part in parts]
        self._slots = [
            part_schedule(part.slots, target, max_batch) for part in parts if part.slots is not None
        ]
        self.config = Parts(
            [_kind_of(part.table, part, max_batch, target) for part in parts],
            [_kind_of(part.slots, part, max_batch, target) for part in parts],
        )
        row = max((x.tuning for x in (*self._tables, *self._slots)), key=lambda row: row.num_warps)
        self.options = compile.options(row, self._target)

    def grid(self, batch: int) -> tuple[tuple[int, int, int], int]:
        """Returns the grid for a batch, and how many of its last rows write slots."""
        return group_grid(batch * self._topk, self._tables, self._slots, self._target)

    def prepare(self, inputs: GroupInputs) -> KernelLaunch:
        """Compiles and loads the kernel, if it is not, and returns the launch with these inputs."""
        return KernelLaunch(
            compile.group_kernel(), self._device, self.config, self.options,
            self.grid(inputs.seq_lens.shape[0])[0], self.arguments(inputs),
        )  # fmt: skip

    def run(self, launch: KernelLaunch, builds: Sequence[Build], inputs: GroupInputs) -> None:
        """Launches with these inputs, which ``builds`` have, through Triton where it has to be."""
        launch.run_tensors(self.grid(inputs.seq_lens.shape[0])[0], self.arguments(inputs))

    def arguments(self, inputs: GroupInputs) -> list[Any]:
        """Returns the kernel's arguments in order, without the constexpr."""
        slot_rows = self.grid(inputs.seq_lens.shape[0])[1]
        values = named_arguments(inputs) | {"words_ptr": self._words, "slot_rows": slot_rows}
        return [values[name] for name in compile.group_kernel().arg_names[:-1]]


def named_arguments(inputs: GroupInputs) -> dict[str, Any]:
    """Returns the kernel's arguments by name, without the parts' own and the constexpr."""
    rows, lens, delta, query, sign, start, window_start, positions, sums = inputs
    words = compile.int32_words
    (deltas, delta), (queries, query) = arguments.tensor_and_int(delta), arguments.tensor_and_int(query)
    return {
        "batch": lens.shape[0], **words("rows", rows), **words("lens", lens),
        "delta": delta, **words("delta", deltas),
        **words("query", queries), "query_sign": None if queries is None else sign,
        "query_len": query if queries is None and sums is None else None,
        **words("positions", positions), "positions_len": None if positions is None else positions.shape[0],
        "query_start_ptr": sums, **words("start", start), **words("window_start", window_start),
    }  # fmt: skip


def fill(part: GroupPart, inputs: GroupInputs) -> list[Build]:
    """Puts the inputs of a launch into a part's builds, and returns them."""
    rows, lens, delta, query, sign, start, window_start, positions, sums = inputs
    builds = [build for build in (part.table, part.slots) if build is not None]
    for build in builds:
        build.req_pool_indices, build.seq_lens, build.query_sign = rows, lens, sign
        build.seq_lens_delta_rows, build.seq_lens_delta = arguments.tensor_and_int(delta)
        build.query_lens, build.query_len = arguments.tensor_and_int(query)
        view = build.views[0]
        if build.form == SLOTS:
            build.positions, build.indptr_is_input, view.kv_indptr = positions, positions is not None, sums
        else:
            build.query_start_loc, view.kv_start = sums, window_start if part.is_window else start
    return builds


def own_arguments(build: Build) -> dict[str, Any]:
    """What a build may have of its own, by name: tensors, ints, and None for what it has not."""
    (view,) = build.views
    return compile.named_arguments(build) | {
        "window": view.window,  # it grows with the query tokens, which the launch knows
        "indptr_ptr": None if build.indptr_is_input else view.kv_indptr,
        "query_seqlens_ptr": view.query_seqlens, "sink": view.sink,
        "draft_step": None if build.draft is None else build.draft.step,
    }  # fmt: skip


def _values(build: Build) -> list[Any]:
    """The same, in the order of the words."""
    from ..kernel.parts import PART_FIELDS

    values = own_arguments(build)
    return [values[name] for name in PART_FIELDS]


def _kind_of(build: Build | None, part: GroupPart, max_batch: int, target: Platform) -> Any:
    """What the kernel is compiled for, of one of a part's builds; None: of none."""
    from ..kernel.parts import PART_FIELDS, PartKind

    if build is None:
        return None
    schedule = part_schedule(build, target, max_batch)
    config = compile.config(build, schedule.tuning, schedule, target)
    types: list[str | None] = []
    for name, x in zip(PART_FIELDS, _values(build), strict=True):
        wide = isinstance(x, Tensor) and x.dtype is torch.int64
        types.append(None if x is None else "int64" if wide or name.endswith("_stride") else "int32")
    has_start = build.views[0].kv_start is not None
    start = ("window_start" if part.is_window else "start") if has_start else ""
    return PartKind(config, tuple(types), start, schedule.tuning.balanced_own_tiles)
