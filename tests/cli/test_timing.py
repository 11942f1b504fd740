"""Timing: who is replayed when, and what of a replay counts; the GPU is made up."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xkv.cli import timing


class Fake:
    """A GPU whose clock, in ms, goes on with each replay; what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ms: dict[str, float]) -> None:
        self.log: list[str] = []
        self.now, self.ms = 0.0, ms
        self.done: list[bool] = []  # what marks say in turn when asked whether the GPU has passed them
        monkeypatch.setattr(timing, "_FLUSH", 1 << 20)
        monkeypatch.setattr(timing, "_event", self.event)
        monkeypatch.setattr(timing, "capture", self.capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("sync"))
        fill, add = torch.Tensor.zero_, torch.add

        def zero_(x: torch.Tensor) -> torch.Tensor:
            self.log.append(f"flush {x.nbytes}")
            self.now += 100
            return fill(x)

        def read(x: torch.Tensor, other: int, out: torch.Tensor) -> torch.Tensor:
            self.log.append(f"read {tuple(x.shape)}")
            self.now += 7
            return add(x, other, out=out)

        monkeypatch.setattr(torch.Tensor, "zero_", zero_)
        monkeypatch.setattr(torch, "add", read)

    def event(self) -> Any:
        mark = SimpleNamespace(at=0.0)
        mark.record = lambda: (self.log.append("mark"), setattr(mark, "at", self.now))
        mark.elapsed_time = lambda other: other.at - mark.at
        mark.query = lambda: self.done.pop(0)
        return mark

    def capture(self, call: Any, given: Any) -> Any:
        name = call(given[0])

        def replay() -> None:
            self.log.append(name)
            self.now += self.ms[name] * len(given)

        return SimpleNamespace(replay=replay)


def test_replays_us(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Fake(monkeypatch, {"a": 0.002, "b": 0.5})
    warm = [torch.zeros(3, 4, dtype=torch.int64)[:, :3], torch.zeros(5, dtype=torch.int64)]
    calls = {"first": lambda n: "a", "second": lambda n: "b"}
    found = timing.replays_us(calls, range(24), warm, 2)
    each = ["flush 1048576", "read (3, 3)", "read (5,)", "mark"]
    once = [*each, "a", "mark", *each, "b", "mark"]
    assert gpu.log == ["a", "b", *once, *once, "sync"]
    assert found == {"first": pytest.approx([2.0, 2.0]), "second": pytest.approx([500.0, 500.0])}


def test_host_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("sync"))
    monkeypatch.setattr(timing, "_CALLS", 3)
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) * 1e-6)
    found = timing.host_rounds({"a": (seen.append, [1, 2]), "b": (seen.append, "x")}, 2)
    once = ["sync", 1, 2, 1, "sync", "x", "x", "x"]
    assert seen == [*once, *once, "sync"]
    assert found == {"a": pytest.approx([2.0, 2.0]), "b": pytest.approx([2.0, 2.0])}


@pytest.mark.parametrize("held_up", [0, 1, 2, 3, 9])
def test_device_us(held_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is busy until the last replay is queued: if not, again with more to do, up to a limit."""
    gpu = Fake(monkeypatch, {"a": 0.002})
    gpu.done = [True] * held_up + [False]
    monkeypatch.setattr(timing, "_MOST_FILLS", timing._FILLS * 16)
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: plain(*size, **options | {"device": "cpu"}))
    assert timing.device_us(lambda n: "a", range(16)) == pytest.approx(2.0)
    replays = ["mark"] + ["a", "mark"] * (timing._WARM_REPLAYS + timing._REPLAYS)
    fills = [timing._FILLS * 4**n for n in range(min(held_up, 2) + 1)]
    tries = [each for n in fills for each in (*["flush 1048576"] * n, *replays, "sync")]
    assert gpu.log == ["a", *tries]


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    """Everything is timed. Nothing is said of how long: that depends on what else runs on the GPU."""
    sets = [torch.ones(32 << 20, dtype=torch.uint8, device="cuda") for _ in range(8)]
    out = torch.empty_like(sets[0])
    half = len(out) // 2
    calls = {
        "whole": lambda x: torch.bitwise_not(x, out=out),
        "half": lambda x: torch.bitwise_not(x[:half], out=out[:half]),
    }
    for call in calls.values():
        call(sets[0])
    warm = [torch.zeros(8, dtype=torch.int64, device="cuda")]
    found = timing.replays_us(calls, sets, warm, 9)
    assert {name: len(us) for name, us in found.items()} == {"whole": 9, "half": 9}
    x = torch.zeros(8, dtype=torch.int64, device="cuda")
    x.add_(1)
    single = [timing.device_us(lambda _: x.add_(1), range(4)), timing.copy_gb_s(), timing.add_us()]
    assert all(0 < value < math.inf for value in [*found["whole"], *found["half"], *single])
