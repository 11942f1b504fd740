"""Switching xkv's replacements on and off inside an engine: all that is known here of xkv.integrations.

A replaced kernel is an object whose class says what ``kernel[grid](...)`` launches. A mode is one such class:

    on      as xkv leaves it
    off     the engine's own kernel, with nothing of xkv's in between
    on+     as on; calls are counted and timed
    off+    as off; timed
    spoilt  as on+; then the first entry of what was written is set to 0: a comparison must see that
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from serve.book import Book

MODES = ("on", "off", "on+", "off+", "spoilt")
_WRITTEN = ("slot_mappings_ptr", "slot_mapping_ptr", "page_indices", "kv_indices_ptr", "page_table_ptr")


class Switch:
    """One replaced kernel.

    Args:
        kernel: the object that the engine launches.
        name: what it is called in `serve.cases`.
        function: the engine's kernel's Python function: its name is the one in a profile.
        classes: of the object, by mode.
        prepare: called with the mode before the class changes.
    """

    def __init__(
        self, kernel: Any, name: str, function: Callable[..., Any], classes: dict[str, type],
        prepare: Callable[[str], None] = lambda mode: None,
    ) -> None:  # fmt: skip
        self._kernel, self._classes, self._prepare = kernel, classes, prepare
        self.name, self.profiled = name, function.__name__

    def set(self, mode: str) -> None:
        """Launches in this mode from now on."""
        self._prepare(mode)
        self._kernel.__class__ = self._classes[mode]


def _counted(book: Book, name: str, names: tuple[str, ...], launch: Any, spoil: bool = False) -> Any:
    """A launch of xkv's whose answer is counted: whether it served the call or handed it back."""

    def counted(grid: Any, *args: Any, **kwargs: Any) -> bool:
        done: bool = launch(grid, *args, **kwargs)
        book.count(name, "served" if done else "handed back")
        if spoil and done:
            given = dict(zip(names, args, strict=False)) | kwargs
            for written in _WRITTEN:
                if given.get(written) is not None and given[written].numel():
                    given[written][..., 0] = 0
        return done

    return counted


def _timed(base: type, book: Book, name: str, names: tuple[str, ...]) -> type:
    """A class like ``base`` whose launches are timed."""
    inner: Any = base

    def getitem(self: Any, grid: Any) -> Any:
        return book.timed(name, names, inner.__getitem__(self, grid))

    return type(f"Timed{base.__name__}", (base,), {"__getitem__": getitem})


def _names(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


# ---------------------------------------------------------------- vLLM


def on_vllm(book: Book, attach: Callable[[Switch], None]) -> None:
    """Has ``attach`` called with each kernel as the plugin registers it; called before vLLM loads plugins."""
    from xkv.integrations.vllm import overriding

    register = overriding.register

    def registered(kernel: Any) -> None:
        register(kernel)
        attribute = kernel.name.rsplit(".", 1)[-1]
        override = getattr(overriding._host(kernel), attribute)
        if hasattr(override, "xkv_original"):
            attach(_vllm_switch(book, kernel.name, override))

    overriding.register = registered


def _vllm_switch(book: Book, name: str, override: Any) -> Switch:
    function = override.xkv_original.fn
    names, on, launch = _names(function), type(override), override.xkv_launch
    own = {"__getitem__": lambda self, grid: self.xkv_original[grid]}
    off = type(f"Off{on.__name__}", (on,), own)
    timed = _timed(on, book, name, names)
    classes = {"on": on, "off": off, "on+": timed, "spoilt": timed, "off+": _timed(off, book, name, names)}
    launches = {
        "on+": _counted(book, name, names, launch), "spoilt": _counted(book, name, names, launch, True)
    }  # fmt: skip

    def prepare(mode: str) -> None:
        override.xkv_launch = launches.get(mode, launch)

    return Switch(override, name, function, classes, prepare)


# ---------------------------------------------------------------- SGLang


def on_sglang(book: Book) -> list[Switch]:
    """What the plugin has replaced; called once all plugins were loaded."""
    from xkv.integrations.sglang import replace, table

    switches = []
    for row in table.KERNELS:
        try:
            kernel = replace.find(row)
        except replace.UnknownError:
            continue  # the plugin's line of the log says so
        if kernel is None or not replace.replaced(kernel):
            continue
        names, on = _names(kernel.fn), type(kernel)
        replace.restore(kernel)
        off = type(kernel)
        classes = {"on": on, "off": off, "off+": _timed(off, book, row.name, names)}
        for mode in ("on+", "spoilt"):
            replace.swap(kernel, _counted(book, row.name, names, row.launch, mode == "spoilt"))
            classes[mode] = _timed(type(kernel), book, row.name, names)
            replace.restore(kernel)
        switch = Switch(kernel, row.name, kernel.fn, classes)
        switch.set("on")
        switches.append(switch)
    return switches
