"""What the plugins do on load: each replacement whole or not at all, and one line about all of them."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ... import __version__, switches
from . import finding, importing, logs
from .replacing import Replacement, host_of


def install(package: str, title: str, rows: Sequence[Replacement], first: Iterable[str] = ()) -> None:
    """Replaces what is known of an installed engine, each as soon as the engine imports its module.

    A kernel is known by its text alone, wherever it stands and whatever the engine's version is called.
    Imports nothing of the engine's; compiles and launches nothing, touches no device. May be called again.

    Args:
        package: the engine's, already imported.
        title: what the log calls it.
        rows: what is replaced by what.
        first: the engine's folders that most likely have it, see `finding.definitions`.
    """
    log = logging.getLogger(f"{package}.xkv")  # below the engine's own logger: its settings count
    if switches.on("XKV_DISABLE"):
        logs.say(log, logging.INFO, f"xkv {__version__} replaces nothing: XKV_DISABLE is set")
        return
    if package not in sys.modules:
        raise RuntimeError(f"load is for {title}'s plugin loader: {package} is not imported")
    found = finding.definitions(package, sys.modules[package].__path__, (row.name for row in rows), first)
    replaced, left, absent = [], [], []
    for row in rows:
        known = [place for place in found[row.name] if place.code in row.codes]
        for place in known:
            importing.after(place.module, row.name, functools.partial(_replace, row, place.module, log))
        if known:
            replaced.append(row.name)
        if not found[row.name]:
            absent.append(row.name)
        left += [
            f"{row.name} (its code {place.code} in {place.module} is not one that xkv knows)"
            for place in found[row.name]
            if place not in known
        ]
    line = (
        f"xkv {__version__} in {title} {_version(package)} replaces, where their modules are imported: "
        f"{', '.join(replaced) or 'nothing'}; leaves alone: {', '.join(left) or 'nothing'}; "
        f"not in this version: {', '.join(absent) or 'nothing'}"
    )
    logs.say(log, logging.WARNING if left or not replaced else logging.INFO, line)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"  # a source tree on the path; it is only for the log


# what was replaced in this process, and the modules or classes that have it; for whoever watches the plugin
DONE: list[tuple[Replacement, Any]] = []


def _replace(row: Replacement, module: str, log: logging.Logger) -> None:
    """Replaces one function of a module that was imported just now; what its file held is checked again."""
    host = host_of(module, row.name)
    why = "it is not defined here" if host is None else row.replace(host)
    if why is None:
        DONE.append((row, host))
    else:
        logs.say(log, logging.WARNING, f"xkv leaves {module}.{row.name} alone: {why}")
