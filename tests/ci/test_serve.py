"""ci/serve.sh: its arguments, its cases' names, and the sums that it makes of what engines' processes saw."""

from __future__ import annotations

import importlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.repo


@pytest.fixture(scope="module", autouse=True)
def _serve_on_the_path():
    sys.path.append(str(ROOT / "ci"))
    yield
    sys.path.remove(str(ROOT / "ci"))


def module(name):
    return importlib.import_module(f"serve.{name}")


def one(mode, pair=1, steps=(9.0, 2.0, 2.0, 2.0), **more):
    row = {
        "mode": mode, "pair": pair, "steps_ms": list(steps), "tokens": [list(range(200))],
        "logprobs": [["0x1p-1"]], "calls": {}, "method_us": {}, "launch_us": {}, "preempted": 3, "cached": 5,
    }  # fmt: skip
    return row | more


def seen(**more):
    """What a process with the plugin wrote."""
    counts = {"compiled": 0, "loaded": 0}
    about = {
        "said": ["xkv 0 replaces: kernel_a; leaves alone: nothing"], "facts": {"engine": "E 1"},
        "started_s": 1.0, "start": {"calls": {}}, "arguments": {}, "profiled": {}, "compiles": {
            "xkv start": counts, "xkv after": counts, "others start": counts, "others after": counts,
            "names": ["ours"], "xkv after names": [],
        },
    }  # fmt: skip
    calls = {"calls": {"kernel_a": {"served": 2}}, "launch_us": {"kernel_a": [10.0, 20.0, 30.0]}}
    return {
        "complete": True, "about": about, "mixed": [one("on+", **calls), one("off+")],
        "steady": [one(mode, pair) for pair in range(3) for mode in ("off", "on")],
        "counted": [one("on+", **calls), one("off+", launch_us={"kernel_a": [40.0]})],
        "device": {"off": {"kernel_a": [4.0, 6.0]}, "on": {"ours": [1.0]}},
    } | more  # fmt: skip


def case(*kernels):
    return module("cases").Case("llama", kernels or ("kernel_a",), {})


def failed(on, plain=None, **of):
    return [what for good, what in module("report").checks(case(**of), on, plain) if not good]


def test_everything_as_it_should_be_passes():
    assert failed(seen()) == []
    assert failed(seen(), {"mixed": [one("off")], "steady": [one("off")]}) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mixed": [one("on+", tokens=[[1]]), one("off+")]}, "tokens equal"),
        ({"mixed": [one("on+"), one("off+", logprobs=[["0x1p-2"]])]}, "logprobs equal"),
        ({"mixed": [one("on+"), one("off+", preempted=4)]}, "the same schedule"),
        ({"steady": [one("off"), one("on", tokens=[[2]])]}, "steady rounds"),
        ({"counted": []}, "served 0"),
        ({"counted": [one("on+", calls={"kernel_a": {"served": 2, "handed back": 1}})]}, "handed back 1"),
        ({"mixed": [one("on+"), one("off+"), one("spoilt")]}, "control"),
        ({"complete": False}, "every round"),
    ],
)
def test_what_is_wrong_is_said(change, says):
    on = seen(**change)
    if "mixed" in change:
        on["mixed"][0]["calls"] = {"kernel_a": {"served": 1}}
    if change == {"counted": []}:
        on["mixed"][0]["calls"] = {}
    assert any(says in what for what in failed(on)), failed(on)


def test_a_compile_after_the_start_is_said():
    on = seen()
    on["about"]["compiles"] |= {
        "xkv after": {"compiled": 1, "loaded": 0},
        "xkv after names": ["xkv.kernel.k"],
    }
    assert failed(on) == ["xkv's kernels compiled after the start: 1, loaded from a cache: 0: xkv.kernel.k"]


def test_another_process_is_compared_too():
    assert failed(seen(), {"mixed": [one("off", tokens=[[3]])], "steady": []}) == [
        "tokens equal bit for bit, on and XKV_DISABLE=1: 1 requests, 1 differ"
    ]


def test_pairs_leave_the_first_out_and_compare_within():
    rounds = [one("off", 0, [50.0] * 4), one("on", 0, [99.0] * 4)]
    for pair, (off, on) in enumerate([(4.0, 2.0), (2.0, 2.0), (4.0, 3.0)], 1):
        rounds += [one("on", pair, [9.0, on, on, on]), one("off", pair, [9.0, off, off, off])]
    found = module("report").paired(rounds)
    assert found["off"] == {"median": 4.0, "least": 2.0, "most": 4.0, "of": 3}
    assert found["on"]["median"] == 2.0
    assert found["on / off"] == {"median": 0.75, "least": 0.5, "most": 1.0, "of": 3}


