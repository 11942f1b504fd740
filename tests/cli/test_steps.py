"""`python -m xkv steps`: both sides come to the same, on any device; what it prints and returns."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import xkv
from xkv import dispatch
from xkv.cli import steps, timing
from xkv.cli.steps import compared, peers, sequences
from xkv.cli.steps.compared import DRAFTS, ROWS, Row, Workload
from xkv.cli.steps.peers import Step
from xkv.launch import compile
from xkv.platforms import detect
from xkv.platforms.detect import CPU, Platform

CONTEXT = 1024
EDGES = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 700, CONTEXT - DRAFTS]
SMALL = (Workload(5, 700, CONTEXT), Workload(1, 900, CONTEXT))
# where a checkout of SGLang's kernels lies, for those who have one
PEERS = os.environ.get("XKV_PEERS")


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    steps.add_arguments(parser)
    return steps.run(parser.parse_args(argv))


def edge_steps(device: str, batches: list[list[int]]) -> list[Step]:
    made = []
    for n, lens in enumerate(batches):
        host = torch.tensor(lens)
        rows = (torch.arange(len(lens)) * 5 + n) % 13
        made.append(Step(rows.to(device), host.to(device), host, sum(lens)))
    return made


def differences(
    row: Row, theirs: peers.Peers, device: str, *batches: list[int], drop_in: peers.Peers | None = None
) -> list[str]:
    if row.backend not in {spec.name for spec in xkv.backends(device)}:
        pytest.skip(f"{row.backend} is for another platform")
    torch.manual_seed(1)
    source = compared.make_source(13, CONTEXT, device)
    return list(
        compared.differences(row, theirs, source, CONTEXT, edge_steps(device, list(batches)), drop_in)
    )


quick = pytest.mark.skipif(compile.interpreted(), reason="slow in the interpreter, and says no more")
by_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@quick
@by_row
def test_both_sides_come_to_the_same(row: Row, device: str) -> None:
    ragged = [EDGES, EDGES[::-1], [EDGES[n * 5 % 12] for n in range(12)]]
    assert differences(row, peers.StandIn(), device, *ragged) == []
    assert differences(row, peers.StandIn(), device, [CONTEXT - DRAFTS], [1], [65]) == []


@pytest.mark.kernel
@pytest.mark.skipif(not PEERS, reason="XKV_PEERS names no folder with SGLang's kernels")
@by_row
def test_sglang_s_kernels_come_to_the_same(row: Row, device: str) -> None:
    assert PEERS
    theirs = peers.SGLang(Path(PEERS))
    if not theirs.has(row.file):
        pytest.skip(f"{row.file} is not in {PEERS}")
    assert differences(row, theirs, device, EDGES, EDGES[::-1]) == []
    assert differences(row, theirs, device, [CONTEXT - DRAFTS], [64]) == []


def test_every_backend_has_a_row() -> None:
    """And a decode of each; a verify wherever SGLang has one."""
    names = {spec.name for spec in xkv.backends("cpu")}
    assert {row.backend for row in ROWS} == names
    assert {row.backend for row in ROWS if not row.drafts} == names
    assert {row.backend for row in ROWS if row.drafts} == names - {"cutlass_mla"}
    assert len({row.name for row in ROWS}) == len(ROWS)


def spoil(
    backend: str, name: str, how: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[peers.Setup], sequences.Sequence]:
    """The backend's sequence with one of its results spoilt."""
    original = getattr(sequences, backend)

    def make(setup: peers.Setup) -> sequences.Sequence:
        issue = original(setup)

        def spoilt(step: Step) -> sequences.Results:
            results = issue(step)
            return results | {name: how(results[name].clone())}

        return spoilt

    return make


