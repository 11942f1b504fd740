"""Other projects' kernels, loaded by path from wherever the user unpacked their wheels.

None of their code is in this package, and no other module of theirs is imported.
"""

from __future__ import annotations

import ast
import atexit
import functools
import importlib.util
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class PeerError(ValueError):
    """A peer's file that cannot be imported; the message says `file:line: reason`."""


def find(folders: Iterable[Path], path: str) -> Path | None:
    """Finds a file of a wheel.

    Args:
        folders: where the user has unpacked wheels or laid single files; the first that has it wins.
        path: where the wheel has it, such as "sglang/kernels/ops/attention/kv_indices.py".

    Returns:
        The file of that name in a folder, or under the wheel's own path there; None: there is none.
    """
    name = path.rpartition("/")[2]
    places = (folder / place for folder in folders for place in (name, path))
    return next((place for place in places if place.is_file()), None)


def load(path: Path | None) -> Any:
    """Imports one file by its path, under a name of its own.

    Args:
        path: a Python file whose imports are all there, or None.

    Returns:
        The module; None for None.

    Raises:
        PeerError: it cannot be read or imported.
    """
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever its statements raise
        raise PeerError(_said(path, error)) from error
    return module


def _said(path: Path, error: Exception) -> str:
    """An error and the line of the file that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
    reason = error.msg if isinstance(error, SyntaxError) else error
    return f"{path}:{line}: cannot be imported: {type(error).__name__}: {reason}"


def load_function(path: Path | None, function: str) -> Any:
    """Imports one function of a file whose other imports need not be there.

    Args:
        path: a Python file, or None.
        function: the name of a function at its top level.

    Returns:
        A module with that function and what it names of the file, or None where the file lacks it.

    Raises:
        PeerError: it cannot be read or imported.
    """
    try:
        source = None if path is None else cut(path.read_text(encoding="utf-8"), function)
    except (OSError, SyntaxError, ValueError) as error:
        assert path is not None
        raise PeerError(_said(path, error)) from error
    if path is None or source is None:
        return None
    # a real file: Triton reads a kernel's source from one
    file = Path(tempfile.mkdtemp(dir=_scratch().name)) / path.name
    file.write_text(source)
    return load(file)


def load_method(path: Path | None, function: str) -> Any:
    """Imports one Triton kernel that stands in a class, alone.

    Args:
        path: a Python file, or None.
        function: the kernel's name; it needs nothing of its file.

    Returns:
        The kernel; None where the file lacks it.

    Raises:
        PeerError: it cannot be read or imported.
    """
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise PeerError(_said(path, error)) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            node.decorator_list = [ast.parse("triton.jit").body[0].value]  # type: ignore[attr-defined]
            file = Path(tempfile.mkdtemp(dir=_scratch().name)) / path.name
            file.write_text(f"import triton\nimport triton.language as tl\n\n\n{ast.unparse(node)}\n")
            return getattr(load(file), function)
    return None


def cut(source: str, function: str) -> str | None:
    """Cuts a function out of a module's source, with the imports and definitions that it names.

    Args:
        source: Python.
        function: the name of a function at the top level.

    Returns:
        Its source, and before it that of what it needs; None where there is no such function.
    """
    tree = ast.parse(source)
    binding = {name: node for node in tree.body for name in _bound(node)}
    if not isinstance(binding.get(function), ast.FunctionDef):
        return None
    needed: set[ast.stmt] = set()
    names = [function]
    while names:
        node = binding.get(names.pop())
        if node is not None and node not in needed:
            needed.add(node)
            names += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    return "\n\n".join(ast.unparse(node) for node in tree.body if node in needed) + "\n"


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top level gives a meaning to."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the life of the process: a kernel's source may be read again when it compiles."""
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="xkv-peers-")
    atexit.register(folder.cleanup)  # what is left to Python at its end is a ResourceWarning
    return folder
