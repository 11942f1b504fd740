"""Replacing methods of modules that SGLang imports only where a backend is chosen, right when it does."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from xkv.integrations import importing
from xkv.integrations.codes import why_unknown

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
    importing.after(method.module, f"{method.cls}.{method.name}", functools.partial(_apply, method))


def _apply(method: Method) -> None:
    cls = getattr(sys.modules[method.module], method.cls, None)
    original = vars(cls).get(method.name) if isinstance(cls, type) else None
    name = f"{method.cls}.{method.name}"
    if original is None:
        log.info("xkv: %s is not in this version", name)
        return
    if hasattr(original, "xkv_original"):
        return
    why = why_unknown(original, method.codes)
    if why is not None:
        log.warning("xkv: %s is left alone: %s", name, why)
        return

    @functools.wraps(original)
    def around(*args: Any, **kwargs: Any) -> Any:
        return method.around(original, *args, **kwargs)

    around.xkv_original = original  # type: ignore[attr-defined]
    setattr(cls, method.name, around)
    log.info("xkv: replaced %s", name)
