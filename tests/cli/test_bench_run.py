"""`python -m xkv bench` as a whole: what it prints, writes and returns; the GPU is made up."""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer_stubs
import pytest
import torch
from benching import FOUND, HOST, TINY, write_trace

import xkv
from xkv.cli import bench, timing
from xkv.cli.bench import inputs, session, workloads
from xkv.cli.bench.records import AGAIN, BLOCKS, CHAIN, EMPTY, OURS, READ_TABLE, SEED, SERIAL, TOKENS
from xkv.launch import compile
from xkv.platforms import detect
from xkv.platforms.detect import CPU, Platform

plots = pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
PEERS = os.environ.get("XKV_PEERS")  # where kernels of SGLang lie, for those who have them


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(argv))


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if there were a GPU: on the CPU, in little, with made-up times; what was asked to be timed."""
    seen: dict[str, Any] = {"device": [], "host": []}
    us = {SEED: 8.0, AGAIN: 8.1, SERIAL: 6.0, READ_TABLE: 4.0, TOKENS: 9.0, BLOCKS: 7.0, OURS: 2.0,
          EMPTY: 1.0, CHAIN: 1.5}  # fmt: skip

    def replays_us(
        calls: Any, launches: Any, warm: Any, rounds: int, cold: bool = True
    ) -> dict[str, list[float]]:
        seen["cold"] = cold
        assert len(launches) == inputs.LAUNCHES
        seen["device"].append(list(calls))
        return {name: [us[name]] * rounds for name in calls}

    def host_rounds(work: Any, rounds: int) -> dict[str, list[float]]:
        seen["host"] += work
        return {name: [1.0, 5.0, 4.0] for name in work}

    monkeypatch.setattr(inputs, "LAUNCHES", 2)
    monkeypatch.setattr(bench, "_STEPS", 6)
    monkeypatch.setattr(bench, "_QUICK_STEPS", 3)
    monkeypatch.setattr(workloads, "WORKLOADS", TINY)
    monkeypatch.setattr(workloads, "QUICK", ("one",))
    monkeypatch.setattr(session, "_HOST_LOAD", HOST)
    monkeypatch.setattr(session, "Plan", functools.partial(session.Plan, device="cpu"))
    monkeypatch.setattr(detect, "platform", lambda: Platform("cuda", "sm90", 32, 132))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing, "replays_us", replays_us)
    monkeypatch.setattr(timing, "host_rounds", host_rounds)
    monkeypatch.setattr(timing, "add_", lambda: (lambda x: x.add_(1), [torch.zeros(4)]))
    monkeypatch.setattr(timing, "capture", lambda call, given: SimpleNamespace(replay=lambda: call(given[0])))
    monkeypatch.setattr(timing, "copy_gb_s", lambda: 2000.0)
    monkeypatch.setattr(
        xkv.MetadataBuilder, "capture",
        lambda self, size, **given: SimpleNamespace(replay=lambda: self.build(**given)),
    )  # fmt: skip
    names = ("gpu", "driver", "toolkit", "xkv", "torch", "triton", "python")
    monkeypatch.setattr(timing, "versions", lambda: dict.fromkeys(names, "made up"))
    if not compile.interpreted():  # these are Triton's alone
        monkeypatch.setattr(session, "least", lambda at: dict.fromkeys((EMPTY, CHAIN), lambda rows: None))
    return seen


def test_a_run_without_peers(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bench.json"
    assert run("--json", str(file), "--rounds", "3") == 0
    out, _ = capsys.readouterr()
    assert "left out: seed, there is no sglang/kernels/ops/attention/kv_indices.py" in out
    assert "left out: read_table, there is no sglang/kernels/ops/kvcache/kv_read_table.py" in out
    assert out.count("skewed ") == 4 + 2  # a table for each page size, CSR at 64 and 1
    report = json.loads(file.read_text())
    assert set(report["absent"]) == set(FOUND)
    assert [(p["section"], p["page_size"], p["workload"]) for p in report["points"]] == [
        (section, size, load.name)
        for section, sizes in (("table", (64, 32, 16, 1)), ("csr", (64, 1)))
        for size in sizes
        for load in TINY
    ]
    first = report["points"][0]
    assert first["us"] == {OURS: 2.0, EMPTY: 1.0, CHAIN: 1.5}
    assert (first["entries"], first["sets"], first["capacity"]) == (17, 2, 800)
    assert first["bytes_us"] == round(17 * 68 / 2000e3, 3)
    assert report["setting"]["rounds"] == 3
    assert report["setting"]["copy_gb_s"] == 2000.0
    assert report["setting"]["command"]
    assert {row["name"]: (row["median"], row["min"]) for row in report["host"]}["torch add_"] == (4.0, 1.0)
    # the record says all that was printed
    assert run("--from", str(file)) == 0
    assert capsys.readouterr().out == out


@pytest.mark.interpret
@plots
def test_a_run_with_peers(small_gpu: dict[str, Any], stubs: Path, tmp_path: Path, capsys: Any) -> None:
    file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    argv = ["--peers", str(stubs), "--quick", "--json", str(file)]
    assert run(*argv, "--plot", str(plot)) == 0
    out, _ = capsys.readouterr()
    assert "left out: seed" not in out
    table, csr = [SEED, SERIAL, READ_TABLE, OURS, AGAIN], [OURS, TOKENS, BLOCKS, READ_TABLE, AGAIN]
    assert small_gpu["device"] == [[*names, EMPTY, CHAIN] for names in (table, table, csr, csr)]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "one 64 8.00 6.00 4.00 2.00 4.00 2.00 1.00 2.00 latency: chain 1.5 us of it" in lines
    assert "seed again over itself: geometric mean 1.012, 1.012 to 1.012" in lines
    assert plot.stat().st_size > 1000
    assert small_gpu["host"] == [
        "torch add_",
        "seed: kernel[grid]",
        "xkv: op with out=",
        "xkv: op, replay of its graph",
        *(
            f"{name}: step, {what}"
            for name in ("flashmla", "aiter_mla", "flashinfer_mla")
            for what in ("theirs", "xkv build", "xkv replay")
        ),
    ]
    report = json.loads(file.read_text())
    assert {row["over_seed"] for row in report["host"]} == {1.0}
    assert [(row["name"], row["widths"]) for row in report["widths"]] == [(SEED, 8), (OURS, 8)]
    assert [(row["name"], row["steps"]) for row in report["serving"]] == [(SEED, 3), (OURS, 3)]
    assert report["serving"][1]["compiles"] == report["serving"][1]["loads"] == 0


@pytest.mark.interpret
@pytest.mark.parametrize("spoilt", ["utils.py", "kv_indices.py"])
def test_a_wrong_peer_is_named_and_not_timed(
    spoilt: str, small_gpu: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    peer_stubs.write(tmp_path, spoilt=spoilt)
    assert run("--peers", str(tmp_path), "--only", "one", "--pages", "64,1") == 1
    name = {"utils.py": SERIAL, "kv_indices.py": SEED}[spoilt]
    said = capsys.readouterr().err.splitlines()
    start = said.index("xkv bench: wrong, and not timed:")
    # at page size 1 nothing is missing
    assert f"table, one, page 64: {name}: set 0: live entry 2 of page_table is -7, not" in said[start + 1]
    on_host = spoilt == "kv_indices.py"
    assert len(said) == start + 2 + on_host
    assert said[-1].startswith("host, flashmla, page 64, decode: step 0") == on_host
    assert [OURS in names for names in small_gpu["device"]] == [True, True, True]
    assert bool(small_gpu["host"]) != on_host


def test_quick_and_trace(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    file = write_trace(tmp_path / "mine.jsonl", (20, 10))
    argv = ["--trace", str(file), "--only", "one", "mine, 32", "--quick"]
    assert run(*argv) == 0
    out = capsys.readouterr().out
    assert "medians over 7 rounds" in out
    assert [out.count(f"\n{name} ") for name in ("one", "mine, 32", "mine, 256", "skewed")] == [4, 4, 0, 0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "kernels are timed on a GPU, and there is none"),
        (("--peers", "/nowhere"), "--peers: there is no folder /nowhere"),
        (("--json", "/nowhere/b.json"), "--json: there is no folder /nowhere"),
        pytest.param(("--plot", "/nowhere/b.png"), "--plot: there is no folder /nowhere", marks=plots),
        pytest.param(("--plot", "bench"), "--plot must end in .png, .svg or .pdf, not ''", marks=plots),
        (("--rounds", "0"), "--rounds must be at least 1, not 0"),
        (("--pages", "64,48"), "--pages takes 1, 2, 4, 8, 16, 32, 64, 128, not '48'"),
        (("--pages", ""), "--pages takes 1, 2, 4, 8, 16, 32, 64, 128, not ''"),
        (("--quick", "--only", "1 x 1M"), "--only: there is no '1 x 1M' among '1 x 128K', "),
        (("--trace", "/nowhere/t"), "--trace: /nowhere/t: No such file or directory"),
        (("--trace", "{folder}/empty"), "--trace: {folder}/empty:1: the file is empty"),
        (("--trace", "{folder}/prefill"), "--trace: {folder}/prefill: no request decodes within 131072 "),
        (("--from", "/nowhere/b.json"), "--from: /nowhere/b.json: No such file or directory"),
        (("--from", "{folder}/prefill"), "--from: {folder}/prefill:1: not a record of xkv bench: "),
        (("--from", "{folder}/empty"), "--from: {folder}/empty:1: not JSON: "),
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


@pytest.mark.parametrize(
    ("module", "argv"), [("tabulate", ()), ("tqdm", ()), ("matplotlib", ("--plot", "b.png"))]
)
def test_without_a_module(
    module: str, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run(*argv) == 2
    assert capsys.readouterr().err == f"xkv bench: {module} is missing; pip install 'xkv[bench]'\n"


@pytest.mark.gpu
@pytest.mark.slow
def test_on_the_gpu(tmp_path: Path) -> None:
    """One workload for real, beside SGLang's kernels where there are any, in a fresh process."""
    file = tmp_path / "bench.json"
    argv = ["--quick", "--rounds", "3", "--only", "256 x 4K in 128K", "--json", str(file)]
    argv += ["--peers", PEERS] if PEERS else []
    done = subprocess.run([sys.executable, "-m", "xkv", "bench", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "256 x 4K in 128K" in done.stdout
    report = json.loads(file.read_text())
    assert [(point["section"], point["page_size"]) for point in report["points"]] == [
        ("table", 64), ("table", 1), ("csr", 64), ("csr", 1),
    ]  # fmt: skip
    # how long anything takes depends on what else runs on the GPU: that it was timed is all that is asked
    for point in report["points"]:
        assert min(point["us"][name] for name in (EMPTY, OURS, CHAIN)) > 0, point
        assert (SEED in point["us"] or TOKENS in point["us"]) == bool(PEERS)
    assert report["setting"]["copy_gb_s"] > 0
    assert min(row["min"] for row in report["host"]) > 0
    assert report["compiles"]["entry.xkv_build"] >= 1
    assert report["widths"][-1]["name"] == OURS
    assert report["widths"][-1]["compiles"] <= 2
