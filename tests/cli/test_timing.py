"""Timing: who is replayed when, and what of a replay counts; the GPU is made up."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xkv.cli.bench import machine, timing
from xkv.cli.bench.predecessor import PREDECESSORS
from xkv.platforms import detect


class Fake:
    """A GPU whose clock, in ms, goes on with each replay; what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ms: dict[str, float]) -> None:
        self.log: list[str] = []
        self.now, self.ms = 0.0, ms
        self.graph: list[str] | None = None
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

    def kernel(self, name: str) -> Any:
        """What launches one: at once, or into the graph that is being captured."""

        def call(n: Any) -> None:
            if self.graph is not None:
                self.graph.append(name)
            else:
                self.log.append(f"{name} {n}")
                self.now += self.ms[name]

        return call

    def capture(self, call: Any, steps: Any) -> Any:
        self.graph = graph = []
        for one in steps:
            call(one)
        self.graph = None

        def replay() -> None:
            self.log.append("".join(dict.fromkeys(graph)))
            self.now += sum(self.ms[name] for name in graph)

        return SimpleNamespace(replay=replay)


@pytest.mark.parametrize("held_up", [0, 1, 2, 9])
@pytest.mark.parametrize("cold", [True, False])
def test_back_to_back(cold: bool, held_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is busy until a replay is queued: if not, again with more before it, up to a limit."""
    gpu = Fake(monkeypatch, {"a": 0.002, "b": 0.5})
    monkeypatch.setattr(timing, "MOST_REPLAYS", 3)
    gpu.done = [True] * held_up + [False]
    warm = [torch.zeros(3, 4, dtype=torch.int64)[:, :3], torch.zeros(5, dtype=torch.int64)]
    calls = {"first": gpu.kernel("a"), "second": gpu.kernel("b")}
    found = timing.back_to_back(calls, range(24), warm, 2, cold)

    def once(name: str, fills: int) -> list[str]:
        before = ["flush 1048576"] * fills + ["read (3, 3)", "read (5,)"] if cold else [name] * fills
        return [*before, "mark", name, "mark"]

    tries = (1, 4, 16) if cold else (4, 16, 64)
    first = [each for n in tries[: held_up + 1] for each in once("a", n)]
    left = max(held_up - len(tries), 0)  # of the marks that say so: the next replays use them up
    rest = []
    for name in ("b", "a", "b"):
        count = min(left, len(tries) - 1)
        left -= min(left, len(tries))
        rest += [each for n in tries[: count + 1] for each in once(name, n)]
    assert gpu.log == ["a", "b", *first, *rest, "sync"]
    assert found == {"first": pytest.approx([2.0, 2.0]), "second": pytest.approx([500.0, 500.0])}


@pytest.mark.parametrize("cold", [True, False])
def test_in_place(cold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs less the kernels before alone, whose graph is replayed in every round too."""
    gpu = Fake(monkeypatch, {"-": 0.001, "a": 0.002, "b": 0.5})
    warm = [torch.zeros(5, dtype=torch.int64)]
    calls = {"first": gpu.kernel("a"), "second": gpu.kernel("b")}
    found = timing.in_place(calls, gpu.kernel("-"), range(24), warm, 2, cold)
    assert found == {"first": pytest.approx([2.0, 2.0]), "second": pytest.approx([500.0, 500.0])}
    graphs = ["-", "-a", "-b"]
    assert [each for each in gpu.log if each in graphs][:3] == graphs  # uploads
    triples = zip(gpu.log, gpu.log[1:], gpu.log[2:], strict=False)
    assert [each for begin, each, end in triples if begin == end == "mark"] == graphs * 2
    assert gpu.log[0] == "- 0"  # compiles the kernel before, which nothing else has called


def test_in_place_takes_the_median_of_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow replay of the kernels alone moves no call's time."""
    times = iter([[3.0, 99.0, 2.0, 3.5, 2.5], [10.0, 11.0, 12.0, 2.0, 10.0]])
    monkeypatch.setattr(timing, "back_to_back", lambda calls, *more: {name: next(times) for name in calls})
    found = timing.in_place({"x": lambda n: None}, lambda n: None, range(2), [], 5)
    assert found == {"x": [7.0, 8.0, 9.0, -1.0, 7.0]}


@pytest.mark.parametrize("held_up", [0, 1])
def test_on_a_stream(held_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU overwrites L2 until all pairs of a round are queued: if not, again with more of it."""
    gpu = Fake(monkeypatch, {"-": 0.001, "a": 0.002})
    warm = [torch.zeros(5, dtype=torch.int64)]
    gpu.done = [True] * held_up + [False]
    found = timing.in_place({"x": gpu.kernel("a")}, gpu.kernel("-"), range(3), warm, 1, stream=True)
    assert found == {"x": pytest.approx([2.0])}
    alone, pairs = ["- 0", "- 1", "- 2"], ["- 0", "a 0", "- 1", "a 1", "- 2", "a 2"]

    def once(queued: list[str], fills: int) -> list[str]:
        return [*["flush 1048576"] * fills, "read (5,)", "mark", *queued, "mark"]

    again = once(alone, 64) * held_up
    assert gpu.log == ["- 0", *alone, *pairs, *once(alone, 16), *again, *once(pairs, 16), "sync"]
    with pytest.raises(ValueError, match="cold must be True"):
        timing.back_to_back({}, [], warm, 1, cold=False, stream=True)


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
    ways = [(True, False), (False, False), (True, True)]
    for cold, stream in ways:
        found = timing.back_to_back(calls, sets, warm, 9, cold, stream)
        assert {name: len(us) for name, us in found.items()} == {"whole": 9, "half": 9}
        assert all(0 < us < math.inf for us in [*found["whole"], *found["half"]])
    befores = [name for name in PREDECESSORS if name == "add" or detect.platform().supports_pdl]
    for before, (cold, stream) in itertools.product(befores, ways):
        add = PREDECESSORS[before]
        found = timing.in_place(calls, lambda x: add(warm[0]), sets, warm, 9, cold, stream)  # noqa: B023
        assert {name: len(us) for name, us in found.items()} == {"whole": 9, "half": 9}
        assert all(math.isfinite(us) for us in [*found["whole"], *found["half"]])
    assert not warm[0].any()
    x = torch.zeros(8, dtype=torch.int64, device="cuda")
    assert timing.launches(x.add_, 1) == 1
    assert all(0 < us < math.inf for us in timing.host_rounds({"": x.add_}, [1], 3)[""])
    assert 0 < timing.copy_gb_s() < math.inf


def test_amds_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(machine, "_AMD_DRIVER", tmp_path / "version")
    assert machine._driver() == "unknown"
    (tmp_path / "version").write_text("6.14.14\n")
    assert machine._driver() == "6.14.14"
