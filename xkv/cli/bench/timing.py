"""Launches, device time and host time of something done again and again on a GPU.

The kernels at hand take 2 to 40 us, so that events around one launch would measure the host: device
times come from many launches in a row, each on other data, in a CUDA graph or queued on a stream.
"""

from __future__ import annotations

import functools
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Calls = Mapping[str, Callable[[T], object]]

# of up to 10 launches: more would fill the queue, and the host would wait for the GPU
_CALLS = 100
_FLUSH = 512 << 20  # bytes: more than any L2, and than the cache before an MI300's memory
MOST_REPLAYS = 5  # of one graph in one round: each time the fills are four times as many
_STREAM_FILLS = 16  # 3 ms: the host queues 24 pairs of launches in about 1 ms, and whole steps in a few
_ALONE = "the kernels before"  # among the names of calls
_COPY = 1 << 30  # bytes
_COPIES, _WARM_COPIES = 40, 5
# An engine has dozens. With up to three graphs of 48 nodes in a process, an H200's driver (580) launched each
# node in 1.18 us, with more in 1.52: without these, a process's first point was as much as 0.4 us faster.
_OTHER_GRAPHS, _OTHER_NODES = 8, 48


def launches(call: Callable[[T], object], one: T) -> int:
    """Counts the kernels, copies and fills of one call. Syncs."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call(one)
        torch.cuda.synchronize()
    # a GPU of either vendor is "CUDA" here
    return sum(event.device_type.name == "CUDA" for event in profile.events())


def capture(call: Callable[[T], object], inputs: Sequence[T]) -> Any:
    """Captures a CUDA graph of one call for each input; what they compile must be compiled. Syncs.

    Before the first one it captures others, and keeps them, as an engine does.
    """
    _other_graphs()
    return _capture(call, inputs)


@functools.cache
def _other_graphs() -> list[Any]:
    numbers = torch.zeros(1, dtype=torch.int64, device="cuda")
    numbers.add_(1)  # compiles or loads
    found = [_capture(lambda x: x.add_(1), [numbers] * _OTHER_NODES) for _ in range(_OTHER_GRAPHS)]
    for graph in found:
        graph.replay()
    return found


def _capture(call: Callable[[T], object], inputs: Sequence[T]) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in inputs:
            call(one)
    return graph


def in_place(
    calls: Calls[T],
    before: Callable[[T], object],
    inputs: Sequence[T],
    warm: Sequence[Tensor],
    rounds: int,
    cold: bool = True,
    stream: bool = False,
) -> dict[str, list[float]]:
    """Times calls on the GPU against each other where an engine has them: after a kernel that is not theirs.

    What counts is a graph of pairs, the kernel before and the call, less a graph of the kernels before alone.
    All these graphs are replayed once a round, in turn. From every round the same is taken, the median of the
    kernels alone over all rounds: the noise of a single replay of theirs would be added to every call's.

    Args:
        calls: by name, what issues one on the current stream; compiled, does not sync.
        before: issues the kernel before; it may compile at its first call.
        inputs: about 24, of the same shapes on other data; both are called with each.
        warm: small integer tensors that an engine has just written, and few: the host queues a read of
            each while L2 is being overwritten.
        rounds: timed replays of each graph.
        cold: whether L2 is overwritten before each replay, and then ``warm`` read; else the same graph is
            replayed before, so that L2 keeps what it leaves there.
        stream: issues the calls on the current stream instead of replaying a graph; needs ``cold``.

    Returns:
        By name, microseconds of one call in each round; noise may take them below 0. Syncs.
    """

    def pair(call: Callable[[T], object], one: T) -> None:
        before(one)
        call(one)

    work = {_ALONE: before} | {name: functools.partial(pair, call) for name, call in calls.items()}
    before(inputs[0])
    found = back_to_back(work, inputs, warm, rounds, cold, stream)
    alone = statistics.median(found.pop(_ALONE))
    return {name: [us - alone for us in times] for name, times in found.items()}


def back_to_back(
    calls: Calls[T],
    inputs: Sequence[T],
    warm: Sequence[Tensor],
    rounds: int,
    cold: bool = True,
    stream: bool = False,
) -> dict[str, list[float]]:
    """Times calls on the GPU, each after itself: what lets the next one begin early gains by it.

    Args:
        calls: as those of `in_place`, and so are the others.
        inputs: likewise.
        warm: likewise.
        rounds: likewise.
        cold: likewise.
        stream: likewise.

    Returns:
        By name, microseconds of one call in each round; replays take turns, and the GPU is kept busy until
        one is queued: else the host's time to queue it would be measured. Syncs.
    """
    if stream and not cold:
        raise ValueError("calls on a stream are queued while L2 is being overwritten: cold must be True")
    play = {
        name: functools.partial(_issue, call, inputs) if stream else capture(call, inputs).replay
        for name, call in calls.items()
    }
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    flush = torch.empty(_FLUSH if cold else 0, dtype=torch.uint8, device=warm[0].device)
    for replay in play.values():
        replay()  # the first replay of a graph also uploads it
    copies = [torch.empty_like(x) for x in warm]
    for _ in range(rounds):
        for name, replay in play.items():
            fills = (_STREAM_FILLS if stream else 1) if cold else 4
            for _ in range(MOST_REPLAYS):
                for _ in range(fills):
                    if cold:
                        flush.zero_()
                    else:
                        replay()
                for x, copy in zip(warm if cold else (), copies, strict=False):
                    torch.add(x, 0, out=copy)
                begin, end = _event(), _event()
                begin.record()
                replay()
                end.record()
                # a host that was held up is given longer, up to where it is clearly not the fills
                if not begin.query():
                    break
                fills *= 4
            marks[name].append((begin, end))
    torch.cuda.synchronize()
    return {
        name: [begin.elapsed_time(end) * 1e3 / len(inputs) for begin, end in pairs]
        for name, pairs in marks.items()
    }


def _issue(call: Callable[[T], object], inputs: Sequence[T]) -> None:
    for one in inputs:
        call(one)


def host_rounds(calls: Calls[T], inputs: Sequence[T], rounds: int) -> dict[str, list[float]]:
    """Times the issue of calls, in turn, without a sync between those of one round.

    Args:
        calls: by name, what issues one on the current stream; compiled, does not sync.
        inputs: what they are called with in turn.
        rounds: repeats of each.

    Returns:
        By name, host microseconds of one call in each round. Syncs.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    arguments = [inputs[i % len(inputs)] for i in range(_CALLS)]
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                for one in arguments:
                    call(one)
                times[name].append((time.perf_counter() - start) * 1e6 / _CALLS)
    finally:
        gc.enable()
        torch.cuda.synchronize()
    return times


def copy_gb_s() -> float:
    """Measures a large copy from the GPU to itself, in GB/s, bytes read and written together. Syncs."""
    source = torch.ones(_COPY, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    marks = [_event() for _ in range(_WARM_COPIES + _COPIES + 1)]
    marks[0].record()
    for mark in marks[1:]:
        target.copy_(source)
        mark.record()
    torch.cuda.synchronize()
    ms: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return 2 * _COPY / statistics.median(ms[_WARM_COPIES:]) / 1e6


def _event() -> Any:
    event: Any = torch.cuda.Event
    return event(enable_timing=True)
