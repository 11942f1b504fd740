"""`python -m xkv check`'s graph replays: captured on a GPU, faked elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from xkv.cli import check
from xkv.cli.check import case, selftest
from xkv.launch import compile


@pytest.fixture(autouse=True)
def _by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch reference also under TRITON_INTERPRET=1: what is tested is the comparison."""
    monkeypatch.setattr(compile, "interpreted", lambda: False)


# "cpu:0" is no GPU, but not "cpu" either: the replays run, with a graph that is faked.
REPLAYS = selftest.Bench("cpu:0", quick=True, interpreted=False)


def replays(monkeypatch: pytest.MonkeyPatch, captured: Callable[..., Any]) -> list[str]:
    monkeypatch.setattr(selftest, "captured", captured)
    cases, failures = check._tried(selftest.graph_replays(REPLAYS))
    assert cases == 5
    return failures


def test_replays_of_a_graph_that_does_all_again(monkeypatch) -> None:
    seen = []

    def captured(call: Callable[[], None]) -> Callable[[], None]:
        return lambda: (call(), seen.append(call))

    assert replays(monkeypatch, captured) == []
    assert len(seen) == 5 * 4


def test_replays_of_a_graph_that_does_nothing(monkeypatch) -> None:
    failures = replays(monkeypatch, lambda call: lambda: None)
    assert len(failures) == 5
    assert all("values 1: " in text and "what was there before" in text for text in failures)


@pytest.mark.parametrize("name", ["req_to_token", "req_pool_indices", "seq_lens", "kv_start"])
def test_replays_of_a_graph_that_froze_a_value(name: str, monkeypatch) -> None:
    def captured(call: Callable[[], None]) -> Callable[[], None]:
        arguments = call.keywords
        frozen = arguments[name].clone() if name in arguments else None

        def replay() -> None:
            now = arguments[name]
            arguments[name] = frozen
            call()
            arguments[name] = now

        return replay if frozen is not None else call

    failures = replays(monkeypatch, captured)
    assert len(failures) == (4 if name == "kv_start" else 5)


@pytest.mark.gpu
def test_a_capture_replays() -> None:
    x = torch.zeros(3, device="cuda")
    replay = case.captured(lambda: x.add_(1))
    before = x.clone()
    replay()
    replay()
    assert torch.equal(x, before + 2)
