"""xkv in vLLM: what its loader of ``vllm.general_plugins`` calls, in each of its processes."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import sys
from pathlib import Path

_log = logging.getLogger("vllm.xkv")  # below vLLM's own logger, which alone has handlers


def load() -> None:
    """Has xkv's launches stand in for vLLM's kernels that they are known to equal.

    Registers each as soon as its module is imported, through vLLM's own ``register_kernels``, and imports
    nothing of vLLM's that vLLM does not. Says in one line of the log what is replaced, and what is left
    alone and why. Leaves all of an unknown version alone. XKV_DISABLE=1 turns it off, and so does a
    VLLM_PLUGINS without xkv. May be called again.
    """
    from xkv import __version__, switches
    from xkv.integrations import importing
    from xkv.integrations.vllm import known, overriding

    if switches.on("XKV_DISABLE"):
        _log.info("xkv %s replaces nothing: XKV_DISABLE is set", __version__)
        return
    package = sys.modules.get("vllm")
    if package is None or package.__file__ is None:
        raise RuntimeError("load is for vLLM's plugin loader: vllm is not imported")
    version = importlib.metadata.version("vllm").split("+")[0]
    if version not in known.VERSIONS:
        have = ", ".join(known.VERSIONS)
        _log.warning("xkv %s replaces nothing: it knows vLLM %s, not %s", __version__, have, version)
        return
    replaced, left = [], []
    for kernel in known.KERNELS:
        reason = known.why_not(Path(package.__file__).parent, kernel)
        if reason is None:
            importing.after(kernel.module, kernel.name, functools.partial(overriding.register, kernel))
            replaced.append(kernel.name)
        else:
            left.append(f"{kernel.name} ({reason})")
    _log.log(
        logging.WARNING if left else logging.INFO,
        "xkv %s in vLLM %s replaces, where their modules are imported: %s; leaves alone: %s",
        __version__, version, ", ".join(replaced) or "nothing", ", ".join(left) or "nothing",
    )  # fmt: skip
