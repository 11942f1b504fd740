"""`python -m xkv bench` as a whole: what it prints, writes and returns; the GPU is made up."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer_stubs
import pytest
import torch
from benching import PEERS, TINY, needs_peers, write_trace

import xkv
from xkv.cli import bench
from xkv.cli.bench import inputs, least, predecessor, providers, records, session, timing, workloads
from xkv.cli.bench.cases import (
    ADD,
    AGAIN,
    LEAST,
    OURS,
    PLUGIN,
    READ_TABLE,
    REPLAY,
    SGLANG,
    SGLANG_512,
    STEPS,
    TOKEN_BLOCKS,
)  # fmt: skip
from xkv.cli.bench.sglang import Plugin, SGLang
from xkv.cli.bench.workloads import Workload
from xkv.launch import compile
from xkv.platforms import detect
from xkv.platforms.detect import CPU, Platform

pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
plots = pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
reads = pytest.mark.skipif(not find_spec("msgspec"), reason="needs msgspec")
US = {SGLANG: 8.0, AGAIN: 8.1, SGLANG_512: 6.0, READ_TABLE: 4.0, TOKEN_BLOCKS: 7.0, OURS: 2.0, LEAST: 1.6,
      "slow": 1.75, "quick": 1.5, "lost": -0.1}  # fmt: skip
LEASTS = ["slow", "quick", "lost"]


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(argv))


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if there were a GPU: on the CPU, in little, with made-up times; what was asked to be timed."""
    if compile.interpreted():
        pytest.skip("slow in the interpreter, and says no more")
    seen: dict[str, Any] = {"device": [], "back": [], "host": [], "rounds": [], "before": 0}

    def in_place(
        calls: Any, before: Any, launches: Any, warm: Any, rounds: int, cold: bool, stream: bool
    ) -> dict[str, list[float]]:
        seen["cold"], seen["stream"] = cold, stream
        assert len(launches) == inputs.LAUNCHES
        for one in launches:
            before(one)
        seen["device"].append(list(calls))
        seen["rounds"].append(rounds)
        return {name: [US[name]] * rounds for name in calls}

    def back_to_back(
        calls: Any, launches: Any, warm: Any, rounds: int, cold: bool, stream: bool
    ) -> dict[str, list[float]]:
        assert (cold, stream) == (seen["cold"], seen["stream"])
        assert len(launches) == inputs.LAUNCHES
        seen["back"].append(list(calls))
        return {name: [US[name] / 2] * rounds for name in calls}

    def candidates(at: Any, results: Any) -> Any:
        """In place of Triton kernels: xkv's op."""
        if at.case.backend:
            return {}
        ours = providers.makers(at, SGLang([]), Plugin([]))[OURS]()
        ours = dataclasses.replace(ours, measured=("device_us", "back_us"))
        return dict.fromkeys(LEASTS, ours)

    def early(lens: Any) -> None:
        seen["before"] += 1

    def host_rounds(calls: Any, steps: Any, rounds: int) -> dict[str, list[float]]:
        seen["host"].append(list(calls))
        return {name: [1.0, 5.0, 4.0] for name in calls}

    monkeypatch.setattr(inputs, "LAUNCHES", 2)
    monkeypatch.setattr(bench, "_STEPS", 6)
    monkeypatch.setattr(bench, "_QUICK_STEPS", 3)
    monkeypatch.setattr(workloads, "WORKLOADS", TINY)
    monkeypatch.setattr(session, "_COMPILE_LOAD", Workload("compiles", (60, 130), 200))
    monkeypatch.setattr(session, "Plan", functools.partial(session.Plan, device="cpu"))
    monkeypatch.setattr(detect, "platform", lambda: Platform("cuda", "sm90", 32, 132))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing, "in_place", in_place)
    monkeypatch.setattr(timing, "back_to_back", back_to_back)
    monkeypatch.setattr(least, "candidates", candidates)
    monkeypatch.setitem(predecessor.PREDECESSORS, "early", early)
    monkeypatch.setattr(timing, "host_rounds", host_rounds)
    monkeypatch.setattr(timing, "launches", lambda call, step: 3)
    monkeypatch.setattr(timing, "copy_gb_s", lambda: 2000.0)
    monkeypatch.setattr(
        xkv.MetadataBuilder, "capture",
        lambda self, size, **options: SimpleNamespace(replay=lambda: self.build(**options)),
    )  # fmt: skip
    names = ("gpu", "driver", "toolkit", "xkv", "torch", "triton", "python")
    monkeypatch.setattr(timing, "versions", lambda: dict.fromkeys(names, "made up"))
    return seen