def put(index: int | tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    def how(x: torch.Tensor) -> torch.Tensor:
        x[index] = -3
        return x

    return how


# the last live entries of rows of 65 and 64 tokens; and what is seen as the same
SPOILT = [
    ("flashmla", 64, "page_table", put((0, 1)), "page_table: live entry 1 is -3 of theirs"),
    ("flashmla", 64, "page_table", put((1, 1)), None),
    ("flashmla", 64, "cache_seqlens", put(1), "cache_seqlens: live entry 1 is -3"),
    ("flashmla", 64, "cache_seqlens", lambda x: x.long(), "(2,) torch.int64 of theirs"),
    ("trtllm_mha", 64, "cu_seqlens_k", put(2), "cu_seqlens_k: live entry 2"),
    ("triton", 1, "kv_indices", put(128), "kv_indices: live entry 128 is -3"),
    ("triton", 1, "kv_indices", put(129), None),
    ("triton", 1, "kv_indptr", put(1), "kv_indptr: live entry 1"),
    ("flashinfer_mla", 64, "kv_indices", put(64), "kv_indices: live entry 1"),
    ("flashinfer_mla", 64, "kv_indices", put(65), "kv_indices: live entry 2"),
    ("aiter_mla", 1, "kv_last_page_len", put(0), "kv_last_page_len: live entry 0"),
]


@pytest.mark.parametrize(("backend", "size", "name", "how", "said"), SPOILT)
def test_what_differs_is_named(
    backend: str,
    size: int,
    name: str,
    how: Callable[[torch.Tensor], torch.Tensor],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequences, backend, spoil(backend, name, how))
    found = differences(Row(backend, size, 0), peers.StandIn(), "cpu", [65, 64])
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU: on the CPU, in little, with made-up times."""
    made = {name: getattr(compared, name) for name in ("make_source", "make_steps")}
    for name, function in made.items():
        monkeypatch.setattr(compared, name, lambda *args, function=function: function(*args[:-1], "cpu"))
    monkeypatch.setattr(compared, "WORKLOADS", SMALL)
    monkeypatch.setattr(compared, "STEPS", 2)
    monkeypatch.setattr(detect, "platform", lambda: Platform("cuda", "sm90", 32, 132))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "backends", functools.partial(dispatch.backends, "cpu"))
    monkeypatch.setattr(timing, "measure", lambda call, inputs: timing.Figures(3, 2.25, 10.0))
    monkeypatch.setattr(timing, "add_us", lambda: 4.5)
    monkeypatch.setattr(timing, "versions", lambda: {"xkv": xkv.__version__})


def cells(line: str) -> list[str]:
    return line.split()


@quick
@pytest.mark.usefixtures("small_gpu")
def test_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "steps.json"
    assert run("--json", str(file)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "theirs: torch ops + xkv's index kernel" in out
    lines = [cells(line) for line in out.splitlines()]
    assert lines.count(cells("flashmla 64 decode 3 3 2.2 2.2 10.0 10.0")) == len(SMALL)
    # one kernel does all of theirs: nothing of xkv's can stand for it
    assert lines.count(cells("trtllm_mha 64 verify 4 - 3 - 2.2 - 10.0")) == len(SMALL)
    assert out.count("a torch add_ takes the host 4.5 us") == len(SMALL)
    assert "flashinfer_mla, page 64, decode: SGLang gives this backend single tokens" in out
    assert "flash_attention, page 64, decode: theirs needs --peers with metadata.py" in out

    record = json.loads(file.read_text())
    assert record["theirs"] == peers.StandIn.title
    assert [table["workload"]["batch"] for table in record["tables"]] == [5, 1]
    for table in record["tables"]:
        assert [row["backend"] for row in table["rows"]] == [row.backend for row in ROWS]
        assert table["rows"][0]["ours"] == {"launches": 3, "device_us": 2.25, "host_us": 10.0}
        nothing = {row["backend"] for row in table["rows"] if row["theirs"] is None}
        assert nothing == {"trtllm_mha", "flash_attention"}


@quick
@pytest.mark.usefixtures("small_gpu")
def test_a_difference_stops_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timing, "measure", lambda *_: pytest.fail("timed what is wrong"))
    spoilt = spoil("trtllm_mla", "cache_seqlens", put(0))
    monkeypatch.setattr(sequences, "trtllm_mla", spoilt)
    assert run() == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "xkv steps: theirs and ours differ:"
    assert len(lines) == 1 + len(SMALL) * 2 * compared.STEPS
    assert "trtllm_mla, page 64, decode: step 0: cache_seqlens: live entry 0 is -3" in lines[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "steps are timed on a GPU, and there is none"),
        (("--peers", "/nowhere"), "--peers: there is no kv_indices.py in /nowhere"),
        (("--drop-in",), "--drop-in needs --peers"),
        (("--json", "/nowhere/steps.json"), "--json: there is no folder /nowhere"),
    ],
)
def test_what_does_not_allow_a_run(
    argv: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(detect, "platform", lambda: CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"xkv steps: {said}\n")


def test_without_tabulate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tabulate", None)
    assert run() == 2
    assert capsys.readouterr().err == "xkv steps: tabulate is missing; pip install 'xkv[bench]'\n"


@pytest.mark.gpu
def test_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compared, "WORKLOADS", SMALL)
    monkeypatch.setattr(timing, "_CALLS", 10)
    file = tmp_path / "steps.json"
    assert run("--json", str(file), *(("--peers", PEERS) if PEERS else ())) == 0
    assert "flash_attention" in capsys.readouterr().out or torch.version.hip
    for table in json.loads(file.read_text())["tables"]:
        for row in table["rows"]:
            assert row["ours"]["launches"] == 1, row
            assert 0.5 < row["ours"]["device_us"] < 100, row
            assert row["theirs"] is None or row["theirs"]["launches"] >= 1, row
