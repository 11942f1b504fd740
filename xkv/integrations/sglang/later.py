"""Replacing methods of modules that SGLang imports only where a backend is chosen, right when it does."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from xkv.integrations.sglang.replace import code

log = logging.getLogger("xkv.integrations.sglang")


class Method(NamedTuple):
    """One method of an engine's class, and what is called in its place.

    Attributes:
        module: where the class is defined.
        cls: the class.
        name: the method.
        codes: `code` of each that xkv was compared with.
        around: takes the original method and its arguments, self first.
    """

    module: str
    cls: str
    name: str
    codes: frozenset[str]
    around: Callable[..., Any]


def replace(method: Method) -> None:
    """Replaces a method now, or as soon as its module is imported."""
    module = sys.modules.get(method.module)
    if module is not None:
        _apply(module, method)
        return
    finder = next((x for x in sys.meta_path if isinstance(x, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    waiting = finder.waiting.setdefault(method.module, [])
    if method not in waiting:
        waiting.append(method)


def _apply(module: ModuleType, method: Method) -> None:
    cls = getattr(module, method.cls, None)
    original = vars(cls).get(method.name) if isinstance(cls, type) else None
    name = f"{method.cls}.{method.name}"
    if original is None:
        log.info("xkv: %s is not in this version", name)
        return
    if hasattr(original, "xkv_original"):
        return
    try:
        found = code(original)
    except (OSError, SyntaxError, TypeError) as error:
        log.warning("xkv: %s is left alone: its source cannot be read (%s)", name, error)
        return
    if found not in method.codes:
        log.warning("xkv: %s is left alone: its code %s is not one that xkv knows", name, found)
        return

    @functools.wraps(original)
    def around(*args: Any, **kwargs: Any) -> Any:
        return method.around(original, *args, **kwargs)

    around.xkv_original = original  # type: ignore[attr-defined]
    setattr(cls, method.name, around)
    log.info("xkv: replaced %s", name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: has `_apply` run after the modules that are waited for."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Method]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        methods = self.waiting.get(fullname)
        if methods is None:
            return None
        others = (x for x in sys.meta_path if x is not self and hasattr(x, "find_spec"))
        spec = next((s for x in others if (s := x.find_spec(fullname, path, target)) is not None), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            for method in methods:
                _apply(module, method)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