def timed(seen: dict[str, Any]) -> list[list[str]]:
    """Who was timed in place at each point; before the first one, and of least's, who was tried."""
    first, *rest = seen["device"]
    assert OURS in first
    assert LEAST not in first
    return [names for names in rest if names != LEASTS]


@reads
def test_a_run_without_peers(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bench.json"
    assert run("--json", str(file), "--rounds", "3") == 0
    out, _ = capsys.readouterr()
    for name in peer_stubs.FILES:
        assert f"left out: what needs {name}" in out
    report = json.loads(file.read_text())
    assert set(report["missing"]) == set(peer_stubs.FILES)
    ops = [point for point in report["points"] if point["section"] != "steps"]
    assert [(p["section"], p["page_size"], p["workload"]) for p in ops] == [
        (section, size, load.name)
        for section, sizes in (("table", (64, 32, 16, 1)), ("csr", (64, 1)))
        for size in sizes
        for load in TINY
    ]
    steps = report["points"][len(ops) :]
    assert [(p["backend"], p["page_size"], p["mode"], p["workload"]) for p in steps] == [
        (case.backend, case.page_size, case.mode, load.name) for case in STEPS for load in TINY
    ]
    first = report["points"][0]
    columns = {"launches": 3, "device_us": 2.0, "back_us": 1.0, "host_us": 4.0, "host_min_us": 1.0}
    assert first["times"] == {
        OURS: columns, LEAST: {"device_us": 1.6, "back_us": 0.8}, ADD: {"host_us": 4.0, "host_min_us": 1.0},
    }  # fmt: skip
    # the fastest of those that were not lost in the noise
    assert first["least"] == "quick"
    assert (first["entries"], first["sets"], first["capacity"]) == (17, 2, 800)
    assert (first["min_len"], first["max_len"]) == (1, 700)
    assert set(steps[0]["times"]) == {OURS, REPLAY, ADD}
    assert "least" not in steps[0]
    assert set(steps[0]["times"][REPLAY]) == {"launches", "host_us", "host_min_us"}
    assert report["setting"]["rounds"] == 3
    assert (report["setting"]["predecessor"], report["setting"]["issued"]) == ("add", "graph")
    assert small_gpu["before"] == 0
    # least's are tried in three rounds; the first point is timed once before all, and that does not count
    assert small_gpu["device"][:3] == [[OURS], LEASTS, [OURS, LEAST]]
    assert small_gpu["device"].count(LEASTS) == len(ops)
    assert len(timed(small_gpu)) == len(report["points"])
    assert report["setting"]["copy_gb_s"] == 2000.0
    assert report["setting"]["command"]
    # the record says all that was printed
    assert run("--from", str(file)) == 0
    assert capsys.readouterr().out == out
    again = tmp_path / "again.json"
    records.write(records.read(file), again)
    assert again.read_text() == file.read_text()


@plots
def test_a_run_with_peers(small_gpu: dict[str, Any], stubs: Path, tmp_path: Path, capsys: Any) -> None:
    file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    assert run("--peers", str(stubs), "--quick", "--json", str(file), "--plot", str(plot)) == 0
    out, _ = capsys.readouterr()
    assert "left out" not in out
    table, csr = [SGLANG, SGLANG_512, READ_TABLE, OURS], [SGLANG, TOKEN_BLOCKS, READ_TABLE, OURS]
    step = [SGLANG, OURS]
    ops = [[*names, LEAST] for names in (table, table, csr, csr)]
    assert timed(small_gpu) == [[*names, AGAIN] for names in (*ops, *[step] * len(STEPS))]
    assert small_gpu["back"] == [*ops, *[step] * len(STEPS)]
    assert small_gpu["device"][0] == table
    assert small_gpu["rounds"][:3] == [7, 3, 7]
    assert small_gpu["host"] == [
        [*names, ADD] for names in (table, table, csr, csr, *[[*step, REPLAY]] * len(STEPS))
    ]
    assert small_gpu["cold"]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "one 64 8.00 6.00 4.00 2.00 1.60 4.00 3.00 2.00 1.00 0.80 4.00 2.00 1.25" in lines
    assert "one flashmla 64 verify 4 3 3 3 8.00 2.00 4.00 1.00 4.00 4.00 4.00 4.00" in lines
    assert "sglang-0.5.23 again over itself: geometric mean 1.012, 1.012 to 1.012" in lines
    hosts = ", ".join(f"{name} 4.0" for name in (*table, ADD))
    assert f"us of the host a call, without a sync, the median: {hosts}" in lines
    assert "flashmla, page 64, decode: SGLang's casts the lengths again in every layer" in lines
    assert plot.stat().st_size > 1000
    report = json.loads(file.read_text())
    assert [(row["name"], row["widths"]) for row in report["widths"]] == [(SGLANG, 8), (OURS, 8)]
    assert [(row["name"], row["steps"]) for row in report["serving"]] == [(SGLANG, 3), (OURS, 3)]
    assert report["serving"][1]["compiles"] == report["serving"][1]["loads"] == 0


@pytest.mark.parametrize(
    ("spoilt", "name", "steps"),
    [("utils.py", SGLANG_512, ()), ("kv_indices.py", SGLANG, ("flashmla", "cutlass_mla", "trtllm_mla"))],
)
def test_a_wrong_provider_is_named_and_not_timed(
    spoilt: str, name: str, steps: tuple[str, ...], small_gpu: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    peer_stubs.write(tmp_path, spoilt=spoilt)
    assert run("--peers", str(tmp_path), "--only", "one", "--pages", "64,1") == 1
    said = capsys.readouterr().err.splitlines()
    said = said[said.index("xkv bench: wrong, and not timed:") + 1 :]
    wrong = [case for case in STEPS if case.backend in steps]
    where = ["table, one, page 64"]
    where += [f"steps, one, {case.backend}, page {case.page_size}, {case.mode}" for case in wrong]
    assert [line.split(": page_table: live entry ")[0] for line in said] == [
        f"{place}: {name}: step 0" for place in where
    ]
    assert " live entry 2 is -7, not " in said[0]  # not what another wrote there before
    # at page size 1 nothing is missing; whoever is right is timed
    cases = ["table 64", "table 1", "csr 64", "csr 1", *STEPS]
    right = {case for case, names in zip(cases, timed(small_gpu), strict=True) if name in names}
    assert right == {"table 1"} | ({"csr 64", "csr 1", *STEPS} - {*wrong} if name == SGLANG else set())
    assert all(OURS in names for names in timed(small_gpu) + small_gpu["host"])


def test_what_fails_is_named_and_not_timed(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    peer_stubs.write(tmp_path)
    file = tmp_path / "sglang" / "kernels" / "ops" / "kvcache" / "kv_read_table.py"
    file.write_text(
        "def build_kv_read_table(**arguments):\n    raise RuntimeError('out of registers\\nand more')\n"
    )
    assert run("--peers", str(tmp_path), "--only", "one", "--pages", "64", "--suite", "ops") == 1
    out, err = capsys.readouterr()
    assert "a server's steps" not in out
    assert err.splitlines()[-2:] == [
        f"table, one, page 64: {READ_TABLE}: RuntimeError: out of registers",
        f"csr, one, page 64: {READ_TABLE}: AttributeError: module 'peer_kv_read_table' has no attribute"
        " 'build_kv_read_table_packed'",
    ]
    assert timed(small_gpu) == [
        [SGLANG, SGLANG_512, OURS, LEAST, AGAIN], [SGLANG, TOKEN_BLOCKS, OURS, LEAST, AGAIN],
    ]  # fmt: skip


def test_xkv_wrong_is_not_timed(
    small_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(providers, "page_table", lambda at, out: lambda rows, lens: out.zero_())
    assert run("--only", "one", "--pages", "64", "--suite", "ops") == 1
    assert "table, one, page 64: xkv: step 0: page_table: live entry 0 is 0, not" in capsys.readouterr().err
    assert timed(small_gpu) == [[OURS, LEAST]]  # that of csr


def test_a_wrong_least_is_named_and_not_timed(
    small_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    right = least.candidates

    def spoilt(at: Any, results: Any) -> Any:
        made = right(at, results)
        made["quick"] = dataclasses.replace(made["quick"], call=lambda step: None)
        return made

    monkeypatch.setattr(least, "candidates", spoilt)
    assert run("--only", "one", "--pages", "64", "--suite", "ops") == 1
    assert (
        "table, one, page 64: least: step 0: page_table: live entry 0 is -7, not" in capsys.readouterr().err
    )
    assert timed(small_gpu) == [[OURS], [OURS]]


def test_another_kernel_before_and_a_stream(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bench.json"
    argv = ["--only", "one", "--pages", "64", "--suite", "ops", "--json", str(file)]
    assert run(*argv, "--predecessor", "early", "--stream") == 0
    said = capsys.readouterr().out
    assert "L2 cold, issued on a stream" in said
    assert "in place: each after an add that lets the next kernel start early, less" in said
    setting = json.loads(file.read_text())["setting"]
    assert (setting["predecessor"], setting["issued"]) == ("early", "stream")
    assert small_gpu["stream"]
    assert small_gpu["before"] == len(small_gpu["device"]) * inputs.LAUNCHES


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


def test_quick_trace_and_suite(small_gpu: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    file = write_trace(tmp_path / "mine.jsonl", (20, 10))
    argv = ["--trace", str(file), "--only", "one", "mine, 32", "--quick", "--warm", "--suite"]
    for suite, lines in (("ops", 4), ("steps", len(STEPS))):
        assert run(*argv, suite) == 0
        out = capsys.readouterr().out
        assert "medians over 7 rounds, L2 warm" in out
        counts = [out.count(f"\n{name} ") for name in ("one", "mine, 32", "mine, 256", "skewed")]
        assert counts == [lines, lines, 0, 0]
        assert ("whole metadata steps" in out) == (suite == "steps")
        assert ("a server's steps" in out) == (suite == "ops")
    assert not small_gpu["cold"]


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


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("peers", [(), pytest.param(("--peers", PEERS or ""), marks=needs_peers)])
@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["graph", "stream"])
def test_on_the_gpu(stream: tuple[str, ...], peers: tuple[str, ...], tmp_path: Path) -> None:
    """A workload of each suite for real, beside SGLang's kernels where there are any, in a fresh process."""
    file = tmp_path / "bench.json"
    argv = ["--rounds", "3", "--pages", "64,1", "--only", "256 x ~4K in 128K", "--json", str(file), *peers]
    argv += stream
    if stream and detect.platform().supports_pdl:
        argv += ["--predecessor", "early"]
    done = subprocess.run([sys.executable, "-m", "xkv", "bench", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    points = {(p["section"], p.get("backend", ""), p["page_size"]): p for p in report["points"]}
    assert {("table", "", 64), ("table", "", 1), ("csr", "", 64), ("csr", "", 1)} < points.keys()
    # how long anything takes depends on what else runs on the GPU: that it was timed is all that is asked
    for point in report["points"]:
        times = point["times"]
        single = {OURS} if point["section"] == "steps" else {OURS, LEAST}
        # a time in place is a difference, and may be lost in noise
        assert min(times[name]["back_us"] for name in single & times.keys()) > 0, point
        assert OURS in times, point
        assert times[OURS]["launches"] == 1, point
        assert point["section"] == "steps" or (SGLANG in times) == bool(peers)
        if point["section"] == "steps":
            assert times[REPLAY]["launches"] == 1, point
            if PLUGIN in times:
                assert times[PLUGIN]["launches"] == times[SGLANG]["launches"], point
    assert any(PLUGIN in point["times"] for point in report["points"]) == bool(peers)
    assert report["setting"]["copy_gb_s"] > 0
    assert report["compiles"]["entry.xkv_build"] >= 1
    assert report["widths"][-1]["name"] == OURS
    assert report["widths"][-1]["compiles"] <= 2
