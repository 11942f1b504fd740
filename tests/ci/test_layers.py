"""What of xkv may import what: rooms on levels, no import that runs upwards, and no cycle of modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A room is a file or a folder of xkv/. It imports from itself and from rooms of lower levels: of lines above.
LEVELS = (
    ("platforms", "status", "switches"),
    ("cuda", "params", "rocm"),
    ("arguments", "dispatch", "kernel", "reference", "torch_library"),
    ("launch", "outputs"),
    ("metadata", "ops"),
    ("warmup",),
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


def imports(text: str) -> Iterator[str]:
    """The modules of xkv that a file names, wherever: in functions, for types alone, and in strings.

    A string counts if it is "module" or "module:function", as what `importlib` is given; a package's name
    does not, which is what such strings are made of.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            module = node.module or ""
            for alias in node.names if module in FILES else ():
                whole = f"{module}.{alias.name}"
                yield whole if whole in FILES else module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"(xkv\.[\w.]+)(?::\w+)?", node.value)
            if named and named[1] in FILES and FILES[named[1]].name != "__init__.py":
                yield named[1]


GRAPH = {module: set(imports(path.read_text())) - {module} for module, path in FILES.items()}


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


def test_no_import_runs_upwards() -> None:
    assert upwards(GRAPH) == []


def test_no_modules_import_one_another() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises a CycleError that names them


@pytest.mark.parametrize(
    "text",
    [
        "import xkv.ops",
        "from xkv.ops import KVIndices",
        "from xkv import ops",
        "def f():\n    from xkv import ops",
        "if TYPE_CHECKING:\n    from xkv.ops import KVIndices",
        "import_module('xkv.ops')",
        "PATH = 'xkv.ops:build_page_table'",
    ],
)
def test_every_way_to_import_is_seen(text: str) -> None:
    assert set(imports(text)) == {"xkv.ops"}


def test_what_is_planted_is_found() -> None:
    """As it was: what registers the ops imports them, which import it."""
    planted = GRAPH | {"xkv.torch_library": {"xkv.ops"}}
    assert upwards(planted) == ["xkv.torch_library imports xkv.ops"]
    with pytest.raises(CycleError):
        TopologicalSorter(planted).prepare()
