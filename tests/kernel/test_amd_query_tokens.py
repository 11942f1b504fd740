"""AMD's machine code of the ops of sparse attention against their definitions: see executing.py."""

from __future__ import annotations

from typing import Any

import executing
import pytest
from test_amd import UNITS, arches

from xkv.cli.check import chosen_call, expanded_call
from xkv.cli.check.chosen_call import ChosenCall
from xkv.cli.check.expanded_call import ExpandedCall
from xkv.launch import chosen, expanded
from xkv.platforms.detect import Platform

pytestmark = executing.MACHINE_CODE
kinds = pytest.mark.parametrize("kind", chosen_call.KINDS)
CASES = 6


def platform(arch: str, seed: int) -> Platform:
    """Of one unit: inputs begin where memory begins, instead of ending where it ends."""
    return Platform("hip", arch, 64, UNITS[arch] if seed % 2 else 1)


@kinds
@arches
def test_chosen_positions(arch: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = platform(arch, 1)

    def run(build: Any, *_: Any) -> None:
        if build.num_tokens:
            executing.execute_chosen(build, where)

    monkeypatch.setattr(chosen, "run", run)
    executed = 0
    for seed in range(CASES):
        where = platform(arch, seed)
        call = ChosenCall(seed, kind, hostile=seed % 3 > 0, device="cpu")
        call.check()
        executed += call.tokens > 0
    assert executed >= CASES // 2


@pytest.mark.parametrize("kind", expanded_call.KINDS)
@arches
def test_query_tokens(arch: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = platform(arch, 1)
    ran = []

    def run(build: Any, *_: Any) -> None:
        ran.append(executing.execute_expanded(build, where))

    monkeypatch.setattr(expanded, "run", run)
    for seed in range(CASES):
        where = platform(arch, seed)
        ExpandedCall(seed, kind, hostile=seed % 3 > 0, device="cpu").check()
    assert ran
