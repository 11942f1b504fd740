"""`python -m xkv bench` as a whole: what it prints, writes and returns; the GPU is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peer_stubs
import pytest
from benching import LEASTS, PEERS, TINY, needs_peers, run, timed, write_trace

from xkv.cli.bench import inputs, least, providers, records
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
from xkv.platforms import detect

pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
pytest_plugins = ("bench_gpu",)
plots = pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
reads = pytest.mark.skipif(not find_spec("msgspec"), reason="needs msgspec")


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
    small_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    right = least.candidates
    quick = {"quick": providers.Provider(lambda step: None, measured=("device_us",))}
    monkeypatch.setattr(least, "candidates", lambda at, results: right(at, results) | quick)
    file = tmp_path / "bench.json"
    assert run("--only", "one", "--pages", "1", "--suite", "ops", "--json", str(file)) == 1
    said = capsys.readouterr().err
    assert "table, one, page 1: least: step 0: there is neither page_table nor kv_indices" in said
    assert timed(small_gpu) == [[OURS], [OURS]]
    assert ["least" in point for point in json.loads(file.read_text())["points"]] == [False, False]


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
        # a time in place is a difference, and may be lost in noise
        assert min(times[name]["back_us"] for name in {OURS, LEAST} & times.keys()) > 0, point
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
