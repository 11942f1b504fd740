"""SGLang's plugin without SGLang: what is replaced, what is left alone, and what the log says."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import sglang_standins
from sglang_calls import CALLS, newest

from xkv.integrations.patching import replacing
from xkv.integrations.patching.codes import code_of
from xkv.integrations.patching.replacing import Function
from xkv.integrations.sglang import load, table

pytest_plugins = ("sglang_fixture",)
NAMES = [row.name for row in table.KERNELS]
MODULE = "sglang.kernels.standins"  # where the fixture has them
SIZES = table.FUNCTIONS[0].name


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "sglang.xkv")
    return lambda: [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == "sglang.xkv"]


def test_the_names_are_the_issues() -> None:
    assert set(NAMES) == set(CALLS)
    assert all(replacing.resolve(newest(row).launch).__name__ == row.name for row in table.KERNELS)
    assert all(callable(replacing.resolve(x.launch)) for row in table.KERNELS for x in row.codes.values())
    assert all(callable(replacing.resolve(row.around)) for row in (*table.METHODS, *table.FUNCTIONS))


def test_replaced_for_those_who_imported_it_before(engine: Path, lines: Any) -> None:
    held = {name: getattr(sglang_standins, name) for name in NAMES}
    load()
    (line,) = lines()
    assert line.startswith("INFO xkv ")
    assert line.endswith(
        f" replaces, where their modules are imported: {', '.join([*NAMES, SIZES])}; leaves alone: nothing; "
        "not in this version: nothing"
    )
    assert all(replacing.replaced(kernel) for kernel in held.values())
    assert all(kernel is getattr(sglang_standins, name) for name, kernel in held.items())
    # a second load changes nothing
    classes = [type(kernel) for kernel in held.values()]
    load()
    assert [type(kernel) for kernel in held.values()] == classes


def test_the_object_is_still_the_kernel(engine: Path) -> None:
    kernel = sglang_standins.create_flashmla_kv_indices_triton
    before, attributes = type(kernel), (kernel.fn, kernel.arg_names)
    load()
    assert isinstance(kernel, before)
    assert (kernel.fn, kernel.arg_names) == attributes
    replacing.restore(kernel)
    assert type(kernel) is before


def test_grids_are_sized_for_large_pages_too(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For those that imported the function by name before, too."""
    caller = type(sys)("sglang.caller")
    setattr(caller, SIZES, sglang_standins.get_num_page_per_block_flashmla)
    monkeypatch.setitem(sys.modules, caller.__name__, caller)
    load()
    for sizes in (sglang_standins.get_num_page_per_block_flashmla, getattr(caller, SIZES)):
        assert [sizes(n) for n in (1, 48, 64, 4096, 8192)] == [4096, 85, 64, 1, 1]
    assert sglang_standins.get_num_kv_index_blocks_flashmla(100, 8192) == 100


def test_other_code_is_left_alone_and_the_others_are_not(
    engine: Path, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(table.REPLACED)
    rows[1] = rows[1]._replace(codes={"0" * 12: newest(table.KERNELS[1])})
    rows[2] = rows[2]._replace(name="not_there_at_all")
    monkeypatch.setattr(table, "REPLACED", tuple(rows))
    load()
    (line,) = lines()
    assert line.startswith("WARNING")
    code = code_of(sglang_standins.create_flashinfer_kv_indices_triton.fn)
    assert f"; leaves alone: {NAMES[1]} (its code {code} in {MODULE} is not one that xkv knows); " in line
    assert line.endswith("; not in this version: not_there_at_all")
    left = [name for name in NAMES if not replacing.replaced(getattr(sglang_standins, name))]
    assert left == [NAMES[1], NAMES[2]]


def test_nothing_is_imported_for_it(engine: Path, lines: Any) -> None:
    """A module that fails where something is missing is the engine's to import or not."""
    text = (engine / "kernels" / "standins.py").read_text()
    (engine / "kernels" / "broken.py").write_text(f"{text}\nimport a_package_that_is_not_there\n")
    load()
    assert lines()[0].startswith("INFO")
    kernels = type(sys)("sglang.kernels")
    kernels.__path__ = [str(engine / "kernels")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sglang.kernels", kernels)
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
            importlib.import_module("sglang.kernels.broken")


def test_a_function_in_the_kernels_place_is_left_alone(
    engine: Path, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang_standins, NAMES[0], lambda *args: None)
    load()
    why = "it is no Triton kernel but a function"
    assert f"WARNING xkv leaves {MODULE}.{NAMES[0]} alone: {why}" in lines()


@pytest.mark.parametrize(("value", "off"), [("1", True), ("0", False), ("", False)])
def test_switch(value: str, off: bool, engine: Path, monkeypatch: pytest.MonkeyPatch, lines: Any) -> None:
    monkeypatch.setenv("XKV_DISABLE", value)
    load()
    assert replacing.replaced(getattr(sglang_standins, NAMES[0])) is not off
    (line,) = lines()
    assert ("XKV_DISABLE is set" in line) is off


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


def tenfold(step: Any, self: Any, x: int) -> int:
    return 10 * int(step(self, x))


def test_a_method_is_replaced_when_its_module_is_imported(
    engine: Path, monkeypatch: pytest.MonkeyPatch, lines: Any
) -> None:
    text = "class Backend:\n def step(self, x):\n  return x\n def other(self):\n  return 1\n"
    (engine / "later.py").write_text(text)
    monkeypatch.delitem(sys.modules, "sglang.later", raising=False)
    scope: dict[str, Any] = {}
    exec(compile(text, str(engine / "later.py"), "exec"), scope)
    codes = frozenset({code_of(scope["Backend"].step)})
    around = f"{__name__}:tenfold"
    rows = [Function("Backend.step", codes, around), Function("Backend.other", codes, around)]
    monkeypatch.setattr(table, "REPLACED", (*rows, Function("Backend.gone", codes, around)))
    load()
    (line,) = lines()
    assert "imported: Backend.step; leaves alone: Backend.other (its code " in line
    assert line.endswith("; not in this version: Backend.gone")
    module = importlib.import_module("sglang.later")
    assert (module.Backend().step(4), module.Backend().other()) == (40, 1)
    load()  # imported by now
    assert module.Backend().step(4) == 40
    monkeypatch.delitem(sys.modules, "sglang.later")
