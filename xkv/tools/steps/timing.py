"""Launches, device time and host time of something done again and again on a GPU.

The kernels at hand take 2 to 40 us, so that events around one launch would measure the host: device
times come from a CUDA graph of many, each on other data so that nothing is warm in L2.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")

_REPLAYS = 40
_WARM_REPLAYS = 5
_REPEATS = 15
# of up to 10 launches: more would fill the queue, and the host would wait for the GPU
_CALLS = 100


class Figures(NamedTuple):
    """What one step costs.

    Attributes:
        launches: kernels, copies and fills.
        device_us: microseconds on the GPU.
        host_us: microseconds to issue it.
    """

    launches: int
    device_us: float
    host_us: float


def measure(call: Callable[[T], object], inputs: Sequence[T]) -> Figures:
    """Measures a call on a GPU, in turn on each of the inputs.

    Args:
        call: issues one step on the current stream; does not sync.
        inputs: about 16, on the same shapes.

    Returns:
        Launches of one step, and medians over replays and repeats.
    """
    for one in inputs:  # compiles, allocates, and fills what is cached
        call(one)
    torch.cuda.synchronize()
    return Figures(launches(call, inputs[0]), device_us(call, inputs), host_us(call, inputs))


def launches(call: Callable[[T], object], one: T) -> int:
    """Counts the kernels, copies and fills of one call."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call(one)
        torch.cuda.synchronize()
    # a GPU of either vendor is "CUDA" here
    return sum(event.device_type.name == "CUDA" for event in profile.events())


def device_us(call: Callable[[T], object], inputs: Sequence[T]) -> float:
    """Times one call on the GPU: a graph of one for each input, the median over its replays."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in inputs:
            call(one)
    # all of them are queued at once, so that the GPU never waits for the host between two events
    event: Any = torch.cuda.Event
    marks = [event(enable_timing=True) for _ in range(_WARM_REPLAYS + _REPLAYS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    ms: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return statistics.median(ms[_WARM_REPLAYS:]) * 1e3 / len(inputs)


def host_us(call: Callable[[T], object], inputs: Sequence[T]) -> float:
    """Times the issue of one call, without a sync between them, the median over repeats."""
    work = [inputs[i % len(inputs)] for i in range(_CALLS)]
    times = []
    gc.disable()
    try:
        for _ in range(_REPEATS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for one in work:
                call(one)
            times.append((time.perf_counter() - start) * 1e6 / _CALLS)
    finally:
        gc.enable()
        torch.cuda.synchronize()
    return statistics.median(times)


def add_us() -> float:
    """Host microseconds of a torch add_ on a small tensor: the machine's own speed."""
    return host_us(lambda x: x.add_(1), [torch.zeros(256, dtype=torch.int32, device="cuda")])
