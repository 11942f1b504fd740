"""A plugin for SGLang, added by this harness, that executes requests from a file in the scheduler's process.

It holds requests back until all requests of a round have arrived, so that every round has the same batches.
It counts and times calls, and switches xkv. While requests run it reads no file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from serve import hooks
from serve.book import Book
from serve.flashinfer_ops import without_fa3

_METHODS = ("init_forward_metadata", "init_forward_metadata_out_graph")


def load() -> None:
    """Called by SGLang's plugin loader; does nothing without XKV_SERVE_FOLDER."""
    folder = os.environ.get("XKV_SERVE_FOLDER")
    if folder:
        if os.environ["XKV_SERVE_CASE"].startswith("flashinfer"):
            without_fa3()
        Inside(Path(folder), os.environ["XKV_SERVE_WAY"]).install()


class Inside:
    """The part of the harness in the scheduler's process.

    Args:
        folder: the folder for requests and answers.
        way: on, with the plugin; off, without it.
    """

    def __init__(self, folder: Path, way: str) -> None:
        self._folder, self._way = folder, way
        self._book, self._switches = Book(), list[hooks.Switch]()
        self._wanted, self._held = 1, list[Any]()
        self._last: tuple[float, str, int] | None = None
        self._answered = 0
        self._start: dict[str, Any] = {}

    def install(self) -> None:
        """Wraps methods of the scheduler."""
        from sglang.srt.managers import schedule_batch, scheduler
        from sglang.srt.managers.scheduler_components import request_receiver

        around(request_receiver.SchedulerRequestReceiver, "recv_requests", self._receive)
        around(scheduler.Scheduler, "__init__", self._init)
        around(scheduler.Scheduler, "run_batch", self._run)
        around(scheduler.Scheduler, "on_idle", self._idle)
        around(schedule_batch.ScheduleBatch, "retract_decode", self._retract)

    def _init(self, original: Any, *args: Any, **kwargs: Any) -> None:
        self._book.listen()
        if self._way == "on":
            hooks.follow(self._book, self._attach)
        original(*args, **kwargs)
        for cls in _backends():
            for method in _METHODS:
                if method in vars(cls):
                    self._book.wrap(cls, method, f"{cls.__name__}.{method}")
        self._start = self._book.take()
        self._book.ready = True

    def _attach(self, switch: hooks.Switch) -> None:
        switch.set("on+")  # counts the calls that are captured in graphs at the start
        self._switches.append(switch)

    def _receive(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        got = original(*args, **kwargs)
        if not got:
            return got
        self._held += [x for x in got if type(x).__name__ == "TokenizedGenerateReqInput"]
        rest = [x for x in got if type(x).__name__ != "TokenizedGenerateReqInput"]
        if len(self._held) >= self._wanted:
            rest += self._held[: self._wanted]
            del self._held[: self._wanted]
        return rest

    def _run(self, original: Any, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        now, mode, size = time.perf_counter(), batch.forward_mode.name, len(batch.reqs)
        # only steps of a full batch, not the remaining requests at its end
        if self._last and (mode, size) == self._last[1:] and mode == "DECODE" and 2 * size > self._wanted:
            self._book.steps_ms.append(1e3 * (now - self._last[0]))
        self._last = now, mode, size
        return original(scheduler, batch, *args, **kwargs)

    def _retract(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._book.preempted += len(result[0])
        return result

    def _idle(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        question = self._folder / f"ask{self._answered + 1}.json"
        if question.exists():
            self._last = None
            self._answered += 1
            answer = self._do(**json.loads(question.read_text()))
            unfinished = self._folder / "answer.tmp"
            unfinished.write_text(json.dumps(answer))
            unfinished.replace(self._folder / f"answer{self._answered}.json")
        return result

    def _do(self, do: str, value: Any = None) -> Any:
        if do == "mode":
            return self._mode(value)
        if do == "hold":
            self._wanted = value
            return None
        if do == "take":
            return self._book.take()
        if do == "profile":
            return hooks.profile(self._book, value, self._switches)
        if do == "about":
            return {
                "start": self._start, "compiles": self._book.compiles(),
                "arguments": self._book.arguments,
                "profiled": hooks.profiled(self._switches),
                "facts": {"attention": sorted(c.__name__ for c in _backends())},
            }  # fmt: skip
        raise ValueError(f"no such question: {do}")

    def _mode(self, mode: str) -> None:
        for switch in self._switches:
            switch.set(mode)


def around(owner: Any, name: str, call: Any) -> None:
    """Replaces a method by ``call``, which gets the method as its first argument."""
    original = getattr(owner, name)

    def instead(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    setattr(owner, name, instead)


def _backends() -> list[type]:
    """Returns the attention backends that this process has imported."""
    start = "sglang.srt.layers.attention."
    return [
        cls
        for name, module in sorted(sys.modules.items())
        if name.startswith(start) and name.endswith("_backend") and "base_" not in name
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == name and "Backend" in cls.__name__
    ]
