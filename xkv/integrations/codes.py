"""How to tell that an installed engine's function is one that xkv was compared with."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def code(source: str) -> str:
    """A short hash of a function's signature and body; comments, docstring and layout are no part of it."""
    (node,) = ast.parse(textwrap.dedent(source)).body
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(f"source must be a function's, got a {type(node).__name__}")
    node.decorator_list.clear()
    if ast.get_docstring(node) is not None:
        del node.body[0]
    return hashlib.sha256(ast.unparse(node).encode()).hexdigest()[:12]


def code_of(function: Callable[..., Any]) -> str:
    """The same of a function that was imported."""
    return code(inspect.getsource(function))
