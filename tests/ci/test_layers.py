"""What of xkv may import what: rooms on levels, no import that runs upwards, and no cycle of modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import xkv

ROOT = Path(__file__).resolve().parents[2]

# A room is a file or a folder of xkv/. It imports from itself and from rooms of lower levels: of lines above.
LEVELS = (
    ("platforms", "shard", "status", "switches"),
    ("cuda", "draft", "rocm"),
    ("params",),
    ("chosen", "expanded"),
    ("arguments", "dispatch", "kernel", "reference", "torch_library"),
    ("launch",),
    ("metadata", "ops"),
    ("precompile",),
    ("__init__",),
    ("integrations",),
    ("cli",),
    ("__main__",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

pytestmark = pytest.mark.repo


def name_of(path: Path) -> str:
    """xkv/launch/grid.py -> "xkv.launch.grid"; of a package: its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((ROOT / "xkv").rglob("*.py"))}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def package_of(module: str) -> str:
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def imports(text: str, package: str) -> Iterator[str]:
    """The modules of xkv that a file names, wherever: in functions, for types alone, and in strings.

    A string counts if it is ".module" or ".module:function", as what `importlib` is given, seen from the
    file's package or one around it; a package's name does not, which is what such strings are made of.
    """
    parts = package.split(".")
    around = [parts[:n] for n in range(len(parts), 0, -1)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = ".".join([*around[node.level - 1], *([node.module] if node.module else [])])
            assert module in FILES, module
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if whole in FILES else module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"(\.\w[\w.]*)(?::\w+)?", node.value)
            for outer in around if named else ():
                whole = ".".join(outer) + named[1]
                if whole in FILES and FILES[whole].name != "__init__.py":
                    yield whole
                    break


def absolute(text: str) -> list[str]:
    """What a file calls xkv or xkv.module; a copy that is loaded under another name would get another's."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"^(xkv\.[\w.]+)(?::\w+)?$", node.value)
    return [name for name in found if name == "xkv" or name in FILES]


GRAPH = {
    module: set(imports(path.read_text(), package_of(module))) - {module} for module, path in FILES.items()
}


def upwards(graph: dict[str, set[str]]) -> list[str]:
    """The imports to a room of the same level or a higher one."""
    return [
        f"{module} imports {imported}"
        for module, found in graph.items()
        for imported in sorted(found)
        if room_of(module) != room_of(imported) and LEVEL_OF[room_of(imported)] >= LEVEL_OF[room_of(module)]
    ]


def test_every_room_has_a_level() -> None:
    assert set(LEVEL_OF) == set(map(room_of, FILES))
    assert len(LEVEL_OF) == sum(map(len, LEVELS))


def test_no_public_name_is_a_module_s_too() -> None:
    """Whoever imports that module puts it in the name's place."""
    assert not {room_of(module) for module in FILES} & set(xkv.__all__)


def test_no_import_runs_upwards() -> None:
    assert upwards(GRAPH) == []


def test_no_modules_import_one_another() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises a CycleError that names them


@pytest.mark.parametrize("module", FILES)
def test_no_module_imports_the_package_by_its_name(module: str) -> None:
    assert absolute(FILES[module].read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "from ...ops.page_table import build_page_table",
        "from ...ops import page_table",
        "def f():\n    from ...ops import page_table",
        "if TYPE_CHECKING:\n    from ...ops.page_table import build_page_table",
        "import_module('.ops.page_table', 'xkv')",
        "PATH = '.ops.page_table:build_page_table'",
    ],
)
def test_every_way_to_import_is_seen(text: str) -> None:
    assert set(imports(text, "xkv.cli.bench")) == {"xkv.ops.page_table"}


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("from . import info", "xkv.cli.info"),
        ("from .bench import records", "xkv.cli.bench.records"),
        ("from .bench.records import read", "xkv.cli.bench.records"),
        ("from .. import __version__", "xkv"),
    ],
)
def test_a_relative_import_is_seen_from_its_package(text: str, module: str) -> None:
    assert set(imports(text, "xkv.cli")) == {module}


@pytest.mark.parametrize(
    "text",
    [
        "import xkv",
        "import os, xkv.ops",
        "from xkv.ops import KVIndices",
        "def f():\n    from xkv import ops",
        "import_module('xkv.ops')",
        "PATH = 'xkv.ops:build_page_table'",
    ],
)
def test_the_package_s_name_is_found(text: str) -> None:
    assert len(absolute(text)) == 1


def test_what_is_planted_is_found() -> None:
    """As it was: what registers the ops imports them, which import it."""
    planted = GRAPH | {"xkv.torch_library": {"xkv.ops"}}
    assert upwards(planted) == ["xkv.torch_library imports xkv.ops"]
    with pytest.raises(CycleError):
        TopologicalSorter(planted).prepare()
