"""The plugin's mechanism, in a stand-in for vLLM: what is replaced when, and what is left alone and why."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from vllm_engine import ROOT, distribution, installed
from vllm_standin import FILES

from xkv.integrations.patching import importing
from xkv.integrations.patching.codes import code
from xkv.integrations.patching.replacing import Kernel, Launch, replaced
from xkv.integrations.vllm import load, table

calls: list[tuple[Any, ...]] = []


def ours(grid: Any, *args: Any, **kwargs: Any) -> bool:
    """What the stand-in's kernels launch: all but what has a None."""
    calls.append((grid, args, kwargs))
    return None not in args


def warm(*args: Any, **kwargs: Any) -> str:
    return "ours"


def rows() -> tuple[Kernel, ...]:
    """The stand-in's kernels as `table.KERNELS` has vLLM's."""
    sources = {
        "_gather": "def _gather(src, dst, n):\n    dst[:n] = src[:n]\n",
        "Slots.kernel": "def kernel(src):\n    src += 1\n",
        "_copy": "def _copy(src, dst):\n    dst[:] = src\n",
    }
    return tuple(
        Kernel(
            name,
            {code(source): Launch(f"{__name__}:ours", f"{__name__}:warm" if name == "Slots.kernel" else "")},
        )
        for name, source in sources.items()
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs the stand-in, and imports its top."""
    calls.clear()
    monkeypatch.delenv("XKV_DISABLE", raising=False)

    def install(
        version: str = "0.33.0+cu129", kernels: tuple[Kernel, ...] | None = None, **files: str
    ) -> None:
        for name, text in {**FILES, **{f"vllm/{key}.py": value for key, value in files.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        info = tmp_path / f"vllm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        distribution(tmp_path)
        monkeypatch.setattr(table, "REPLACED", rows() if kernels is None else kernels)
        importlib.import_module("vllm")

    with installed(ROOT, tmp_path):
        yield install


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "vllm.xkv")
    return lambda: [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == "vllm.xkv"]


def test_vllm_s_loader_finds_it_and_imports_stay_vllm_s(make: Any, lines: Any) -> None:
    make()
    importlib.import_module("vllm.plugins").load_general_plugins()
    assert {n for n in sys.modules if n.startswith("vllm.")} == {"vllm.plugins"}
    (line,) = set(lines())  # xkv itself may be installed, too
    assert line.startswith("INFO xkv ")
    assert (
        "in vLLM 0.33.0+cu129 replaces, where their modules are imported: _gather, Slots.kernel, _copy;"
        in line
    )
    assert line.endswith("leaves alone: nothing; not in this version: nothing")
    tables = importlib.import_module("vllm.tables")
    assert "vllm.paging" not in sys.modules
    tables._gather[(3, 2)]("a", "b", n=1)
    tables.Slots.kernel[(9,)]("c")
    assert calls == [((3, 2), ("a", "b"), {"n": 1}), ((9,), ("c",), {})]
    assert not tables._gather.calls


def test_what_was_imported_before_is_replaced_at_once(make: Any) -> None:
    make()
    paging = importlib.import_module("vllm.paging")
    load()
    paging._copy[(1,)](1, 2)
    assert calls == [((1,), (1, 2), {})]


def test_a_call_that_is_not_ours_goes_to_vllm_s_kernel(make: Any) -> None:
    make()
    load()
    paging = importlib.import_module("vllm.paging")
    paging._copy[(1,)](None, 2)
    grid = lambda meta: (1,)  # noqa: E731
    paging._copy[grid](1, 2)
    assert paging._copy.calls == [((1,), (None, 2), {}), (grid, (1, 2), {})]
    assert calls == [((1,), (None, 2), {})]


def test_warmups_reach_what_is_launched(make: Any) -> None:
    make()
    load()
    tables = importlib.import_module("vllm.tables")
    assert tables.Slots.kernel.warmup(1, grid=(1,)) == "ours"
    assert tables._gather.warmup(1, grid=(1,)) == "theirs"


def test_loaded_twice_it_replaces_once(make: Any) -> None:
    make()
    load()
    load()
    paging = importlib.import_module("vllm.paging")
    first = type(paging._copy)
    load()
    assert type(paging._copy) is first
    assert not hasattr(first.xkv_base, "xkv_base")


@pytest.mark.parametrize("version", ["0.32.1", "0.34.0", "0.33.1rc1", "0.0.0.dev1+unknown", "main"])
def test_the_text_counts_whatever_the_version_is_called(make: Any, lines: Any, version: str) -> None:
    make(version)
    load()
    assert lines()[0].startswith("INFO")
    assert f"in vLLM {version} replaces, where their modules are imported: _gather," in lines()[0]
    assert replaced(importlib.import_module("vllm.paging")._copy)


def test_a_kernel_that_was_moved_is_found(make: Any, lines: Any) -> None:
    make(**{"paging": "", "v1/__init__": "", "v1/deep": FILES["vllm/paging.py"]})
    load()
    assert lines()[0].startswith("INFO")
    importlib.import_module("vllm.v1.deep")._copy[(1,)](1, 2)
    assert calls == [((1,), (1, 2), {})]


def test_every_definition_is_replaced_and_what_is_imported_from_it(make: Any) -> None:
    make(shim="from vllm.paging import _copy\n", other=FILES["vllm/paging.py"])
    load()
    shim, other = (importlib.import_module(f"vllm.{name}") for name in ("shim", "other"))
    assert shim._copy is not other._copy
    assert replaced(shim._copy)
    assert replaced(other._copy)


def test_two_texts_of_one_name_are_told_apart(make: Any, lines: Any) -> None:
    make(other=FILES["vllm/paging.py"].replace("= src", "= src + 1"))
    load()
    (line,) = lines()
    assert line.startswith("WARNING")
    assert "_copy; leaves alone: _copy (its code " in line
    assert "in vllm.other is not one that xkv knows)" in line
    assert replaced(importlib.import_module("vllm.paging")._copy)
    assert not replaced(importlib.import_module("vllm.other")._copy)


def test_other_code_is_left_alone(make: Any, lines: Any) -> None:
    """A body that means something else under the same signature, too."""
    make(paging=FILES["vllm/paging.py"].replace("= src", "= src + 1"))
    load()
    (line,) = lines()
    assert line.startswith("WARNING")
    changed = code("def _copy(src, dst):\n    dst[:] = src + 1\n")
    assert f"leaves alone: _copy (its code {changed} in vllm.paging is not one that xkv knows);" in line
    importlib.import_module("vllm.paging")._copy[(1,)](1, 2)
    assert not calls


def test_what_is_not_there_is_named(make: Any, lines: Any) -> None:
    make(paging="x = 1\n")
    load()
    assert lines()[0].startswith("INFO")
    assert lines()[0].endswith("; not in this version: _copy")


def test_nothing_at_all_is_a_warning(make: Any, lines: Any) -> None:
    make(paging="", tables="")
    load()
    line = lines()[0]
    assert line.startswith("WARNING")
    assert "imported: nothing; leaves alone: nothing; not in this version: _gather, Slots" in line


def test_what_is_defined_when_imported_counts(make: Any, lines: Any) -> None:
    """Of two definitions in a file, one of which is known; a name that is not there after all."""
    known, other = FILES["vllm/paging.py"], FILES["vllm/paging.py"].replace("= src", "= src + 1")
    text = f"if True:\n{indent(other, '    ')}\nelse:\n{indent(known, '    ')}"
    gone = FILES["vllm/paging.py"] + "del _copy\n"
    make(paging=text, gone=gone)
    load()
    assert not replaced(importlib.import_module("vllm.paging")._copy)
    importlib.import_module("vllm.gone")
    assert lines()[1].startswith("WARNING xkv leaves vllm.paging._copy alone: its code ")
    assert lines()[2] == "WARNING xkv leaves vllm.gone._copy alone: it is not defined here"


def test_what_somebody_replaced_before_is_left_alone(make: Any, lines: Any) -> None:
    """As vLLM itself does on a CPU, and other plugins may."""
    make()
    paging = importlib.import_module("vllm.paging")
    mine: list[Any] = []
    importlib.import_module("vllm.triton_utils.dispatcher").register_kernels(
        {"vllm.paging._copy": lambda *args: mine.append(args)}
    )
    load()
    paging._copy[(1,)](1, 2)
    assert (calls, mine) == ([], [(1, 2)])
    assert (
        "WARNING xkv leaves vllm.paging._copy alone: it is no Triton kernel but a KernelOverride" in lines()
    )


@pytest.mark.parametrize("value", ["1", "yes"])
def test_disabled(make: Any, lines: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XKV_DISABLE", value)
    make()
    load()
    assert lines()[0].endswith("replaces nothing: XKV_DISABLE is set")
    assert not importing._waiting
    assert not replaced(importlib.import_module("vllm.paging")._copy)


def test_not_disabled_by_zero(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XKV_DISABLE", "0")
    make()
    load()
    assert replaced(importlib.import_module("vllm.paging")._copy)


def test_outside_of_vllm_it_says_so() -> None:
    with installed(), pytest.raises(RuntimeError, match="vllm is not imported"):
        load()
