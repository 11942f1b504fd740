"""Records launches, compiles and host times inside an engine's process."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from serve.pointers import described


class Book:
    """The records since the last `take`.

    Attributes:
        ready: whether the engine has started; earlier records are kept separately.
        arguments: those of the first call of each kernel that was served after the start, outside graphs.
    """

    def __init__(self) -> None:
        self.ready = False
        self.arguments: dict[str, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._profile: Any = None
        self._clear()

    def _clear(self) -> None:
        self.calls: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.launch_us: dict[str, list[float]] = defaultdict(list)
        self.method_us: dict[str, list[float]] = defaultdict(list)
        self.steps_ms: list[float] = []
        self.preempted = 0

    def take(self) -> dict[str, Any]:
        """Returns the records since the last call, for JSON."""
        taken = {
            "calls": {k: dict(v) for k, v in self.calls.items()}, "launch_us": dict(self.launch_us),
            "method_us": dict(self.method_us), "steps_ms": self.steps_ms, "preempted": self.preempted,
        }  # fmt: skip
        self._clear()
        return taken

    def count(self, kernel: str, what: str) -> None:
        """Counts a call: served, passed to the original, or captured in a graph."""
        self.calls[kernel][what] += 1

    def timed(self, kernel: str, names: tuple[str, ...], call: Callable[..., Any]) -> Callable[..., Any]:
        """Times a launch; records the arguments of the first one."""

        def launch(*args: Any, **kwargs: Any) -> Any:
            if capturing():
                self.count(kernel, "captured")
            elif self.ready and kernel not in self.arguments:
                given = dict(zip(names, args, strict=False)) | kwargs
                rows = {name: described(value) for name, value in given.items()}
                self.arguments[kernel] = {name: row for name, row in rows.items() if row}
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self.launch_us[kernel].append(1e6 * (time.perf_counter() - start))
            return result

        return launch

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Wraps a method of an object or class to time it."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            self.method_us[name].append(1e6 * (time.perf_counter() - start))
            return result

        setattr(owner, method, timed)

    def listen(self) -> None:
        """Records every Triton kernel that is compiled or loaded in this process."""
        from triton import knobs

        before = knobs.compilation.listener

        def heard(*, src: Any, cache_hit: bool, **more: Any) -> None:
            function = getattr(getattr(src, "fn", None), "fn", None)
            self._events.append({
                "kernel": getattr(function, "__name__", "?"), "module": getattr(function, "__module__", "?"),
                "loaded": cache_hit, "ready": self.ready,
            })  # fmt: skip
            if before is not None:
                before(src=src, cache_hit=cache_hit, **more)

        knobs.compilation.listener = heard

    def compiles(self) -> dict[str, Any]:
        """Returns the kernels compiled or loaded: xkv's and others', at and after the start."""
        counts: dict[str, Any] = {}
        for owner in ("xkv", "others"):
            mine = [e for e in self._events if (e["module"].split(".")[0] == "xkv") == (owner == "xkv")]
            for when, ready in (("start", False), ("after", True)):
                these = [e for e in mine if e["ready"] is ready]
                counts[f"{owner} {when}"] = {
                    "compiled": sum(not e["loaded"] for e in these), "loaded": sum(e["loaded"] for e in these)
                }  # fmt: skip
        counts["names"] = sorted({e["kernel"] for e in self._events if e["module"].split(".")[0] == "xkv"})
        counts["xkv after names"] = [
            f"{e['module']}.{e['kernel']}"
            for e in self._events
            if e["ready"] and e["module"].startswith("xkv")
        ]
        return counts

    def profile(self, on: bool, names: set[str]) -> dict[str, list[float]] | None:
        """Starts a profile, or ends it and returns the device times of kernels with these names."""
        from torch.profiler import ProfilerActivity, profile

        if on:
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.start()
            return None
        self._profile.stop()
        return device_times(self._profile, names)


def capturing() -> bool:
    """Whether a CUDA graph is being captured on this stream."""
    torch = sys.modules["torch"]
    return bool(torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def device_times(profile: Any, names: set[str]) -> dict[str, list[float]]:
    """Returns the device time of each launch of these kernels in microseconds, from a torch profile."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in profile.events():
        if event.name in names and "CUDA" in str(event.device_type):
            times[event.name].append(float(event.time_range.elapsed_us()))
    return dict(times)
