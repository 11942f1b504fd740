"""The engines' functions as their published files have them, run without the engines: see ci/support.py."""

from __future__ import annotations
import __future__

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".engines"


@triton.jit
def _load_ptr(pointers, dtype):
    """As vLLM's of that name, in another file; the same in 0.28 to 0.33."""
    return tl.cast(tl.load(pointers), tl.pointer_type(dtype))


class Text(NamedTuple):
    """One text of a function, in one version."""

    engine: str
    version: str
    name: str
    module: str
    code: str

    @property
    def path(self) -> Path:
        return CACHE / f"{self.engine}-{self.version}" / (self.module.replace(".", "/") + ".py")


def first_and_last(engine: str, record: dict[str, Any], rows: Any) -> Iterator[Text]:
    """Each text that is replaced, in the first and the last version that has it."""
    for row in rows:
        seen: dict[str, list[Text]] = {}
        for version in sorted(record, key=Version):
            for module, code in record[version].get(row.name, []):
                if code in row.codes:
                    seen.setdefault(code, []).append(Text(engine, version, row.name, module, code))
        for texts in seen.values():
            yield from dict.fromkeys((texts[0], texts[-1]))


def load(text: Text, **names: Any) -> Any:
    """The function, with what its file defines of the names that it uses; lines stay what they are."""
    top: dict[str, ast.stmt] = {}
    for node in ast.parse(text.path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            top[node.targets[0].id] = node
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            top[node.name] = node
    *classes, name = text.name.split(".")
    found = top[text.name.split(".")[0]]
    if classes:
        assert isinstance(found, ast.ClassDef)
        (found,) = (x for x in found.body if isinstance(x, ast.FunctionDef) and x.name == name)
        found.decorator_list = [x for x in found.decorator_list if ast.unparse(x) != "staticmethod"]
    needed, waiting = {name: found}, [found]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Name) and node.id in top and node.id not in {*needed, *names}:
                needed[node.id] = top[node.id]
                waiting.append(top[node.id])
    body = sorted(needed.values(), key=lambda node: node.lineno)
    scope = {"torch": torch, "triton": triton, "tl": tl, "_load_ptr": _load_ptr, "__name__": text.module}
    scope |= names
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module(body, []), str(text.path), "exec", flags=flags, dont_inherit=True), scope)
    return scope[name]
