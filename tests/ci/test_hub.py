"""The Kernel Hub's layout: several versions, outside of the path, in one process, by `kernels`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `import xkv` fails until the copies have run: they get by without a package of that name.
LOAD = """
import json, sys
from pathlib import Path

import torch
from kernels import get_local_kernel

sys.modules["xkv"] = None
source = torch.arange(64, dtype=torch.int32).view(2, 32)
rows, lens = torch.tensor([1, 0]), torch.tensor([9, 12])


def ran(copy):
    def table(source, rows, lens):
        return copy.build_page_table(source, rows, lens, page_size=4)

    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(table, fullgraph=True, backend=backend)
    return {
        "name": copy.__name__,
        "file": copy.__file__,
        "version": copy.__version__,
        "homes": sorted({getattr(copy, name).__module__.split(".")[0] for name in copy.__all__}),
        "eager": table(source, rows, lens).tolist(),
        "compiled": compiled(source, rows, lens).tolist(),
        "ops": [target for target in graphs[0] if "build_page_table" in target],
    }


copies = [ran(get_local_kernel(Path(folder))) for folder in sys.argv[1:]]
del sys.modules["xkv"]
import xkv
print(json.dumps([*copies, ran(xkv)]))
"""

pytestmark = pytest.mark.repo


def checkout(folder: Path, version: str) -> Path:
    """What ci/hub.sh reads, with another version."""
    for name in ("ci", "xkv"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    init = folder / "xkv" / "__init__.py"
    text, found = re.subn(r'^__version__ = ".*"$', f'__version__ = "{version}"', init.read_text(), flags=re.M)
    assert found == 1
    init.write_text(text)
    return folder


def lay_out(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the checkout's ci/hub.sh, from elsewhere."""
    return subprocess.run(["bash", root / "ci/hub.sh", folder], capture_output=True, text=True, cwd="/")


@pytest.mark.slow
def test_two_versions_beside_the_installed_one(tmp_path: Path) -> None:
    if find_spec("kernels") is None:
        pytest.skip(
            "needs kernels: the dependency group hub, which ci/run.sh installs apart from a node's packages"
        )
    roots = {"1": ROOT, "2": checkout(tmp_path / "checkout", "7.8.9")}
    for name, root in roots.items():
        done = lay_out(root, tmp_path / name)
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *(tmp_path / name for name in roots)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, installed = json.loads(done.stdout)
    assert second["version"] == "7.8.9"
    assert first["version"] == installed["version"] != "7.8.9"
    assert installed["name"] == "xkv"
    assert len({copy["name"] for copy in (first, second, installed)}) == 3
    for name, copy in (("1", first), ("2", second)):
        assert Path(copy["file"]).is_relative_to(tmp_path / name)
    for copy in (first, second, installed):
        assert copy["homes"] == [copy["name"]]  # nothing of one is another's
        assert copy["ops"] == [f"{copy['name']}.build_page_table.default"]
        assert copy["eager"] == copy["compiled"] == [[8, 9, 10], [0, 1, 2]]


def test_the_layout(tmp_path: Path) -> None:
    assert lay_out(ROOT, tmp_path).returncode == 0
    variant = tmp_path / "build" / "torch-universal"
    source = {
        path.relative_to(ROOT / "xkv").as_posix()
        for path in (ROOT / "xkv").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {path.relative_to(variant).as_posix() for path in variant.rglob("*") if path.is_file()}
    assert found == source | {"LICENSE", "metadata.json"}
    metadata = json.loads((variant / "metadata.json").read_text())
    assert re.fullmatch(r"xkv_[0-9a-f]{12}", metadata["id"])  # a module's name and a namespace

    again = lay_out(ROOT, tmp_path)
    assert again.returncode == 1
    assert f"{variant} already exists" in again.stderr
