"""Replacing an engine's kernels and functions where they stand."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

from .codes import code_of, is_kernel, why_unknown

_INTEGRATIONS = str(__package__).rpartition(".")[0]


class Launch(NamedTuple):
    """What is launched in a kernel's place.

    Attributes:
        launch: ``.module:function`` of xkv, see `resolve`; takes the grid and the kernel's arguments; False:
            the original has to.
        warmup: ``.module:function`` of xkv where the engine compiles the kernel at its start, else "".
    """

    launch: str
    warmup: str = ""


class Kernel(NamedTuple):
    """A Triton kernel of an engine's, and what launches in its place.

    Attributes:
        name: the kernel's, ``Class.kernel`` where it stands in a class.
        codes: `code` of each text that xkv was compared with, and the launch for it.
    """

    name: str
    codes: Mapping[str, Launch]

    def replace(self, host: Any) -> str | None:
        """Replaces the kernel that a module or class has; returns why not, where it is left alone."""
        kernel = getattr(host, _last(self.name), None)
        if kernel is None:
            return "it is not defined here"
        if replaced(kernel):
            return None
        if not is_kernel(kernel):
            return f"it is no Triton kernel but a {type(kernel).__name__}"
        why = why_unknown(kernel.fn, self.codes)
        if why is None:
            launch, warmup = self.codes[code_of(kernel.fn)]
            swap(kernel, resolve(launch), resolve(warmup) if warmup else None)
        return why


class _Any:
    """Holds every code."""

    def __contains__(self, code: object) -> bool:
        return True


ANY = _Any()


class Function(NamedTuple):
    """A plain function or method of an engine's, and what is called in its place.

    Attributes:
        name: the function's, ``Class.method`` where it stands in a class.
        codes: `code` of each that xkv was compared with; ANY where only something is done beside it.
        around: ``.module:function`` of xkv, see `resolve`; takes the original and its arguments, a method's
            self first.
        factory: it takes the original alone, and returns what is called: for what costs less than a call.
    """

    name: str
    codes: Container[str]
    around: str
    factory: bool = False

    def made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What is called in the original's place."""
        around = resolve(self.around)
        if self.factory:
            made: Callable[..., Any] = around(original)
            return made

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        return call

    def replace(self, host: Any) -> str | None:
        """Replaces the function that a module or class has; returns why not, where it is left alone."""
        original = vars(host).get(_last(self.name))
        if original is None:
            return "it is not defined here"
        if hasattr(original, "xkv_original"):
            return None
        why = why_unknown(original, self.codes)
        if why is None:
            put(host, _last(self.name), original, self.made(original))
        return why


Replacement = Kernel | Function


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def resolve(path: str) -> Any:
    """What ``.module:name`` says, imported only now: a process without the kernel does without.

    Args:
        path: a function of xkv, its module relative to `xkv.integrations`: whatever name xkv was imported as.
    """
    module, name = path.split(":")
    return getattr(importlib.import_module(module, _INTEGRATIONS), name)


def host_of(module: str, name: str) -> Any:
    """The imported module, or the class in it, that has a function as an attribute; None: no such class."""
    host: Any = sys.modules[module]
    for part in name.split(".")[:-1]:
        host = getattr(host, part, None)
    return host


def put(host: Any, name: str, original: Callable[..., Any], call: Callable[..., Any]) -> None:
    """Puts ``call`` in a function's place, for those that imported it by name before, too."""
    call.xkv_original = original  # type: ignore[attr-defined]
    setattr(host, name, call)
    for module in list(sys.modules.values()):
        # not getattr(module, name): that would run what modules do for names that they have not
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, call)


def swap(kernel: Any, launch: Callable[..., bool], warmup: Callable[..., Any] | None = None) -> None:
    """Makes ``kernel[grid](...)`` call ``launch``, and the original where that returns False.

    The object stays what it was, in every module, closure and table that holds it, and to Triton, which
    looks at its class: it gets a class of its own, derived from the one it had.

    Args:
        kernel: the kernel.
        launch: takes the grid and the kernel's arguments.
        warmup: what ``kernel.warmup(..., grid=...)`` calls, without the grid; None: the original's.
    """
    base = type(kernel)

    def getitem(self: Any, grid: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # a grid may be a function of the constexprs, too
            if isinstance(grid, (tuple, list)) and self.xkv_launch(grid, *args, **kwargs):
                return None
            return base.__getitem__(self, grid)(*args, **kwargs)

        return call

    members: dict[str, Any] = {
        "__getitem__": getitem, "xkv_base": base, "xkv_launch": staticmethod(launch),
    }  # fmt: skip
    if warmup is not None:

        def warm(self: Any, *args: Any, grid: Any, **kwargs: Any) -> Any:
            return warmup(*args, **kwargs)

        members["warmup"] = warm
    kernel.__class__ = type(f"Xkv{base.__name__}", (base,), members)


def replaced(kernel: Any) -> bool:
    """Whether `swap` was here."""
    return hasattr(type(kernel), "xkv_base")


def restore(kernel: Any) -> None:
    """Undoes `swap`."""
    kernel.__class__ = type(kernel).xkv_base
