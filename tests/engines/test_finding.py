"""How an engine's functions are found and known by their texts, without importing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from xkv.integrations.patching import finding
from xkv.integrations.patching.codes import code
from xkv.integrations.patching.finding import Found

pytestmark = pytest.mark.repo

F = "def f(a):\n    return a\n"
CODE = code(F)


def definitions(
    folder: Path, files: dict[str, str], *names: str, first: tuple[str, ...] = ()
) -> dict[str, list[Found]]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return finding.definitions("engine", [str(folder)], names or ("f",), first)


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("a.py", "engine.a"), ("a/b/c.py", "engine.a.b.c"), ("a/__init__.py", "engine.a"),
        ("__init__.py", "engine"),
    ],
)  # fmt: skip
def test_wherever_it_stands(path: str, module: str, tmp_path: Path) -> None:
    assert definitions(tmp_path, {path: F}) == {"f": [Found(module, CODE)]}


def test_every_definition(tmp_path: Path) -> None:
    other = F.replace("return a", "return -a")
    found = definitions(tmp_path, {"a.py": F, "b.py": other, "c.py": "from engine.a import f\n"})
    assert found == {"f": [Found("engine.a", CODE), Found("engine.b", code(other))]}


def test_under_conditions_and_in_classes_and_not_in_functions(tmp_path: Path) -> None:
    lines = F.splitlines()
    under = "\n".join(f"    {line}" for line in lines)
    text = f"if x:\n    pass\nelse:\n{under}\ntry:\n{under}\nexcept E:\n{under}\n"
    assert definitions(tmp_path, {"a.py": text})["f"] == [Found("engine.a", CODE)]
    text = f"class C:\n{under}\n\ndef outer():\n{under}\n"
    found = definitions(tmp_path, {"a.py": text}, "f", "C.f", "D.f")
    assert found == {"f": [], "C.f": [Found("engine.a", CODE)], "D.f": []}


def test_the_rest_is_searched_for_what_the_first_folders_lack(tmp_path: Path) -> None:
    g = F.replace("f(", "g(")
    files = {"likely/a.py": F, "other/b.py": F + g, "tests/c.py": g, "models/d.py": g}
    found = definitions(tmp_path, files, "f", "g", first=("likely",))
    assert found == {"f": [Found("engine.likely.a", CODE)], "g": [Found("engine.other.b", code(g))]}


def test_a_file_that_does_not_parse_is_named_and_the_rest_is_found(tmp_path: Path) -> None:
    """Such as a template, or a file for a later Python: it may be none of those that the engine imports."""
    found = definitions(tmp_path, {"a.py": F + "def (", "b.py": F, "c.py": "def ("}, "f", "g")
    assert found == {"f": [Found("engine.a", finding.NOT_PARSED), Found("engine.b", CODE)], "g": []}


def test_code_sees_what_means_something() -> None:
    base = code("def f(a, b: int = 1):\n    return a + b\n")
    same = 'def f(a, b: int = 1):\n    """Says so."""\n    # why\n    return (a +\n        b)\n'
    assert code(same) == base
    assert code("@jit\n" + same) == base
    assert code("    def f(a, b: int = 1):\n        return a + b\n") == base
    for other in ("def f(a, b: int = 2):\n    return a + b\n", "def f(b, a: int = 1):\n    return a + b\n"):
        assert code(other) != base
    with pytest.raises(TypeError, match="got a Assign"):
        code("x = 1\n")
