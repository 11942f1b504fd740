"""Replacing a Triton kernel in place: the object stays, and what its call launches is another kernel."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from xkv.integrations.codes import is_kernel, why_unknown


class Replacement(NamedTuple):
    """One kernel of an engine, and what launches in its place.

    Attributes:
        name: the kernel's.
        modules: where versions of the engine define it; the first that has it counts.
        codes: `code` of each that xkv was compared with.
        launch: takes the grid and the kernel's arguments; False: the original has to.
    """

    name: str
    modules: tuple[str, ...]
    codes: frozenset[str]
    launch: Callable[..., bool]


class UnknownError(Exception):
    """A kernel is there, and is not one that xkv was compared with."""


def replace(row: Replacement) -> bool:
    """Replaces a kernel wherever it is referred to, whenever that was imported.

    Returns:
        Whether the engine has it.

    Raises:
        UnknownError: it is another kernel than those that are known. It is left alone.
    """
    kernel = find(row)
    if kernel is None:
        return False
    if replaced(kernel):
        return True
    if not is_kernel(kernel):
        raise UnknownError(f"it is no Triton kernel but a {type(kernel).__name__}")
    why = why_unknown(kernel.fn, row.codes, inspect.signature)
    if why is not None:
        raise UnknownError(why)
    swap(kernel, row.launch)
    return True


def find(row: Replacement) -> Any:
    """The engine's kernel, or None where it has none of that name."""
    for module in row.modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module + ".").startswith(error.name + "."):
                continue  # this version has no such module
            raise UnknownError(f"{module} cannot be imported ({error})") from error
        except Exception as error:  # whatever an engine's module does where something is missing
            raise UnknownError(f"{module} cannot be imported ({type(error).__name__}: {error})") from error
        if hasattr(found, row.name):
            return getattr(found, row.name)
    return None


def swap(kernel: Any, launch: Callable[..., bool]) -> None:
    """Makes ``kernel[grid](...)`` call ``launch``, and the original where that returns False.

    The object stays what it was, in every module, closure and table that holds it, and to Triton, which
    looks at its class: it gets a class of its own, derived from the one it had.
    """
    base = type(kernel)

    def getitem(self: Any, grid: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # a grid may be a function of the constexprs, too
            if isinstance(grid, (tuple, list)) and launch(grid, *args, **kwargs):
                return None
            return base.__getitem__(self, grid)(*args, **kwargs)

        return call

    kernel.__class__ = type(f"Xkv{base.__name__}", (base,), {"__getitem__": getitem, "xkv_base": base})


def replaced(kernel: Any) -> bool:
    """Whether `swap` was here."""
    return hasattr(type(kernel), "xkv_base")


def restore(kernel: Any) -> None:
    """Undoes `swap`."""
    kernel.__class__ = type(kernel).xkv_base
