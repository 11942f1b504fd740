"""Compiling, as the engine starts, what its attention backends can ask of xkv's kernel.

SGLang's model runner makes its attention backends once, after its memory pools and before it captures graphs.
Right after that each backend is looked at: its class says which replaced kernels and steps it calls
(``needs.py``), its table of slots their dtypes. Whatever goes wrong here is logged, and the engine starts
without it.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ... import switches
from ..patching import importing, logs
from .needs import NEEDS

_RUNNER = "sglang.srt.model_executor.model_runner"
_METHODS = ("init_attention_backends", "init_attention_backend")  # 0.5.16 and later; before
_WITHIN = "sglang.srt.layers.attention"
_DEPTH = 3  # backends in backends: two batches of two kinds of layers of two phases
_log = logging.getLogger("sglang.xkv")


def at_start() -> None:
    """Has `warm` called once the model runner has its backends."""
    if not switches.on("XKV_DISABLE"):
        importing.after(_RUNNER, "warm-up", _attach)


def _attach() -> None:
    runner = getattr(sys.modules[_RUNNER], "ModelRunner", None)
    name = next((name for name in _METHODS if hasattr(runner, name)), None)
    if name is None:
        line = f"xkv does not warm up: {_RUNNER}.ModelRunner has none of {', '.join(_METHODS)}"
        logs.say(_log, logging.WARNING, line)
        return
    original = getattr(runner, name)
    if hasattr(original, "xkv_warms"):
        return

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        warm(self)
        return result

    call.xkv_warms = True  # type: ignore[attr-defined]
    setattr(runner, name, call)


def warm(runner: Any) -> int:
    """Compiles and loads what the backends of a model runner can need; returns how many kernels that were."""
    begin, count, done = time.perf_counter(), 0, []
    for backend in _backends(vars(runner), _DEPTH):
        for name in (cls.__name__ for cls in type(backend).__mro__ if cls.__module__.startswith(_WITHIN)):
            if name in NEEDS:
                try:
                    count += NEEDS[name](_with_table(backend))
                    done.append(name)
                except (
                    Exception
                ) as error:  # the engine must start: what is missing is compiled when it is called
                    _log.warning("xkv does not warm up for %s: %s: %s", name, type(error).__name__, error)
    if done:
        took, names = time.perf_counter() - begin, ", ".join(dict.fromkeys(done))
        _log.info("xkv compiled or loaded %d kernels for %s in %.1f s", count, names, took)
    return count


def _backends(fields: Mapping[str, Any], depth: int) -> Iterator[Any]:
    """Each attention backend that is among an object's fields, and those in it."""
    for value in list(fields.values()):
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if depth and type(x).__module__.startswith(_WITHIN) and hasattr(x, "__dict__"):
                yield x
                yield from _backends(vars(x), depth - 1)


def _with_table(backend: Any) -> Any:
    """What has the table of slots: FlashInfer's backends leave it to what updates their indices."""
    if hasattr(backend, "req_to_token"):
        return backend
    updaters = (
        getattr(backend, name, None) for name in ("indices_updater_decode", "indices_updater_prefill")
    )
    return next((x for x in updaters if hasattr(x, "req_to_token")), backend)
