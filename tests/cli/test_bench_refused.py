"""`python -m xkv bench`: arguments, machines and peers that do not allow a run."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from benching import run, write_trace

from xkv.platforms import detect
from xkv.platforms.detect import CPU, Platform

pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
pytest_plugins = ("bench_gpu",)
plots = pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
reads = pytest.mark.skipif(not find_spec("msgspec"), reason="needs msgspec")


@pytest.mark.parametrize(
    "where", [Platform("cuda", "sm80", 32, 108), Platform("rocm", "gfx942", 64, 304)], ids=str
)
def test_an_early_kernel_before_needs_programmatic_dependent_launch(
    where: Platform, small_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(detect, "platform", lambda: where)
    assert run("--predecessor", "early", "--suite", "ops") == 2
    assert capsys.readouterr().err == (
        f"xkv bench: --predecessor early needs programmatic dependent launch, which {where} has not\n"
    )
    assert small_gpu["device"] == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "kernels are timed on a GPU, and there is none"),
        (("--peers", "/nowhere"), "--peers: there is no folder /nowhere"),
        (("--json", "/nowhere/b.json"), "--json: there is no folder /nowhere"),
        pytest.param(("--plot", "/nowhere/b.png"), "--plot: there is no folder /nowhere", marks=plots),
        pytest.param(("--plot", "bench"), "--plot must end in .png, .svg or .pdf, not ''", marks=plots),
        (("--stream", "--warm"), "--stream queues calls while L2 is being overwritten: it does not go with "),
        (("--rounds", "0"), "--rounds must be at least 1, not 0"),
        (("--pages", "64,48"), "--pages takes 1, 2, 4, 8, 16, 32, 64, 128, not '48'"),
        (("--pages", ""), "--pages takes 1, 2, 4, 8, 16, 32, 64, 128, not ''"),
        (("--quick", "--only", "1 x 1M"), "--only: there is no '1 x 1M' among '1 x 128K', "),
        (
            ("--suite", "steps", "--only", "1 x 1M"),
            "--only: there is no '1 x 1M' among '256 x ~4K in 128K', ",
        ),
        (("--trace", "/nowhere/t"), "--trace: /nowhere/t: No such file or directory"),
        (("--trace", "{folder}/empty"), "--trace: {folder}/empty:1: the file is empty"),
        (("--trace", "{folder}/prefill"), "--trace: {folder}/prefill: no request decodes within 131068 "),
        pytest.param(("--from", "/nowhere/b"), "--from: /nowhere/b: No such file or directory", marks=reads),
        pytest.param(("--from", "{folder}/empty"), "--from: {folder}/empty: not a record of ", marks=reads),
    ],
)
def test_what_does_not_allow_a_run(
    argv: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "empty").touch()
    write_trace(tmp_path / "prefill", (10, 0))
    monkeypatch.setattr(detect, "platform", lambda: CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*(each.format(folder=tmp_path) for each in argv)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"xkv bench: {said.format(folder=tmp_path)}")
    assert err.count("\n") == 1


def test_a_peer_that_cannot_be_imported(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "kv_indices.py").write_text("import math\nimport no_module_of_ours\n")
    assert run("--peers", str(tmp_path)) == 2
    says = f"xkv bench: --peers: {tmp_path}/kv_indices.py:2: cannot be imported: ModuleNotFoundError: "
    assert capsys.readouterr().err.startswith(says)


@pytest.mark.parametrize(
    ("module", "argv"),
    [("tabulate", ()), ("tqdm", ()), ("matplotlib", ("--plot", "b.png")), ("msgspec", ("--from", "b.json"))],
)
def test_without_a_module(
    module: str, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run(*argv) == 2
    assert capsys.readouterr().err == f"xkv bench: {module} is missing; pip install 'xkv[bench]'\n"
