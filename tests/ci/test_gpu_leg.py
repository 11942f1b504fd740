"""ci/gpu.sh from its first step to its last, on a node whose HIP GPU is a stand-in (`hip_standin`).

That the script works, on a node like AMD's: not that xkv works on such a GPU, and nothing about speed.
"""

from __future__ import annotations

import json
import re
import subprocess
import xml.etree.ElementTree
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import executing
import hip_node
import hip_standin
import pytest
from packaging.requirements import Requirement
from standins import Node

SMALL = {
    "XKV_TESTS": "tests/host/test_ops.py::test_slots_at_positions",
    "XKV_DEMO": "--steps 2 --batch 2 --max-context 2048",
    "XKV_BENCH": "--quick --suite ops --pages 64 --rounds 1 --only '1 x 128K'",
    "PYTEST_XDIST_AUTO_NUM_WORKERS": "0",  # one process less: tests/ci/test_gpus.py has real workers
}
TESTS = 6  # of XKV_TESTS

pytestmark = [pytest.mark.repo, pytest.mark.slow]


def lacking(wheel: Path) -> list[str]:
    """What of the test tools the running environment has not: the script would fetch it from an index."""

    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(path).decode()).get_all("Requires-Dist", [])
    found = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": "test"}):
            try:
                fits = requirement.specifier.contains(version(requirement.name), prereleases=True)
            except PackageNotFoundError:
                fits = False
            found += [] if fits else [str(requirement)]
    return found


@pytest.fixture
def node(tmp_path: Path, wheel: Path) -> Node:
    if missing := lacking(wheel):
        pytest.skip(f"the test tools are not installed here as pinned: {', '.join(missing)}")
    return hip_node.make(tmp_path / "node")


def whole_leg(node: Node, wheel: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs it, and checks what it says and writes."""
    files = node.files()
    done = hip_node.gpu_leg(node, wheel, **SMALL, **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    out = node.folder / "out"
    assert {path: digest for path, digest in node.files().items() if not path.startswith("out/")} == files
    assert done.stdout.startswith("hip 7.0.0-stand-in torch ")
    assert re.findall(r"^== ([a-zA-Z ]+) \(\d+ s\)$", done.stdout, re.MULTILINE) == [
        "install", "GPU tier", "demo", "benchmark", "torch and triton"
    ]  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"== done: {out}, of the tests {SMALL['XKV_TESTS']} alone (")
    assert {path.name for path in out.iterdir()} == {"info.txt", "tests.xml", "demo.txt", "bench.json"}
    info = (out / "info.txt").read_text()
    assert "GPU 0: stand-in for gfx942, no GPU  gfx942 (hip, 304 compute units)" in info
    assert "tuning rows of gfx942: its own" in info
    (suite,) = xml.etree.ElementTree.parse(out / "tests.xml").getroot()
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": TESTS, "failures": 0, "errors": 0, "skipped": 0}
    demo = (out / "demo.txt").read_text()
    assert re.search(r"^device, tuning rows +gfx942 \(hip, 304 compute units\)$", demo, re.MULTILINE)
    assert re.search(r"^mismatches +0$", demo, re.MULTILINE)
    record = json.loads((out / "bench.json").read_text())
    assert record["setting"]["gpu"] == hip_standin.NAME  # so that nobody takes its times for a GPU's
    assert [point["section"] for point in record["points"]] == ["table", "csr"]
    assert record["wrong"] == []
    return done


def test_whole_leg(node: Node, wheel: Path) -> None:
    whole_leg(node, wheel)


@pytest.mark.skipif(not executing.PLACE, reason="XKV_AMD_EXECUTOR names no file: nothing is emulated")
def test_whole_leg_with_launches_that_are_emulated(node: Node, wheel: Path, tmp_path: Path) -> None:
    """Those of the tests, and the first of demo and benchmark, which check their results."""
    log = tmp_path / "emulated"
    whole_leg(
        node, wheel, STANDIN_LOG=str(log), STANDIN_SUPPORT=str(hip_node.SUPPORT),
        XKV_AMD_EXECUTOR=executing.PLACE,
    )  # fmt: skip
    executed = log.read_text().split()
    assert set(executed) == {hip_standin.ARCH}
    assert len(executed) > hip_standin.EMULATED + TESTS  # the benchmark's sample, the tests', and the demo's
