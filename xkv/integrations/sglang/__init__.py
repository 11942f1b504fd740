"""The plugin that SGLang loads: its index kernels launch xkv's, wherever they are called from.

docs/engines.md says what is replaced. ``XKV_DISABLE=1``, or an ``SGLANG_PLUGINS`` without "xkv", turns it
off.
"""

from __future__ import annotations


def load() -> None:
    """Replaces what is known of the installed SGLang; its plugin loader calls this, once a process."""
    from ..patching import installing
    from . import table, warmup

    installing.install("sglang", "SGLang", table.REPLACED, table.FIRST)
    warmup.at_start()
