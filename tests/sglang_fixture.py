"""An SGLang without SGLang: its kernels' stand-ins, known to the plugin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import sglang_standins

from xkv.integrations.codes import code_of
from xkv.integrations.sglang import plugin, replace, table

NAMES = [row.name for row in table.KERNELS]


def standin(name: str) -> replace.Replacement:
    """The row of a kernel whose code is the stand-in's."""
    row = next(row for row in table.KERNELS if row.name == name)
    codes = frozenset({code_of(getattr(sglang_standins, name).fn)})
    return row._replace(modules=("sglang_nowhere", "sglang_standins"), codes=codes)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An SGLang of a known version with the stand-ins for kernels, and none of them replaced."""
    monkeypatch.setattr(table, "KERNELS", tuple(map(standin, NAMES)))
    monkeypatch.setattr(table, "METHODS", ())
    monkeypatch.setattr(plugin, "_version", lambda: "0.5.23")
    registry = ModuleType("sglang.srt.plugins.hook_registry")
    registry.hooks = []
    registry.HookRegistry = SimpleNamespace(register=lambda *args: registry.hooks.append(args))
    registry.HookType = SimpleNamespace(AROUND="around")
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    yield registry
    for name in NAMES:
        kernel = getattr(sglang_standins, name)
        if replace.replaced(kernel):
            replace.restore(kernel)
