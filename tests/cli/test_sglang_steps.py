"""`python -m xkv steps --drop-in`: SGLang's own calls, answered by what the plugin puts in their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sglang_standins
from test_steps import EDGES, PEERS, SMALL, by_row, differences, run

from xkv.cli import timing
from xkv.cli.steps import compared, peers
from xkv.cli.steps.compared import ROWS, Row
from xkv.integrations.patching.codes import code_of
from xkv.integrations.sglang import table

pytestmark = pytest.mark.kernel


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-ins where SGLang has its kernels; they are known."""
    (tmp_path / peers.INDEX_KERNELS).write_bytes(Path(sglang_standins.__file__).read_bytes())
    assert not peers.DropIn(tmp_path).has(peers.INDEX_KERNELS)
    code = {x.fn.__name__: code_of(x.fn) for x in vars(sglang_standins).values() if hasattr(x, "fn")}
    rows = [row._replace(codes={code[row.name]: next(iter(row.codes.values()))}) for row in table.KERNELS]
    monkeypatch.setattr(table, "KERNELS", tuple(rows))
    return tmp_path


@pytest.mark.parametrize("name", ["flashmla", "flashinfer_mla"])
def test_calls_are_answered(name: str, standins: Path, device: str) -> None:
    row = next(row for row in ROWS if row.backend == name)
    ours = peers.DropIn(standins)
    assert ours.has(row.file)
    assert not ours.has("metadata.py")
    assert differences(row, peers.SGLang(standins), device, [1, 65, 130], drop_in=ours) == []


@pytest.mark.skipif(not PEERS, reason="XKV_PEERS names no folder with SGLang's kernels")
@by_row
def test_sglang_s_calls_come_to_the_same(row: Row, device: str) -> None:
    assert PEERS
    ours = peers.DropIn(Path(PEERS))
    if not ours.has(row.file):
        pytest.skip(f"nothing of {row.file or 'this row'} is replaced")
    assert differences(row, peers.SGLang(Path(PEERS)), device, EDGES, EDGES[::-1], drop_in=ours) == []


@pytest.mark.gpu
@pytest.mark.skipif(not PEERS, reason="XKV_PEERS names no folder with SGLang's kernels")
def test_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PEERS
    monkeypatch.setattr(compared, "WORKLOADS", SMALL)
    monkeypatch.setattr(timing, "_CALLS", 10)
    file = tmp_path / "steps.json"
    assert run("--drop-in", "--peers", PEERS, "--json", str(file)) == 0
    record = json.loads(file.read_text())
    assert "replaced by xkv's" in record["ours"]
    for done in record["tables"]:
        for row in done["rows"]:
            assert row["ours"]["launches"] == row["theirs"]["launches"], row
