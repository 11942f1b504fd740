"""Timing: who is replayed when, and what of a replay counts; the GPU is made up."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xkv.cli.bench import timing


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
        mark.query = lambda: bool(self.done) and self.done.pop(0)
        return mark

    def capture(self, call: Any, steps: Any) -> Any:
        name = call(steps[0])

        def replay() -> None:
            self.log.append(name)
            self.now += self.ms[name] * len(steps)

        return SimpleNamespace(replay=replay)


CALLS = {"first": lambda n: "a", "second": lambda n: "b"}


@pytest.mark.parametrize("held_up", [0, 1, 2, 9])
@pytest.mark.parametrize("cold", [True, False])
def test_device_rounds(cold: bool, held_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is busy until a replay is queued: if not, again with more before it, up to a limit."""
    gpu = Fake(monkeypatch, {"a": 0.002, "b": 0.5})
    monkeypatch.setattr(timing, "_MOST_FILLS", 16)
    gpu.done = [True] * held_up + [False]
    warm = [torch.zeros(3, 4, dtype=torch.int64)[:, :3], torch.zeros(5, dtype=torch.int64)]
    found = timing.device_rounds(CALLS, range(24), warm, 2, cold)

    def once(name: str, fills: int) -> list[str]:
        before = ["flush 1048576"] * fills + ["read (3, 3)", "read (5,)"] if cold else [name] * fills
        return [*before, "mark", name, "mark"]

    tries = (1, 4, 16)[0 if cold else 1 :]
    first = [each for n in tries[: held_up + 1] for each in once("a", n)]
    left = max(held_up - len(tries), 0)  # of the marks that say so: the next replays use them up
    rest = []
    for name in ("b", "a", "b"):
        count = min(left, len(tries) - 1)
        left -= min(left, len(tries))
        rest += [each for n in tries[: count + 1] for each in once(name, n)]
    assert gpu.log == ["a", "b", *first, *rest, "sync"]
    assert found == {"first": pytest.approx([2.0, 2.0]), "second": pytest.approx([500.0, 500.0])}


def test_host_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("sync"))
    monkeypatch.setattr(timing, "_CALLS", 3)
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) * 1e-6)
    calls = {"a": seen.append, "b": lambda x: seen.append(-x)}
    found = timing.host_rounds(calls, [1, 2], 2)
    once = ["sync", 1, 2, 1, "sync", -1, -2, -1]
    assert seen == [*once, *once, "sync"]
    assert found == {"a": pytest.approx([2.0, 2.0]), "b": pytest.approx([2.0, 2.0])}


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
    for cold in (True, False):
        found = timing.device_rounds(calls, sets, warm, 9, cold)
        assert {name: len(us) for name, us in found.items()} == {"whole": 9, "half": 9}
        assert all(0 < us < math.inf for us in [*found["whole"], *found["half"]])
    x = torch.zeros(8, dtype=torch.int64, device="cuda")
    assert timing.launches(x.add_, 1) == 1
    assert all(0 < us < math.inf for us in timing.host_rounds({"": x.add_}, [1], 3)[""])
    assert 0 < timing.copy_gb_s() < math.inf
