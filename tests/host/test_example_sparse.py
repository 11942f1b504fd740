"""examples/sparse.py: the tokens of a dense cache, and wrong slots are noticed."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import xkv

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("sparse")


def wrong(out: str) -> tuple[int, ...]:
    """How many tokens differ with slots in place, and packed; of how many."""
    ((*found,),) = re.findall(r"(\d+) \(in place\) and (\d+) \(packed\) of (\d+) tokens differ", out)
    return tuple(map(int, found))


@pytest.mark.parametrize(("k", "page_size"), [("32", "64"), ("16", "1"), ("1", "16"), ("300", "16")])
def test_the_same_tokens(sparse: Any, capsys: pytest.CaptureFixture[str], k: str, page_size: str) -> None:
    """Also with one position of each row, and with more than any row has."""
    assert sparse.main(["--device", "cpu", "--steps", "2", "--k", k, "--page-size", page_size]) == 0
    assert wrong(capsys.readouterr().out) == (0, 0, 29)


def test_the_indexer_chooses(sparse: Any) -> None:
    """Up to k positions that differ, none behind the query token, and not the same ones for all."""
    torch.manual_seed(1)
    model = sparse.SparseModel(0, "cpu", 8)
    tokens, seen = torch.arange(4), torch.tensor([3, 8, 20, 40])
    keys = model.index_keys(torch.randint(sparse.VOCAB, (4, 40)))
    rows = model.choose(tokens, keys, seen).tolist()
    for row, n in zip(rows, seen.tolist(), strict=True):
        found = [position for position in row if position >= 0]
        assert len(found) == len(set(found)) == min(n, 8)
        assert max(found) < n
    assert rows[2] != rows[3]


def other_rows(plain: Callable[..., Any], *given: Any, req_pool_indices: Any, **more: Any) -> Any:
    return plain(*given, req_pool_indices=req_pool_indices.roll(1), **more)


def the_position_before(plain: Callable[..., Any], source: Any, positions: Any, **more: Any) -> Any:
    return plain(source, positions - 1, **more)


def the_slot_behind(plain: Callable[..., Any], *given: Any, **more: Any) -> Any:
    return plain(*given, **more).add_(1)


def a_token_less(plain: Callable[..., Any], *given: Any, seq_lens: Any, **more: Any) -> Any:
    return plain(*given, seq_lens=seq_lens - 1, **more)


SPOILT = [other_rows, the_position_before, the_slot_behind, a_token_less]


@pytest.mark.parametrize("spoil", SPOILT)
def test_wrong_slots_are_noticed(
    sparse: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    plain = xkv.translate_positions
    monkeypatch.setattr(xkv, "translate_positions", lambda *given, **more: spoil(plain, *given, **more))
    monkeypatch.setattr(xkv.Status, "check", lambda self: None)  # the tokens, not the report
    assert sparse.main(["--device", "cpu", "--steps", "2"]) == 1
    in_place, packed, _ = wrong(capsys.readouterr().out)
    assert min(in_place, packed) > 0


def test_wrong_counts_are_noticed(
    sparse: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = xkv.translate_positions

    def one_less(*given: Any, counts: Any, **more: Any) -> Any:
        out = plain(*given, counts=counts, **more)
        if counts is not None:
            counts[: len(out)] -= 1
        return out

    monkeypatch.setattr(xkv, "translate_positions", one_less)
    assert sparse.main(["--device", "cpu", "--steps", "2"]) == 1
    in_place, packed, _ = wrong(capsys.readouterr().out)
    assert in_place == 0
    assert packed > 0


@pytest.mark.repo
def test_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "sparse.py"), "--device", "cpu", "--steps", "2"],
        env={"PYTHONPATH": str(Path(xkv.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 requests of 3 to 150 tokens, 2 steps on cpu" in done.stdout


@pytest.mark.gpu
def test_in_a_graph(sparse: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert sparse.main(["--device", "cuda"]) == 0
    out = capsys.readouterr().out
    assert wrong(out) == (0, 0, 99)
    assert "each one graph" in out
