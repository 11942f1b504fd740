"""Kernels loaded by path: where they are looked for, and what of a file is taken."""

from __future__ import annotations

from pathlib import Path

import peer_stubs
import pytest

from xkv.cli.bench import loading

INDEX = next(iter(peer_stubs.FILES))
MODULE = """
import missing_package
import os.path
from math import pi as PI, tau
BASE, other = 3, 4
BASE = 3
SIZE: int = BASE + 1
if missing_package.flag:
    SIZE = 0

def decorate(f):
    f.size = SIZE
    return f

@decorate
def wanted(x: int = BASE) -> float:
    return PI * x + len(os.path.sep)

def unwanted():
    return missing_package.call()
"""


@pytest.mark.parametrize("flat", [True, False])
def test_find(flat: bool, tmp_path: Path) -> None:
    folder, empty = tmp_path / "wheel", tmp_path / "empty"
    empty.mkdir()
    peer_stubs.write(folder, flat=flat)
    for path in peer_stubs.FILES:
        found = loading.find([empty, folder], path)
        assert found == folder / (Path(path).name if flat else path)
    assert loading.find([empty], INDEX) is None
    assert loading.find([], INDEX) is None


def test_the_first_folder_wins(tmp_path: Path) -> None:
    for name in "ab":
        peer_stubs.write(tmp_path / name)
    assert loading.find([tmp_path / "b", tmp_path / "a"], INDEX) == tmp_path / "b" / INDEX


def test_a_function_comes_with_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(MODULE)
    module = loading.load_function(file, "wanted")
    assert module.wanted() == pytest.approx(3 * 3.14159265 + 1)
    assert module.wanted.size == 4
    assert not hasattr(module, "unwanted")
    assert "missing_package" not in Path(module.__file__).read_text()
    assert Path(module.__file__).name == "module.py"
    with pytest.raises(loading.PeerError, match=r"module.py:2: .*No module named 'missing_package'"):
        loading.load(file)


@pytest.mark.parametrize("name", ["nothing", "SIZE", "pi"])
def test_a_function_that_is_not_there(name: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(MODULE)
    assert loading.load_function(file, name) is None


def test_no_file() -> None:
    assert loading.load(None) is None
    assert loading.load_function(None, "wanted") is None


BAD = {
    "syntax": (b"import math\n\ndef f(:\n", "3: cannot be imported: SyntaxError: "),
    "NUL": (b"x = 1\0", "cannot be imported: "),
    "not UTF-8": (b"x = '\xff'\n", "cannot be imported: "),
    "missing": (b"import math\nimport no_module_of_ours\n", "2: cannot be imported: ModuleNotFoundError: "),
    "raises": (b"x = 1\ny = x / 0\n", "2: cannot be imported: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file(name: str, tmp_path: Path) -> None:
    content, says = BAD[name]
    file = tmp_path / "kv_indices.py"
    file.write_bytes(content)
    with pytest.raises(loading.PeerError) as info:
        loading.load(file)
    assert str(info.value).startswith(f"{file}:")
    assert says in str(info.value)
    if name in ("missing", "raises"):  # a function is cut out of it, without what it does not name
        assert loading.load_function(file, "f") is None
    else:
        with pytest.raises(loading.PeerError) as info:
            loading.load_function(file, "f")
        assert says in str(info.value)
