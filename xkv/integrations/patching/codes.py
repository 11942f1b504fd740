"""How to tell that an installed engine's function is one that xkv was compared with."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Container
from typing import Any


def code(source: str | ast.FunctionDef) -> str:
    """A short hash of a function's signature and body.

    Comments, docstring, decorators and layout are no part of it.

    Args:
        source: the function's text, or what was parsed from it, which loses its docstring and decorators.
    """
    if isinstance(source, str):
        (node,) = ast.parse(textwrap.dedent(source)).body
        if not isinstance(node, ast.FunctionDef):
            raise TypeError(f"source must be a function's, got a {type(node).__name__}")
    else:
        node = source
    node.decorator_list.clear()
    if ast.get_docstring(node) is not None:
        del node.body[0]
    return hashlib.sha256(ast.unparse(node).encode()).hexdigest()[:12]


def code_of(function: Callable[..., Any]) -> str:
    """The same of a function that was imported."""
    return code(inspect.getsource(function))


def why_unknown(function: Callable[..., Any], codes: Container[str]) -> str | None:
    """Why an imported function is none that xkv was compared with, or None.

    Args:
        function: the function.
        codes: `code` of each that it may be.
    """
    try:
        found = code_of(function)
    except (OSError, SyntaxError, TypeError) as error:
        return f"its source cannot be read ({error})"
    return None if found in codes else f"its code {found} is not one that xkv knows"


def is_kernel(x: Any) -> bool:
    """Whether it is a function of Triton's, to be launched as ``x[grid](...)``."""
    return hasattr(type(x), "__getitem__") and hasattr(x, "fn")
