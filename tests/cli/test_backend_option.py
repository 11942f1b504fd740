"""`check --hostile N --backend` and `info --backend`: one backend, also one of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import results
from compiling import GPUS, need

from xkv.__main__ import main
from xkv.cli import backend_option
from xkv.cli.check import hostile
from xkv.cli.check.families import backend_families
from xkv.cli.check.program import program
from xkv.launch import compile

MODULE = """
import xkv

TABLE = xkv.BackendSpec(
    "my table", "table", (16,), 16, ("cache_seqlens",), id_dtype="int64", width_tokens=64, pad_to_tokens=64,
)
STREAM = xkv.BackendSpec(
    "my stream", "csr", (1, 4), 4, ("kv_indptr", "cu_seqlens_q"), pad_to_tokens=8, pad_id=2, min_seq_len=1,
)
NUMBER = 3
"""
CHECK = ("check", "--device", "cpu", "--hostile", "40")


@pytest.fixture(autouse=True)
def _by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch reference also under TRITON_INTERPRET=1."""
    monkeypatch.setattr(compile, "interpreted", lambda: False)


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, in the working directory, as `python -m xkv` finds it."""
    (tmp_path / "engine_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("backend", "title"),
    [
        ("flashinfer_decode", "flashinfer_decode"), ("aiter_batch_prefill", "aiter_batch_prefill"),
        ("engine_of_mine:TABLE", "my table"), ("engine_of_mine:STREAM", "my stream"),
    ],
)  # fmt: skip
def test_one_backend(backend: str, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CHECK, "--backend", backend]) == 0
    found = results(capsys.readouterr().out)
    assert list(found) == [f"hostile {title}", "total"]
    cases, result = found["total"]
    assert result == "pass"
    assert cases >= 40


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("flashmlaa", "backend must be one of flashmla, .*, got 'flashmlaa'"),
        ("engine_of_mine:NUMBER", "'engine_of_mine:NUMBER' must name a BackendSpec, got a int"),
        ("engine_of_mine:NONE", "'engine_of_mine:NONE' must name a BackendSpec, got nothing of that name"),
        ("engine_of_theirs:SPEC", "module 'engine_of_theirs' cannot be imported: No module named"),
    ],
)  # fmt: skip
def test_no_backend(backend: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        backend_option.load(backend, "cpu")
    assert main([*CHECK, "--backend", backend]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith("xkv check: --backend: "), err.count("\n")) == ("", True, 1)


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["aiter_pa", "engine_of_mine:STREAM"])
def test_its_kernels(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    need(GPUS["sm90"])
    assert main(["info", "--arch", "sm90", "--backend", backend]) == 0
    out, _ = capsys.readouterr()
    spec = backend_option.load(backend, "cpu")
    _, _, table = out.partition("\nsm90\n")
    header, *rows = table.splitlines()
    assert header.startswith("of ")
    assert [row.startswith(f"{spec.name} {spec.page_size} ") for row in rows] == [True, True]


def test_kernels_of_no_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--backend", "flashmlaa"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith("xkv info: --backend: backend must be one of ")) == ("", True)


def test_it_is_for_hostile_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cpu", "--backend", "flashmla"]) == 2
    assert capsys.readouterr().err == "xkv check: --backend needs --hostile\n"


@pytest.mark.parametrize("backend", ["flashmla", "engine_of_mine:TABLE"])
def test_the_printed_program_makes_the_spec(backend: str) -> None:
    spec = backend_option.load(backend, "cpu")
    family = backend_families(spec)[0]
    case = hostile.draw(family, 0, 1, "cpu", True)
    hostile.fill(case, 0)
    text = program("a case", case)
    made = "'flashmla'" if backend == "flashmla" else f"xkv.{spec!r}"
    assert f"xkv.MetadataBuilder({made}, " in text
    exec(text, {})  # its assertion holds
