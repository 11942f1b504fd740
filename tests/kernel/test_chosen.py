"""`translate_positions` beside its definition in plain Python, on hostile data, between guard words."""

from __future__ import annotations

import pytest
import torch
from conftest import GPUS

import xkv
from xkv.cli.check.case import MismatchError
from xkv.cli.check.chosen_call import KINDS, ChosenCall
from xkv.cli.check.memory import whole

CASES = 400 if GPUS else 60


@pytest.mark.kernel
@pytest.mark.parametrize("hostile", [False, True], ids=["", "hostile"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_defined(kind: str, hostile: bool, device: str) -> None:
    for seed in range(CASES // 6 + 1):
        ChosenCall(seed, kind, hostile=hostile, device=device).check()


@pytest.mark.parametrize("hostile", [False, True], ids=["", "hostile"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_as_defined(kind: str, hostile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xkv.launch.compile, "interpreted", lambda: False)
    for seed in range(40):
        ChosenCall(seed, kind, hostile=hostile, device="cpu").check()


@pytest.mark.parametrize("what", ["out", "counts", "status", "outside", "returned"])
def test_what_differs_is_seen(what: str, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """An id, a count, a report that was cleared, a word behind a row, another tensor."""
    call = next(
        call for call in (ChosenCall(n, "one each", hostile=True, device=device) for n in range(100))
        if call.tokens and call.counts is not None and call.expected()[2] is not None
        and call.out.stride(0) > call.k and call.out.shape[0] > 1
    )  # fmt: skip
    run = ChosenCall.run

    def spoilt(self: ChosenCall) -> torch.Tensor:
        found = run(self)
        if what == "out":
            self.out[0, 0] += 1
        elif what == "counts":
            assert self.counts is not None
            self.counts[0] += 1
        elif what == "status":
            self.status.clear()
        elif what == "returned":
            found = found.clone()
        else:
            whole(self.out)[self.out.storage_offset() + self.k] += 1
        return found

    monkeypatch.setattr(ChosenCall, "run", spoilt)
    with pytest.raises(
        MismatchError, match={"status": "the status word", "outside": "outside"}.get(what, what)
    ):
        call.check()
