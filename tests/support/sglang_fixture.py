"""An SGLang without SGLang: its kernels' stand-ins, known to the plugin."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sglang_standins
from sglang_calls import newest

from xkv.integrations.patching import finding, importing, logs, replacing
from xkv.integrations.patching.codes import code
from xkv.integrations.patching.replacing import Replacement
from xkv.integrations.sglang import table

NAMES = [row.name for row in table.KERNELS]
MODULE = "sglang.kernels.standins"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of an SGLang with the stand-ins for kernels, imported, known and none of them replaced."""
    text = inspect.getsource(sglang_standins)
    codes = {name: code(node) for name, node in finding.functions(text)}
    rows: list[Replacement] = [row._replace(codes={codes[row.name]: newest(row)}) for row in table.KERNELS]
    rows += [row._replace(codes=frozenset({codes[row.name]})) for row in table.FUNCTIONS]
    monkeypatch.setattr(table, "REPLACED", tuple(rows))
    folder = tmp_path / "sglang"
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "standins.py").write_text(text)
    package = ModuleType("sglang")
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "sglang", package)
    monkeypatch.setitem(sys.modules, MODULE, sglang_standins)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    importing._waiting.clear()
    sizes = sglang_standins.get_num_page_per_block_flashmla
    yield folder
    importing._waiting.clear()
    logs._kept.clear()
    sglang_standins.get_num_page_per_block_flashmla = sizes
    for name in NAMES:
        kernel = getattr(sglang_standins, name)
        if replacing.replaced(kernel):
            replacing.restore(kernel)