def test_launches_and_text():
    made = module("report").report(case(), seen(), None)
    assert made["passed"]
    assert made["launches_us"]["kernel_a"]["host on"]["median"] == 20.0
    assert made["launches_us"]["kernel_a"]["device off"]["median"] == 5.0
    assert made["launches_us"]["ours"]["device on"]["median"] == 1.0
    json.dumps(made)
    text = "\n".join(module("shown").text("vllm x", made))
    assert "== vllm x: passed" in text
    assert "no replaced call is captured" in text


def test_empty_numbers_have_no_spread():
    report = module("report")
    assert report.spread([]) is None
    assert report.typical([]) is None
    assert report.step(one("on", steps=())) is None


def test_arguments():
    main = module("__main__")
    given = main.parser().parse_args(["vllm", "gqa", "mla", "--site", "/a", "--site", "/b", "--pairs", "7"])
    assert list(main.chosen(given)) == ["gqa", "mla"]
    assert [str(x) for x in given.site] == ["/a", "/b"]
    every = main.chosen(main.parser().parse_args(["sglang"]))
    assert list(every) == list(module("cases").SGLANG)
    with pytest.raises(SystemExit):
        main.chosen(main.parser().parse_args(["sglang", "window"]))


def test_the_script_says_how_it_is_called():
    done = subprocess.run([str(ROOT / "ci/serve.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ci/serve.sh ENGINE [CASE...]")


def test_the_cases_kernels_are_ones_that_xkv_replaces():
    from xkv.integrations.sglang import table as sglang
    from xkv.integrations.vllm import table

    cases = module("cases")
    assert {k for x in cases.VLLM.values() for k in x.kernels} <= {k.name for k in table.REPLACED}
    assert {k for x in cases.SGLANG.values() for k in x.kernels} <= {k.name for k in sglang.REPLACED}


def test_parts_are_pinned():
    parts = module("pack").parts()
    assert {"common", "vllm-0.33.0", "sglang-0.5.13", "sglang-0.5.17"} <= parts.keys()
    assert all("==" in wheel for part in parts.values() for wheel in part["wheels"])


def _fatbin(*entries):
    body = b""
    for kind, arch, payload in entries:
        head = struct.pack("<HHIQ", kind, 1, 64, len(payload)) + bytes(12) + struct.pack("<I", arch)
        body += head.ljust(64, b"\0") + payload
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def _library(section):
    names = b"\0.nv_fatbin\0.shstrtab\0"
    start = 64
    table = start + len(section) + len(names)
    header = (
        (b"\x7fELF\x02").ljust(40, b"\0")
        + struct.pack("<Q", table)
        + bytes(10)
        + struct.pack("<HHH", 64, 3, 2)
    )
    rows = b"".join(
        (struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size)).ljust(64, b"\0")
        for name, offset, size in (
            (0, 0, 0), (1, start, len(section)), (12, start + len(section), len(names)),
        )
    )  # fmt: skip
    return header.ljust(64, b"\0") + section + names + rows


def test_blanking_keeps_one_arch_and_every_offset(tmp_path):
    fatbin = module("fatbin")
    section = _fatbin((2, 80, b"A" * 64), (2, 90, b"B" * 64), (1, 90, b"C" * 64))
    section += bytes(8) + _fatbin((2, 80, b"D" * 64), (1, 75, b"E" * 64), (1, 80, b"F" * 64))
    path = tmp_path / "library.so"
    path.write_bytes(_library(section))
    before = path.read_bytes()
    assert fatbin.blank(path, 90, keep_ptx=True) == (128, 256)
    after = path.read_bytes()
    assert len(after) == len(before)
    assert {c: c * 64 in after for c in map(bytes, [[x] for x in b"ABCDEF"])} == {
        b"A": False, b"B": True, b"C": False, b"D": False, b"E": False, b"F": True,
    }  # fmt: skip
    assert fatbin.blank(path, 90, keep_ptx=False)[0] == 64
    assert fatbin.sections(b"#!/bin/sh") == []


def test_a_launch_s_times_are_those_of_all_counted_rounds() -> None:
    counted = [one("off+", launch_us={"kernel_a": times}) for times in ([40.0], [60.0, 50.0])]
    assert module("report").launches({"counted": counted})["kernel_a"]["host off"]["median"] == 50.0
