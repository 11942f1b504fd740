"""What is done right after a module's import: now, if it was imported before."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

_waiting: dict[str, dict[str, Callable[[], None]]] = {}


def after(module: str, name: str, act: Callable[[], None]) -> None:
    """Has ``act`` called once ``module`` is imported, by whomever.

    Args:
        module: full name.
        name: what it is about; asked for twice, it is done once.
        act: what is done. What it raises, that import raises.
    """
    if module in sys.modules and not _initializing(sys.modules[module]):
        act()
        return
    _waiting.setdefault(module, {})[name] = act
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _initializing(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: what others find acts, once it is executed, for what waits for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds a module that is waited for as the finders after this one do."""
        if fullname not in _waiting:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
        specs = (
            finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec")
        )
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ != fullname:
                return  # a loader may serve many modules, and one may be found without being loaded
            for act in _waiting.pop(fullname, {}).values():
                act()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
