"""The launches of a group: all outputs of one or several builders that share a batch, in one launch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import arguments, reference, switches
from ..launch import compile, verify
from ..launch.group import GroupInputs, GroupKernel, GroupPart, fill, part_words, sort_parts
from ..launch.guards import make_guard
from ..launch.launch import KernelLaunch
from ..launch.triton_launcher import launch_hooks_active
from ..params import CAPACITY_MAX, SLOTS, Build, View
from ..platforms.detect import platform
from ..status import Status
from .buffers import Buffers, Metadata
from .config import BuilderConfig
from .group_inputs import SLOT_ROWS, WORDS, kernel_arguments, key_of, num_tokens, sizes_fit
from .step_cache import StepCache, make_build, used_view

_MAX_GRIDS = 4096  # that a group keeps: an engine has few batch sizes


class Member(NamedTuple):
    """One builder of a group: what it was made with, its buffers, where it reports, and its checks."""

    config: BuilderConfig
    buffers: Buffers
    status: Status
    steps: StepCache

    @property
    def topk(self) -> int:
        """Rows of the outputs for each request."""
        return 1 if self.config.draft is None else self.config.draft.topk


class _Signature(NamedTuple):
    """Launches with the same arguments present.

    Attributes:
        guard: checks that tensors have the dtypes, strides and device of the first launch's.
        parts: what is written, with the inputs of the last launch that was not compiled.
        kernel: the kernel's variant; None on a CPU.
        launch: its launch; likewise.
    """

    guard: Callable[..., bool]
    parts: list[GroupPart]
    kernel: GroupKernel | None
    launch: KernelLaunch | None


class GroupLaunches:
    """The launches of a group, by signature.

    Args:
        members: the builders.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._max_batch_size = min(member.config.max_batch_size for member in members)
        mappings = [x.config.slot_mapping for x in members if x.config.slot_mapping is not None]
        self._limits = self._max_batch_size, min((x.max_tokens for x in mappings), default=CAPACITY_MAX)
        source = members[0].config.req_to_token
        self._target = platform(source.device)
        self._on_cpu = source.device.type == "cpu" and not compile.interpreted()
        one = torch.ones(1, dtype=torch.int32, device=source.device)
        # with starts, so that it has the words of every signature
        parts = make_parts(members, GroupInputs(one, one, 0, 1, 0, one, one, None, None), False)
        self._order, self._words = list(range(len(parts))), None
        if not self._on_cpu:
            self._order = sort_parts(parts, self._max_batch_size, self._target)
            self._words = part_words([parts[n] for n in self._order])
        self._signatures: dict[Any, _Signature] = {}
        self._grids: dict[tuple[Any, int], tuple[tuple[int, int, int], int]] = {}
        self._check = switches.on("XKV_CHECK")

    def build(self, inputs: GroupInputs, extends: bool) -> list[Metadata]:
        """Writes everything: one launch, without a sync. Returns the metadata of each builder.

        Args:
            inputs: as the user gave them, unchecked.
            extends: whether only what is new in each row of a table is written.

        Raises:
            TypeError, ValueError: as in `MetadataBuilder.build`.
        """
        try:
            key = extends, key_of(inputs)
            known = self._signatures.get(key)
            tensors = [x for x in inputs if isinstance(x, Tensor)]
            values = kernel_arguments(inputs)
            usual = known is not None and known.guard(*tensors) and sizes_fit(inputs, self._limits)
        except (AttributeError, RuntimeError, TypeError):
            usual = False
        if not usual:
            inputs = self.check(inputs)
            key = extends, key_of(inputs)
            known = self._signatures.get(key) or self._prepare(key, inputs)
            values = kernel_arguments(inputs)
        assert known is not None
        launch, batch = known.launch, values[0]
        if (
            launch is None
            or known.kernel is None
            or self._check
            or not launch.fast_path
            or launch_hooks_active()
        ):
            self._run(known, inputs)
        else:
            found = self._grids.get((key, batch))
            if found is None:
                if len(self._grids) >= _MAX_GRIDS:
                    self._grids.clear()
                found = self._grids[key, batch] = known.kernel.grid(batch)
            grid, values[SLOT_ROWS] = found
            call, args, first = launch.call, launch.args, launch.first
            values[WORDS] = args[first + WORDS]
            args[first : first + len(values)] = values
            x, y, z = launch.grid_at
            call[x], call[y], call[z] = grid
            launch.launch(call)
        starts, window_starts = inputs.kv_start is not None, inputs.window_kv_start is not None
        tokens = num_tokens(inputs)
        known_sizes = starts, window_starts, None, tokens
        return [member.buffers.metadata(batch * member.topk, *known_sizes) for member in self._members]

    def check(self, inputs: GroupInputs) -> GroupInputs:
        """Checks the arguments of a build, of every builder of the group.

        Returns:
            The inputs, with subclasses of int as plain ints.

        Raises:
            TypeError, ValueError: as in `MetadataBuilder.build`.
        """
        rows, lens, delta, query, sign, start, window_start, positions, sums = inputs
        shared = rows, lens, delta, query, sign, start
        for member in self._members:
            own = window_start if len(member.buffers.views) == 2 else None
            checked = member.steps.check((*shared, own))
        if window_start is not None and all(len(member.buffers.views) == 1 for member in self._members):
            member.steps.check((*shared, window_start))  # which refuses it
        has_draft = any(member.config.draft is not None for member in self._members)
        if has_draft and (isinstance(query, Tensor) or positions is not None):
            raise ValueError("query_lens must be an int, without positions, with a draft, got tensors")
        source, batch = self._members[0].config.req_to_token, inputs.seq_lens.shape[0]
        if positions is not None or sums is not None:
            if inputs.query_lens_sign or not (type(inputs.query_lens) is int and inputs.query_lens == 1):
                raise ValueError("query_lens must be 1 and query_lens_sign 0 with positions, got others")
            arguments.given_positions(positions, sums, source, batch)
        tokens = num_tokens(inputs)
        for member in self._members:
            mapping = member.config.slot_mapping
            if mapping is not None and tokens is not None and tokens > mapping.max_tokens:
                raise ValueError(
                    f"query tokens must be at most max_tokens={mapping.max_tokens} of the slot mapping, got"
                    f" {tokens}"
                )
        return GroupInputs(*checked[:6], window_start, positions, sums)

    def warmup(self, *, ragged: bool, row_deltas: bool, chunks: bool, extends: bool) -> int:
        """As `MetadataBuilder.warmup`."""
        if self._words is None:
            return 0
        before = compile.loaded()
        one = torch.ones(1, dtype=torch.int32, device=self._words.device)
        sums = [torch.zeros(2, dtype=dtype, device=one.device) for dtype in (torch.int32, torch.int64)]
        has_window = any(len(member.buffers.views) == 2 for member in self._members)
        has_slots = any(member.config.slot_mapping is not None for member in self._members)
        queries: list[Any] = [(1, 0, None, None)]
        if ragged:
            queries.append((one, 0, None, None))
            queries += [(1, 0, one, each) for each in sums] if has_slots else []
        deltas: list[int | Tensor] = [0, one] if row_deltas else [0]
        starts = (None, one) if chunks else (None,)
        for delta, (query, sign, positions, each), start, window_start, extend in itertools.product(
            deltas, queries, starts, starts if has_window else (None,), {False, extends}
        ):
            inputs = GroupInputs(one, one, delta, query, sign, start, window_start, positions, each)
            self._prepare((extend, key_of(inputs)), inputs)
        return compile.loaded() - before

    def _prepare(self, key: tuple[bool, Any], inputs: GroupInputs) -> _Signature:
        """Compiles and loads the launch of a signature: whether it extends, and `key_of` its inputs."""
        made = make_parts(self._members, inputs, extends=key[0])
        parts = [made[n] for n in self._order]
        kernel = launch = None
        if self._words is not None:
            kernel = GroupKernel(parts, self._words, self._max_batch_size, self._target)
            launch = kernel.prepare(inputs)
        guard = make_guard([x for x in inputs if isinstance(x, Tensor)])
        found = self._signatures[key] = _Signature(guard, parts, kernel, launch)
        return found

    def _run(self, known: _Signature, inputs: GroupInputs) -> None:
        """On a CPU, in the interpreter, with XKV_CHECK=1, and while launch hooks are active."""
        builds = [build for part in known.parts for build in fill(part, inputs)]
        if self._check and not verify.capturing(inputs.seq_lens):
            verify.run_compared(builds, lambda: self._launch(known, builds, inputs))
            for member in self._members:
                member.status.check()
        else:
            self._launch(known, builds, inputs)

    def _launch(self, known: _Signature, builds: Sequence[Build], inputs: GroupInputs) -> None:
        kernel = known.kernel
        if kernel is None or known.launch is None:
            for build in builds:
                reference.run(build)
        else:
            kernel.run(known.launch, builds, inputs)


def make_parts(members: Sequence[Member], inputs: GroupInputs, extends: bool) -> list[GroupPart]:
    """Returns all that a launch of the group writes, with these inputs."""
    parts = []
    for config, buffers, status, _ in members:
        for n, view in enumerate(buffers.views):
            used = used_view(view, inputs.window_kv_start if n == 1 else inputs.kv_start)
            slots = None
            if n < len(buffers.slot_views):
                slots = _slots(config, buffers.slot_views[n], status, inputs)
            table = make_build(config, [used], status, inputs[:7], extends)
            parts.append(GroupPart(table, slots, n == 1))
    for part in parts:
        fill(part, inputs)
    return parts


def _slots(config: BuilderConfig, view: View, status: Status, inputs: GroupInputs) -> Build:
    mapping = config.slot_mapping
    assert mapping is not None
    return Build(
        config.req_to_token, inputs[0], inputs[1], SLOTS, 1, config.source_page_size, config.page_size,
        (replace(view),), max_seq_len=config.max_context_len, pad_value=mapping.pad_value,
        max_position=mapping.max_position, shard=config.shard, status=status.word,
    )  # fmt: skip
