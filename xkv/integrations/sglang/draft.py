"""SGLang's kernels for all steps of draft decoding, as one launch of a group: a part for each step.

The functions are those of `page_tables`: they take a kernel's grid and arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import reference
from ...draft import MAX_BRANCHES, DraftTree
from ...launch import compile, verify
from ...launch.cache import fits_int32
from ...launch.group import GroupInputs, GroupKernel, GroupPart, fill, part_words, sort_parts
from ...launch.guards import addresses
from ...launch.launch import KernelLaunch
from ...launch.triton_launcher import launch_hooks_active
from ...metadata.group_inputs import SLOT_ROWS, WORDS, kernel_arguments
from ...params import CAPACITY_MAX, CSR, MAX_BATCH, ROW_MAX, SOURCE_PAGE_MAX, Build, View
from ...platforms.detect import platform
from ..repeats import Repeats
from .tensors import long_enough, source, source_sizes, vector

_INTS = (torch.int32, torch.int64)
# To prepare the launches of a set of buffers takes longer than the original does: it is done for those that
# come again, as a graph's do, and never undone, as graphs and remembered calls have the addresses.
PREPARED_AT = 2  # calls
_MOST, _MOST_SEEN = 64, 1024  # sets of buffers


class Tensors(NamedTuple):
    """What a call gives; ``v2p``: physical pages by page, or None."""

    rows: Tensor
    lens: Tensor
    ids: Tensor
    kv_indices: Tensor
    kv_indptr: Tensor
    v2p: Tensor | None


class Numbers(NamedTuple):
    """The numbers of a call: a window and sinks of 0 are none; ``entry``: tokens of a source entry."""

    batch: int
    topk: int
    num_steps: int
    stride: int
    indices_stride: int
    indptr_stride: int
    page_size: int
    window: int
    sink: int
    entry: int
    window_is_prefix_only: bool


class _Launches(NamedTuple):
    """The launches of one set of buffers.

    Attributes:
        words: what each step has of its own, on the device.
        kernel: None on a CPU.
        launch: likewise.
        parts: the steps.
    """

    words: Tensor | None
    kernel: GroupKernel | None
    launch: KernelLaunch | None
    parts: list[GroupPart]


_launches: dict[Any, _Launches] = {}
_seen: dict[Any, int] = {}  # calls, by set of buffers
_repeats = Repeats()


def clear() -> None:
    """Forgets every call; not for where a graph may have one."""
    _repeats.clear()
    _launches.clear()
    _seen.clear()


def _run(t: Tensors, n: Numbers) -> bool:
    try:
        tensors = [x for x in t if x is not None]
        pointers = addresses(tensors)
        key = (n, t.v2p is None, *pointers)
        if _repeats.launch(key, tensors):
            return True
        if not _fits(t, n):
            return False
    except (AttributeError, RuntimeError):
        return False  # no tensors, or such as have no strides
    if n.batch == 0:
        return True
    inputs = GroupInputs(
        vector(t.rows, n.batch), vector(t.lens, n.batch), 0, 1, 0, None, None, None, None
    )  # fmt: skip
    sizes = [(x.shape, x.dtype) for x in tensors[2:]]
    known = (n[1:], *pointers[2:], *sizes, t.rows.dtype, t.lens.dtype)
    found = _launches.get(known)
    if found is None:
        if not _comes_again(known) or verify.capturing(t.ids):  # in which nothing can be put on the device
            return False
        found = _launches[known] = _prepare(t, n, inputs)
    if found.kernel is None or found.launch is None:
        for build in _builds(found, inputs):
            reference.run(build)
        return True
    if not found.launch.fast_path or launch_hooks_active():
        found.kernel.run(found.launch, _builds(found, inputs), inputs)
        return True
    grid, slot_rows = found.kernel.grid(n.batch)
    values = kernel_arguments(inputs)
    first, words = found.launch.first, found.launch.args[found.launch.first + WORDS]
    values[SLOT_ROWS], values[WORDS] = slot_rows, words
    call, _ = found.launch.make_call(range(first, first + len(values)), values, grid)
    found.launch.launch(call)
    _repeats.add(key, tensors, call, found.launch)
    return True


def _comes_again(known: Any) -> bool:
    """Whether to prepare the launches of a set of buffers."""
    if len(_launches) >= _MOST:
        return False
    if len(_seen) >= _MOST_SEEN:
        _seen.clear()
    _seen[known] = _seen.get(known, 0) + 1
    return _seen[known] >= PREPARED_AT


def _builds(found: _Launches, inputs: GroupInputs) -> list[Build]:
    return [build for part in found.parts for build in fill(part, inputs)]


def _fits(t: Tensors, n: Numbers) -> bool:
    """Whether xkv serves the call: its buffers have room for what the numbers say."""
    found = source_sizes(t.ids, n.stride, n.entry) if 0 < n.entry <= SOURCE_PAGE_MAX else None
    rows = n.batch * n.topk
    tensors = [x for x in t if x is not None]
    return (
        found is not None
        and n.batch >= 0
        and 0 < n.topk <= MAX_BRANCHES
        and 0 < n.num_steps <= MAX_BRANCHES
        and rows <= MAX_BATCH
        and n.page_size > 0
        and n.page_size & (n.page_size - 1) == 0
        and 0 <= n.window <= ROW_MAX
        and 0 <= n.sink <= ROW_MAX
        and rows < n.indptr_stride
        and n.indices_stride > 0
        and fits_int32(n.indices_stride, n.indptr_stride)
        and long_enough(n.batch, t.rows, t.lens)
        and long_enough(n.num_steps * n.indices_stride, t.kv_indices)
        and long_enough((n.num_steps - 1) * n.indptr_stride + rows + 1, t.kv_indptr)
        and t.kv_indptr.dtype is torch.int32
        and (t.v2p is None or (t.v2p.is_contiguous() and fits_int32(t.v2p.numel())))
        and all(x.dtype in _INTS and x.device == t.ids.device for x in tensors)
        and t.ids.device.type in ("cpu", "cuda")
    )


def _prepare(t: Tensors, n: Numbers, inputs: GroupInputs) -> _Launches:
    """Compiles and loads the launch, and puts what each step has of its own on the device. Syncs."""
    max_batch = min((n.indptr_stride - 1) // n.topk, MAX_BATCH // n.topk)
    parts = [GroupPart(_step(t, n, step, max_batch, inputs), None, False) for step in range(n.num_steps)]
    if t.ids.device.type == "cpu" and not compile.interpreted():
        return _Launches(None, None, None, parts)
    target = platform(t.ids.device)
    parts = [parts[i] for i in sort_parts(parts, max_batch, target)]
    words = part_words(parts)
    kernel = GroupKernel(parts, words, max_batch, target)
    return _Launches(words, kernel, kernel.prepare(inputs), parts)


def _step(t: Tensors, n: Numbers, step: int, max_batch: int, inputs: GroupInputs) -> Build:
    """The build of the rows that show ``step + 1`` draft tokens."""
    width = min(n.indices_stride, CAPACITY_MAX)
    indices = t.kv_indices.as_strided((width,), (1,), _at(t.kv_indices, step, n.indices_stride))
    room = t.kv_indptr.numel() - step * n.indptr_stride
    indptr = t.kv_indptr.as_strided(
        (min(max_batch * n.topk + 1, room),), (1,), _at(t.kv_indptr, step, n.indptr_stride)
    )  # fmt: skip
    view = View(
        indices, kv_indptr=indptr, window=n.window or None, sink=n.sink or None if n.window else None,
        page_map=None if t.v2p is None else t.v2p.view(-1),
    )  # fmt: skip
    return Build(
        source(t.ids, n.stride), inputs.req_pool_indices, inputs.seq_lens, CSR, 1, n.entry, n.page_size,
        (view,), window_is_prefix_only=n.window_is_prefix_only, report_missing=False,
        missing_id=-1 if t.v2p is None else 0,
        draft=DraftTree(n.topk, n.num_steps, step + 1, n.page_size),
    )  # fmt: skip


def _at(x: Tensor, step: int, stride: int) -> int:
    return int(x.storage_offset()) + step * stride


def generate_draft_decode_kv_indices(
    grid: tuple[int, ...], req_pool_indices: Any, req_to_token: Any, paged_kernel_lens: Any, kv_indices: Any,
    kv_indptr: Any, positions: Any, row_stride: int, kv_indices_stride: int, kv_indptr_stride: int,
    bs_upper: int, iter_upper: int, num_tokens_upper: int, page_size: int, window_size: int = 0,
    sink_size: int = 0, NUM_STEPS: int = 0, ENTRY_PAGE_SIZE: int = 1, v2p: Any = None,
    TRANSLATE: bool = False, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR of each step: prefix and branch, of the prefix its first tokens and a window if asked."""
    return _run(
        Tensors(
            req_pool_indices, paged_kernel_lens, req_to_token, kv_indices, kv_indptr,
            v2p if TRANSLATE else None,
        ),
        Numbers(
            grid[1], grid[2], NUM_STEPS or grid[0], row_stride, kv_indices_stride, kv_indptr_stride,
            page_size, window_size, sink_size, ENTRY_PAGE_SIZE, True,
        ),
    )  # fmt: skip


def generate_draft_decode_window_kv_indices(
    grid: tuple[int, ...], req_pool_indices: Any, req_to_token: Any, paged_kernel_lens: Any,
    window_kv_indices: Any, window_kv_indptr: Any, positions: Any, row_stride: int, kv_indices_stride: int,
    kv_indptr_stride: int, bs_upper: int, iter_upper: int, num_tokens_upper: int, page_size: int, window: int,
    ENTRY_PAGE_SIZE: int = 1, v2p: Any = None, TRANSLATE: bool = False, **_: Any,
) -> bool:  # fmt: skip
    """Token CSR of each step, of a window that counts the branch too."""
    if window < 1:
        return False
    return _run(
        Tensors(
            req_pool_indices, paged_kernel_lens, req_to_token, window_kv_indices, window_kv_indptr,
            v2p if TRANSLATE else None,
        ),
        Numbers(
            grid[1], grid[2], grid[0], row_stride, kv_indices_stride, kv_indptr_stride, page_size, window, 0,
            ENTRY_PAGE_SIZE, False,
        ),
    )  # fmt: skip
