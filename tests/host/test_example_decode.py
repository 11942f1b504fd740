"""examples/decode.py: the same tokens three ways, and a wrong build is noticed."""

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
def decode(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("decode")


def wrong(out: str) -> dict[str, int]:
    """How many tokens differ from ours, by whose they are."""
    return {name: int(n) for name, n in re.findall(r"^(\w+): (\d+) of \d+ tokens differ", out, re.MULTILINE)}


@pytest.mark.parametrize("page_size", ["16", "64"])
def test_the_same_tokens(decode: Any, capsys: pytest.CaptureFixture[str], page_size: str) -> None:
    assert decode.main(["--device", "cpu", "--steps", "4", "--page-size", page_size]) == 0
    assert wrong(capsys.readouterr().out) == {"reference": 0, "dense": 0}


def other_rows(work: Any, backend: str, plain: Callable[..., Any]) -> Any:
    work.rows = work.rows.roll(1)
    return plain(work, backend)


def a_token_less(work: Any, backend: str, plain: Callable[..., Any]) -> Any:
    build = plain(work, backend)
    return lambda lens: (build(lens)[0], build(lens - 1)[1])


def a_slot_before(work: Any, backend: str, plain: Callable[..., Any]) -> Any:
    build = plain(work, backend)
    return lambda lens: (build(lens - 1)[0].clone(), build(lens)[1])


@pytest.mark.parametrize("spoil", [other_rows, a_token_less, a_slot_before])
def test_wrong_metadata_is_noticed(
    decode: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    plain = decode.xkv_metadata
    monkeypatch.setattr(decode, "xkv_metadata", lambda work, backend: spoil(work, backend, plain))
    assert decode.main(["--device", "cpu", "--steps", "4"]) == 1
    assert wrong(capsys.readouterr().out)["dense"] > 0


@pytest.mark.repo
def test_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "decode.py"), "--device", "cpu", "--steps", "2"],
        env={"PYTHONPATH": str(Path(xkv.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 requests of 3 to 150 tokens, 2 steps on cpu" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["torch", "flashinfer"])
def test_in_a_graph(decode: Any, capsys: pytest.CaptureFixture[str], attention: str) -> None:
    if attention == "flashinfer":
        pytest.importorskip("flashinfer", exc_type=ImportError)
        if torch.version.hip:
            pytest.skip("FlashInfer is for NVIDIA GPUs")
    assert decode.main(["--device", "cuda", "--attention", attention]) == 0
    out = capsys.readouterr().out
    assert wrong(out) == {"reference": 0, "dense": 0}
    assert "each step one graph" in out
