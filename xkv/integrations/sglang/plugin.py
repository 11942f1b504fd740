"""What the plugin does on load: each replacement whole or not at all, and one line about all of them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from packaging.version import InvalidVersion, Version

import xkv
from xkv.integrations.sglang import later, table
from xkv.integrations.sglang.replace import UnknownError, replace


def install() -> tuple[int, str]:
    """Replaces what is known.

    Returns:
        The level of the log's line, and the line.
    """
    found = _version()
    start = f"xkv {xkv.__version__}, SGLang {found}: "
    if not _known(found):
        return logging.WARNING, f"{start}everything is left alone: the versions known are {table.VERSIONS}"
    done: list[str] = []
    absent: list[str] = []
    unknown: list[str] = []
    for row in table.KERNELS:
        try:
            (done if replace(row) else absent).append(row.name)
        except UnknownError as why:
            unknown.append(f"{row.name} ({why})")
    if table.KERNELS[0].name in done:
        _register(table.KERNELS[0].modules, table.PAGE_PER_BLOCK, page_per_block)
    line = f"{start}replaced {', '.join(done) or 'nothing'}"
    if absent:
        line += f"; not in this version: {', '.join(absent)}"
    if unknown:
        line += f"; left alone: {', '.join(unknown)}"
    for method in table.METHODS:
        later.replace(method)
    if table.METHODS:
        line += f"; when imported: {', '.join(f'{m.cls}.{m.name}' for m in table.METHODS)}"
    return logging.WARNING if unknown else logging.INFO, line


def _version() -> str:
    return str(importlib.import_module("sglang.version").__version__)


def _known(found: str) -> bool:
    try:
        version = Version(found)
    except InvalidVersion:
        return False
    return version.public in table.VERSIONS


def page_per_block(original: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    """Theirs, and 1 where it is 0: of pages larger than a block."""
    return max(original(*args, **kwargs), 1)


def _register(modules: tuple[str, ...], name: str, hook: Callable[..., Any]) -> None:
    """Puts ``hook`` around a function of the engine's, which reaches those who imported it by name, too."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            continue  # another version's
        HookRegistry.register(f"{module}.{name}", hook, HookType.AROUND)
        return
