"""`python -m xkv demo`, end to end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import INTERPRETED

import xkv
from xkv import ops
from xkv.cli import demo

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
SMALL = ("--steps", "12", "--batch", "3", "--page-size", "16", "--max-context", "2048")


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args(["--device", "cpu", *argv]))


def table(out: str) -> dict[str, str]:
    """The closing table by its first column."""
    rows = (line.split("  ", 1) for line in out.splitlines() if "  " in line)
    return {name: value.strip() for name, value in rows}


def small_trace(path: Path, *more: str) -> str:
    """Six requests in Mooncake's format, the last two too long for --max-context 2048."""
    lines = [
        {"timestamp": k, "input_length": n, "output_length": 9, "hash_ids": [0, *range(9, 8 + b)]}
        for k, (n, b) in enumerate([(1100, 3), (1100, 3), (5, 1), (900, 2), (2040, 4), (3000, 6)])
    ]
    path.write_text("\n".join([*map(json.dumps, lines), *more]) + "\n")
    return str(path)


def test_synthetic_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL) == 0
    out, err = capsys.readouterr()
    rows = table(out)
    assert rows["mismatches"] == "0"
    assert rows["device status"] == "clean"
    assert rows["trace"] == "synthetic, seed 0"
    assert rows["steps"].startswith("12 ")
    assert rows["tables built"].startswith("24: ")
    assert rows["device, tuning rows"].startswith("cpu")
    assert "median" in rows["time per step"]
    assert "p99" in rows["time per step"]
    assert f"of {3 * 2048} (" in rows["live tokens"]
    assert "12/12" in err, "no progress bar"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--device", "cuda", "--steps", "40", "--batch", "8") == 0
    rows = table(capsys.readouterr().out)
    assert rows["mismatches"] == "0"
    assert rows["device, tuning rows"].startswith(("sm", "gfx"))


def test_trace_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four requests of nine tokens: served, shared, skipped and counted exactly."""
    assert run(*SMALL[2:], "--steps", "500", "--trace", small_trace(tmp_path / "t")) == 0
    rows = table(capsys.readouterr().out)
    assert rows["requests"] == "4 admitted, 4 finished, 2 skipped (over 2048 tokens)"
    prefilled = 1100 + (1100 - 1024) + 5 + (900 - 512)
    assert rows["tokens"] == f"32 decoded, {prefilled} prefilled, 1536 found in a shared prefix"
    assert rows["steps"] == "16 with at most 3 requests"
    assert rows["mismatches"] == "0"


@pytest.mark.parametrize("name", ["mooncake_conversation.jsonl", "azure_llm_2023_conv.csv"])
@pytest.mark.parametrize("page_size", ["1", "64", "1024"])
def test_published_traces(name: str, page_size: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    arguments = ("--steps", "6", "--batch", "4", "--max-context", "16384")
    assert run("--trace", str(path), "--page-size", page_size, *arguments) == 0
    rows = table(capsys.readouterr().out)
    assert (rows["mismatches"], rows["trace"]) == ("0", str(path))


# The replay compares what was written, whoever wrote it: the interpreter takes minutes and adds nothing.
by_reference = pytest.mark.skipif(INTERPRETED, reason="the plain tier has it, through the reference")


@by_reference
def test_seed_decides_all_but_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for seed in ("5", "5", "6"):
        assert run(*SMALL, "--seed", seed) == 0
        rows = table(capsys.readouterr().out)
        seen.append({key: rows[key] for key in ("requests", "tokens", "live tokens")})
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


# Which entry of which tensor's storage is spoilt, from (req_to_token, seq_lens, out).
TABLE_PLANTS = {
    "page": lambda source, lens, out: (out, 0),
    "past the row": lambda source, lens, out: (out, (lens[0] - 1) // 16 + 1),
    "past the width": lambda source, lens, out: (out, out.shape[1]),
    "past the batch": lambda source, lens, out: (out, out.shape[0] * out.stride(0)),
    "source": lambda source, lens, out: (source, 0),
}
CSR_PLANTS = {
    "slot": lambda source, lens, out: (out.kv_indices, lens.sum() - 1),
    "past the slots": lambda source, lens, out: (out.kv_indices, lens.sum()),
    "indptr": lambda source, lens, out: (out.kv_indptr, len(lens)),
    "past the indptr": lambda source, lens, out: (out.kv_indptr, len(lens) + 1),
    "last": lambda source, lens, out: (out.kv_last_page_len, len(lens) - 1),
    "past the last": lambda source, lens, out: (out.kv_last_page_len, len(lens)),
}
PLANTS = [
    *(("build_page_table", plant) for plant in TABLE_PLANTS.items()),
    *(("build_kv_indices", plant) for plant in CSR_PLANTS.items()),
]


@by_reference
@pytest.mark.parametrize(("name", "plant"), [pytest.param(*p, id=p[1][0]) for p in PLANTS])
def test_planted_mismatch(
    name: str,
    plant: tuple[str, Callable[..., tuple[torch.Tensor, int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One entry wrong in one step, of a batch that is not full: the exit status is 1."""
    build = getattr(xkv, name)
    planted = []

    def faulty(
        source: torch.Tensor, rows: torch.Tensor, lens: torch.Tensor, *, out: Any, **options: Any
    ) -> Any:
        result = build(source, rows, lens, out=out, **options)
        if len(lens) < 3 and not planted:
            view, offset = plant[1](source, lens, out)
            entry = view.as_strided((1,), (1,), view.storage_offset() + int(offset))
            entry ^= 1
            planted.append(name)
        return result

    monkeypatch.setattr(ops, name, faulty)
    assert run(*SMALL[2:], "--trace", small_trace(tmp_path / "t")) == 1
    assert planted
    assert table(capsys.readouterr().out)["mismatches"] == "1"


@by_reference
def test_reported_violation_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    violation = xkv.Violation(1, xkv.Reason.TRUNCATED)
    monkeypatch.setattr(xkv.Status, "read", lambda self: violation)
    assert run(*SMALL) == 1
    assert table(capsys.readouterr().out)["device status"] == str(violation)


def test_malformed_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_trace(tmp_path / "t", '{"timestamp": 9}')
    assert run(*SMALL, "--trace", path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"xkv demo: {path}:7: 'input_length' is missing\n"


BAD = [
    (("--steps", "-1"), "--steps"),
    (("--steps", "0"), "--steps"),
    (("--batch", "0"), "--batch"),
    (("--page-size", "0"), "--page-size"),
    (("--page-size", "48"), "--page-size"),
    (("--page-size", "2048"), "--page-size"),
    (("--max-context", "511"), "--max-context"),
    (("--batch", "4096"), "--batch times --max-context"),
    (("--seed", "-1"), "--seed"),
    (("--trace", "/nonexistent/trace"), "/nonexistent/trace: No such file"),
    (("--trace", "/"), "/: Is a directory"),
    (("--trace", __file__), f"{__file__}:1: neither"),
]


@pytest.mark.parametrize(("argv", "message"), BAD)
def test_bad_arguments(argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr and exit status 2."""
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"xkv demo: {message}")
    assert err.count("\n") == 1


def test_no_request_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without a decode step would check nothing, so it is no success."""
    path = tmp_path / "t"
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [0]}\n')
    assert run("--trace", str(path)) == 2
    assert "no request of the trace decodes" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--device", "cuda") == 2
    assert "GPU" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["tqdm", "tabulate"])
def test_missing_extra(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run(*SMALL) == 2
    assert capsys.readouterr().err == f"xkv demo: {module} is missing; pip install 'xkv[bench]'\n"
