"""The table of the engines' versions: it is what the record and xkv's own tables say. No network."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xkv.integrations.patching.codes import code
from xkv.integrations.patching.replacing import Kernel, Launch

pytestmark = pytest.mark.repo
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def support() -> Any:
    spec = importlib.util.spec_from_file_location("support", ROOT / "ci" / "support.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(support: Any) -> Any:
    return json.loads(support.JSON.read_text())


def test_the_document_is_what_the_record_says(support: Any, record: Any) -> None:
    text = support.DOC.read_text()
    assert support.document(text, record) == text, "run ci/support.py --doc"


def test_every_text_that_is_replaced_is_in_some_version(support: Any, record: Any) -> None:
    for name, engine in support.ENGINES.items():
        for row in engine.rows:
            found = {c for version in record[name].values() for _, c in version.get(row.name, [])}
            assert set(row.codes) <= found, row.name


def test_every_other_text_is_explained(support: Any, record: Any) -> None:
    left = support.DOC.read_text().split("## Texts that are not replaced")[1]
    for name, engine in support.ENGINES.items():
        for row in engine.rows:
            found = {c for version in record[name].values() for _, c in version.get(row.name, [])}
            assert all(c in left for c in found - set(row.codes)), row.name


WHEELS = {"1.0": "a", "1.1": "b", "1.2": "c", "1.10": "d"}


def test_the_newest_three_are_compared(support: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "ENGINES", {"engine": support.Engine("Engine", (), "1")})
    same = {"engine": {version: {"f": [["m", wheel]]} for version, wheel in WHEELS.items()}}

    def compared(record: Any) -> list[str]:
        reads = lambda name, version, wheel: {"f": [["m", wheel]]}  # noqa: E731
        found: list[str] = support.differences(record, lambda name, since: WHEELS, reads)
        return found

    assert compared(same) == []
    assert compared({"engine": same["engine"] | {"1.0": {}}}) == []
    assert compared({"engine": same["engine"] | {"1.1": {}}}) == [
        "Engine 1.1 is not what engines-support.json says"
    ]
    del same["engine"]["1.10"]
    assert compared(same) == ["Engine 1.10 is not in engines-support.json: run ci/support.py"]


def test_a_wheel_is_read_once(support: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    text = "def f(a):\n    return a\n"
    row = Kernel("f", {code(text): Launch("")})
    monkeypatch.setattr(support, "ENGINES", {"engine": support.Engine("Engine", (row,), "1")})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("engine/deep/kernels.py", text)
        members.writestr("engine/other.py", "def g(a):\n    return a\n")
        members.writestr("elsewhere/kernels.py", text)
    wheel = tmp_path / "engine.whl"
    wheel.write_bytes(file.getvalue())
    package = SimpleNamespace(url=wheel.as_uri(), filename=wheel.name)
    want = {"f": [["engine.deep.kernels", code(text)]]}
    assert support.read("engine", "1.0", package, tmp_path / "cache") == want
    wheel.unlink()
    assert support.read("engine", "1.0", package, tmp_path / "cache") == want
    assert not (tmp_path / "cache" / "engine-1.0" / "engine" / "other.py").exists()


@pytest.mark.slow
def test_the_newest_versions(support: Any, record: Any) -> None:
    """What the workflow `engines` checks; on demand alone, as an engine's new version is no fault of ours."""
    if not os.environ.get("XKV_CHECK_ENGINES"):
        pytest.skip("XKV_CHECK_ENGINES is not set: it reads the package index")
    requests = pytest.importorskip("requests")
    pytest.importorskip("pypi_simple")
    try:
        versions = {name: support.published(name, x.since) for name, x in support.ENGINES.items()}
    except requests.exceptions.ConnectionError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    assert support.differences(record, lambda name, since: versions[name]) == []
