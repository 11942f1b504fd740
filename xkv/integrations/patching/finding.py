"""Where an installed engine defines its functions: by the text of its files, nothing is imported."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .codes import code

# Large folders that hold no kernel for a KV cache's metadata: half of the time that a search takes.
_SKIPPED = {"__pycache__", "models", "multimodal_gen", "node_modules", "test", "tests", "third_party"}


NOT_PARSED = "of a file that is no Python"


class Found(NamedTuple):
    """A definition.

    Attributes:
        module: full name of the module that it stands in.
        code: `code` of the function, or NOT_PARSED.
    """

    module: str
    code: str


def definitions(
    package: str, folders: Iterable[str], names: Iterable[str], first: Iterable[str] = ()
) -> dict[str, list[Found]]:
    """Where a package's Python files define some functions.

    Args:
        package: its name.
        folders: where its files are, as its ``__path__`` says.
        names: of functions, ``Class.method`` where one stands in a class.
        first: folders in the package that are searched first; the others only for what is not in those, as
            reading all of an engine takes some tenths of a second.

    Returns:
        What was found for each name; nothing for one that the package does not define.
    """
    wanted: dict[str, list[Found]] = {name: [] for name in names}
    folders, first = list(folders), list(first)
    for below in (first, [""]):
        missing = [name for name in wanted if not wanted[name]]
        if missing and below:
            patterns = worth_parsing(missing)
            for folder in folders:
                for path in _files(folder, below):
                    with open(path, "rb") as file:
                        text = file.read()
                    if any(pattern.search(text) for pattern in patterns):
                        module = module_of(package, os.path.relpath(path, folder))
                        for name, found in _in_file(module, text, missing):
                            if found not in wanted[name]:
                                wanted[name].append(found)
    return wanted


def _in_file(module: str, text: bytes, names: Iterable[str]) -> Iterator[tuple[str, Found]]:
    try:
        for name, node in functions(text):
            if name in names:
                yield name, Found(module, code(node))
    except SyntaxError:  # the engine may never import it; the log says so of each name that is in it
        for name in names:
            if any(pattern.search(text) for pattern in worth_parsing([name])):
                yield name, Found(module, NOT_PARSED)


def worth_parsing(names: Iterable[str]) -> list[re.Pattern[bytes]]:
    """Patterns, one of which is in every file that defines one of the functions.

    Each begins with a word, which a regular expression finds ten times as fast as one of two words.
    """
    names = set(names)
    plain = {re.escape(name) for name in names if "." not in name}
    # a method stands behind its class
    methods = {
        r"\b[\s\S]*?def ".join(map(re.escape, (name.split(".")[0], name.rsplit(".", 1)[-1])))
        for name in names
        if "." in name
    }
    return [
        re.compile(rf"{word} (?:{'|'.join(sorted(some))})\b".encode())
        for word, some in (("def", plain), ("class", methods))
        if some
    ]


def module_of(package: str, path: str) -> str:
    """A module's full name from its file's path in the package."""
    parts = path.removesuffix(".py").split(os.sep)
    return ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _files(folder: str, below: Iterable[str]) -> Iterator[str]:
    for top in below:
        for at, folders, files in os.walk(os.path.join(folder, top)):
            folders[:] = sorted(set(folders) - _SKIPPED)
            yield from (os.path.join(at, name) for name in sorted(files) if name.endswith(".py"))


def functions(text: str | bytes) -> Iterator[tuple[str, ast.FunctionDef]]:
    """What a file defines, under ``if`` and ``try``, too; not what stands inside of functions.

    Yields:
        ``name`` or ``Class.name``, and the definition.
    """
    return _functions(ast.parse(text).body, "")


def _functions(body: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            for field in ("body", "handlers", "orelse", "finalbody"):
                yield from _functions(getattr(node, field, ()), prefix)
