"""`python -m xkv bench` on a GPU that is made up: in little, on the CPU, and with made-up times."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benching import LEASTS, TINY, US

import xkv
from xkv.cli import bench
from xkv.cli.bench import inputs, least, machine, predecessor, providers, session, timing, workloads
from xkv.cli.bench.cases import OURS
from xkv.cli.bench.sglang import Plugin, SGLang
from xkv.cli.bench.workloads import Workload
from xkv.launch import compile
from xkv.platforms import detect
from xkv.platforms.detect import Platform


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if there were a GPU: on the CPU, in little, with made-up times; what was asked to be timed."""
    if compile.interpreted():
        pytest.skip("slow in the interpreter, and says no more")
    seen: dict[str, Any] = {"device": [], "back": [], "host": [], "rounds": [], "before": 0}

    def in_place(
        calls: Any, before: Any, launches: Any, warm: Any, rounds: int, cold: bool, stream: bool
    ) -> dict[str, list[float]]:
        seen["cold"], seen["stream"] = cold, stream
        assert len(launches) == inputs.LAUNCHES
        for one in launches:
            before(one)
        seen["device"].append(list(calls))
        seen["rounds"].append(rounds)
        return {name: [US[name]] * rounds for name in calls}

    def back_to_back(
        calls: Any, launches: Any, warm: Any, rounds: int, cold: bool, stream: bool
    ) -> dict[str, list[float]]:
        assert (cold, stream) == (seen["cold"], seen["stream"])
        assert len(launches) == inputs.LAUNCHES
        seen["back"].append(list(calls))
        return {name: [US[name] / 2] * rounds for name in calls}

    def candidates(at: Any, results: Any) -> Any:
        """In place of Triton kernels: xkv's op."""
        if at.case.backend:
            return {}
        ours = providers.makers(at, SGLang([]), Plugin([]))[OURS]()
        ours = dataclasses.replace(ours, measured=("device_us", "back_us"))
        return dict.fromkeys(LEASTS, ours)

    def early(lens: Any) -> None:
        seen["before"] += 1

    def host_rounds(calls: Any, steps: Any, rounds: int) -> dict[str, list[float]]:
        seen["host"].append(list(calls))
        return {name: [1.0, 5.0, 4.0] for name in calls}

    monkeypatch.setattr(inputs, "LAUNCHES", 2)
    monkeypatch.setattr(bench, "_STEPS", 6)
    monkeypatch.setattr(bench, "_QUICK_STEPS", 3)
    monkeypatch.setattr(workloads, "WORKLOADS", TINY)
    monkeypatch.setattr(session, "_COMPILE_LOAD", Workload("compiles", (60, 130), 200))
    monkeypatch.setattr(session, "Plan", functools.partial(session.Plan, device="cpu"))
    monkeypatch.setattr(detect, "platform", lambda: Platform("cuda", "sm90", 32, 132))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing, "in_place", in_place)
    monkeypatch.setattr(timing, "back_to_back", back_to_back)
    monkeypatch.setattr(least, "candidates", candidates)
    monkeypatch.setitem(predecessor.PREDECESSORS, "early", early)
    monkeypatch.setattr(timing, "host_rounds", host_rounds)
    monkeypatch.setattr(timing, "launches", lambda call, step: 3)
    monkeypatch.setattr(timing, "copy_gb_s", lambda: 2000.0)
    monkeypatch.setattr(
        xkv.MetadataBuilder, "capture",
        lambda self, size, **options: SimpleNamespace(replay=lambda: self.build(**options)),
    )  # fmt: skip
    names = ("gpu", "driver", "toolkit", "xkv", "torch", "triton", "python")
    monkeypatch.setattr(machine, "versions", lambda: dict.fromkeys(names, "made up"))
    return seen
