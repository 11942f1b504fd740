"""SGLang's plugin without SGLang: what is replaced, what is left alone, and what the log says."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sglang_standins
from sglang_calls import CALLS

from xkv.integrations import sglang as ours
from xkv.integrations.codes import code_of
from xkv.integrations.sglang import kernels, later, plugin, replace, table

pytest_plugins = ("sglang_fixture",)
NAMES = [row.name for row in table.KERNELS]


def test_the_names_are_the_issues() -> None:
    assert set(NAMES) == set(CALLS)
    assert all(row.launch is getattr(kernels, row.name) for row in table.KERNELS)


def test_replaced_for_those_who_imported_it_before(engine: ModuleType) -> None:
    held = {name: getattr(sglang_standins, name) for name in NAMES}
    level, line = plugin.install()
    assert level == logging.INFO
    assert line.endswith(f"SGLang 0.5.23: replaced {', '.join(NAMES)}")
    assert all(replace.replaced(kernel) for kernel in held.values())
    assert all(kernel is getattr(sglang_standins, name) for name, kernel in held.items())
    # a second load changes nothing
    classes = [type(kernel) for kernel in held.values()]
    plugin.install()
    assert [type(kernel) for kernel in held.values()] == classes


def test_the_object_is_still_the_kernel(engine: ModuleType) -> None:
    kernel = sglang_standins.create_flashmla_kv_indices_triton
    before, attributes = type(kernel), (kernel.fn, kernel.arg_names)
    plugin.install()
    assert isinstance(kernel, before)
    assert (kernel.fn, kernel.arg_names) == attributes
    replace.restore(kernel)
    assert type(kernel) is before


def test_grids_are_sized_for_large_pages_too(engine: ModuleType) -> None:
    plugin.install()
    ((target, hook, kind),) = engine.hooks
    assert (target, kind) == ("sglang_standins.get_num_page_per_block_flashmla", "around")
    theirs = sglang_standins.get_num_page_per_block_flashmla
    assert [hook(theirs, n) for n in (1, 48, 64, 4096, 8192)] == [4096, 85, 64, 1, 1]


@pytest.mark.parametrize("found", ["0.5.12.post1", "0.5.24", "1.0", "0.0.0.dev1+unknown", "main"])
def test_an_unknown_version_is_left_alone(
    found: str, engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "_version", lambda: found)
    level, line = plugin.install()
    assert level == logging.WARNING
    assert f"SGLang {found}: everything is left alone: the versions known are" in line
    assert not any(replace.replaced(getattr(sglang_standins, name)) for name in NAMES)
    assert engine.hooks == []


def test_an_unknown_signature_is_left_alone_and_the_others_are_not(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *rest = table.KERNELS
    strange = second._replace(codes=frozenset({"0" * 12}))
    gone = rest[0]._replace(modules=("sglang_nowhere",))
    monkeypatch.setattr(table, "KERNELS", (first, strange, gone, *rest[1:]))
    level, line = plugin.install()
    assert level == logging.WARNING
    assert f"not in this version: {gone.name}; left alone: {second.name} (its code " in line
    assert "(req_to_token_ptr, req_pool_indices_ptr, page_kernel_lens_ptr, kv_indptr," in line
    left = [name for name in NAMES if not replace.replaced(getattr(sglang_standins, name))]
    assert left == [second.name, gone.name]


def test_a_module_that_cannot_be_imported_is_named(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sglang_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(table, "KERNELS", (table.KERNELS[0]._replace(modules=("sglang_broken",)),))
    level, line = plugin.install()
    assert level == logging.WARNING
    assert "sglang_broken cannot be imported (No module named 'a_package_that_is_not_there')" in line


def test_a_function_in_the_kernels_place_is_left_alone(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang_standins, NAMES[0], lambda *args: None)
    level, line = plugin.install()
    assert level == logging.WARNING
    assert f"{NAMES[0]} (it is no Triton kernel but a function)" in line


@pytest.mark.parametrize(("value", "off"), [("1", True), ("0", False), ("", False)])
def test_switch(
    value: str, off: bool, engine: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("XKV_DISABLE", value)
    with caplog.at_level(logging.INFO, logger=ours.__name__):
        ours.load()
    assert replace.replaced(getattr(sglang_standins, NAMES[0])) is not off
    (record,) = caplog.records
    assert ("XKV_DISABLE is set" in record.message) is off


def test_code_is_what_is_run_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def source(text: str) -> Any:
        name = f"sglang_text_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name).f

    plain = code_of(source("def f(a, B: int = 1):\n    return a // B\n"))
    told = "def f(\n    a,  # a comment\n    B: int = 1,\n):\n    'What it does.'\n    return (a // B)\n"
    assert code_of(source(told)) == plain
    for other in (
        "def f(a, B=1):\n    return a // B\n", "def f(a, B: int = 2):\n    return a // B\n",
        "def f(a, B: int = 1):\n    return a % B\n",
    ):  # fmt: skip
        assert code_of(source(other)) != plain


def test_a_method_is_replaced_when_its_module_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    text = "class Backend:\n def step(self, x):\n  return x\n def other(self):\n  return 1\n"
    (tmp_path / "sglang_later.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "sglang_later", raising=False)
    (tmp_path / "sglang_same.py").write_text(text)
    same = importlib.import_module("sglang_same")
    codes = frozenset({code_of(same.Backend.step)})

    def around(step: Any, self: Any, x: int) -> int:
        return 10 * step(self, x)

    later.replace(later.Method("sglang_later", "Backend", "step", codes, around))
    later.replace(later.Method("sglang_later", "Backend", "other", frozenset({"0"}), around))
    later.replace(later.Method("sglang_later", "Backend", "gone", codes, around))
    with caplog.at_level(logging.INFO, logger="xkv.integrations.sglang"):
        module = importlib.import_module("sglang_later")
    assert (module.Backend().step(4), module.Backend().other()) == (40, 1)
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING", "INFO"]
    later.replace(later.Method("sglang_later", "Backend", "step", codes, around))  # imported by now
    assert module.Backend().step(4) == 40
