"""Switches xkv's replacements on and off inside an engine; the only module here that uses xkv.integrations.

A replaced kernel is an object whose class says what ``kernel[grid](...)`` launches; a mode is one such
class. A replaced method is xkv's or the engine's own. The modes:

    on      as xkv installs it
    off     the engine's own kernel, without any code of xkv in between
    on+     as on; calls are counted and timed
    off+    as off; calls are timed
    spoilt  as on+; then the first element that was written is set to 0, which the comparison must find
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

from serve.book import Book

MODES = ("on", "off", "on+", "off+", "spoilt")
_WRITTEN = ("slot_mappings_ptr", "slot_mapping_ptr", "page_indices", "kv_indices_ptr", "page_table_ptr")


class Switch:
    """One replaced kernel, or one replaced method.

    Args:
        name: its name in `serve.cases`.
        profiled: the name of the engine's kernel in a profile; "" for a method.
        modes: for each mode, a function that switches to it.
    """

    def __init__(self, name: str, profiled: str, modes: dict[str, Callable[[], None]]) -> None:
        self.name, self.profiled, self._modes = name, profiled, modes

    def set(self, mode: str) -> None:
        """Switches to a mode."""
        self._modes[mode]()


def profiled(switches: list[Switch]) -> dict[str, str]:
    """Returns the name in a profile of each replaced kernel."""
    return {switch.name: switch.profiled for switch in switches if switch.profiled}


def profile(book: Book, on: bool, switches: list[Switch]) -> dict[str, list[float]] | None:
    """Starts a profile, or ends it and returns the device time of each launch, the engine's and xkv's."""
    return book.profile(on, {*profiled(switches).values(), *book.compiles()["names"]})


def follow(book: Book, attach: Callable[[Switch], None]) -> None:
    """Calls ``attach`` with every replacement of the plugin in this process, also with later ones."""
    from xkv.integrations.patching import installing

    class Followed(list[Any]):
        def append(self, replacement: Any) -> None:
            super().append(replacement)
            attach(_switch(book, *replacement))

    known = installing.DONE
    installing.DONE = followed = Followed()
    for replacement in known:
        followed.append(replacement)


def _switch(book: Book, row: Any, host: Any) -> Switch:
    from xkv.integrations.patching import replacing

    attribute = row.name.rsplit(".", 1)[-1]
    if isinstance(row, replacing.Kernel):
        return _kernel(book, row.name, getattr(host, attribute))
    return _method(book, row, host, attribute)


def _kernel(book: Book, name: str, kernel: Any) -> Switch:
    """Returns a switch that sets the class of the kernel object; off is the engine's own class."""
    from xkv.integrations.patching import replacing

    names, on, launch = _names(kernel.fn), type(kernel), type(kernel).xkv_launch
    replacing.restore(kernel)
    off = type(kernel)
    classes = {"on": on, "off": off, "off+": _timed(off, book, name, names)}
    for mode in ("on+", "spoilt"):
        replacing.swap(kernel, _counted(book, name, names, launch, mode == "spoilt"))
        classes[mode] = _timed(type(kernel), book, name, names)
        replacing.restore(kernel)

    def become(mode: str) -> None:
        kernel.__class__ = classes[mode]

    become("on")
    return Switch(name, kernel.fn.__name__, {mode: functools.partial(become, mode) for mode in MODES})


def _method(book: Book, row: Any, host: Any, attribute: str) -> Switch:
    """Returns a switch for a method or function: xkv's or the engine's own, both timed."""
    ours = vars(host)[attribute]
    own = ours.xkv_original

    class Original:
        """The engine's own function; records that it was called."""

        called = False

        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.called = True
            return own(*args, **kwargs)

    original = Original()
    made = row.made(original)  # once, as in an engine without this: not part of the time of a call

    @functools.wraps(own)
    def counted(*args: Any, **kwargs: Any) -> Any:
        original.called = False  # also by what was made of it
        result = made(*args, **kwargs)
        book.count(row.name, "handed back" if original.called else "served")
        return result

    # spoilt: an entry of what kernels write, which those methods launch
    chosen = {"on": ours, "on+": counted, "off": own, "off+": own, "spoilt": own}
    now = ours

    @functools.wraps(own)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = now(*args, **kwargs)
        book.method_us[row.name].append(1e6 * (time.perf_counter() - start))
        return result

    timed.xkv_original = own  # type: ignore[attr-defined]
    setattr(host, attribute, timed)

    def become(mode: str) -> None:
        nonlocal now
        now = chosen[mode]

    return Switch(row.name, "", {mode: functools.partial(become, mode) for mode in MODES})


def _counted(book: Book, name: str, names: tuple[str, ...], launch: Any, spoil: bool = False) -> Any:
    """Wraps a launch of xkv to count whether it served the call or passed it to the original."""

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
    """Returns a subclass of ``base`` whose launches are timed."""
    inner: Any = base

    def getitem(self: Any, grid: Any) -> Any:
        return book.timed(name, names, inner.__getitem__(self, grid))

    return type(f"Timed{base.__name__}", (base,), {"__getitem__": getitem})


def _names(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)
