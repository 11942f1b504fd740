"""The real SGLang: its plugins loaded, its kernels found, and a call site with ours and with the original."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

plugins = pytest.importorskip("sglang.srt.plugins", reason="no SGLang here: see ci/engines.sh")

import sglang  # noqa: E402
from sglang.version import __version__ as version  # noqa: E402

from xkv.integrations.patching import finding, replacing  # noqa: E402
from xkv.integrations.sglang import table  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """As SGLang does it, from xkv's entry point on."""
    plugins.load_plugins()


def kernel(name: str) -> Any:
    found = places(name)
    if not found:
        pytest.skip(f"SGLang {version} has no {name}")
    return getattr(importlib.import_module(found[0].module), name)


@functools.cache
def places(name: str) -> list[finding.Found]:
    return finding.definitions("sglang", sglang.__path__, [name], table.FIRST)[name]


@contextmanager
def launches(it: Any) -> Iterator[list[Any]]:
    """What is launched of a replaced kernel's own code meanwhile."""
    run, seen = it.run, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["grid"])
        return run(*args, **kwargs)

    it.run = counted
    try:
        yield seen
    finally:
        del it.run


def both(it: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call site leaves with ours, which it must launch, and with the original."""
    with launches(it) as seen:
        ours = run()
    assert seen == [], "the call site launched the original"
    cls = type(it)
    replacing.restore(it)
    try:
        with launches(it) as seen:
            theirs = run()
    finally:
        it.__class__ = cls
    assert len(seen) >= 1
    return ours, theirs
