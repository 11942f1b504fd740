"""xkv in vLLM: what its loader of ``vllm.general_plugins`` calls, in each of its processes.

docs/engines.md says what is replaced. ``XKV_DISABLE=1``, or a ``VLLM_PLUGINS`` without "xkv", turns it off.
"""

from __future__ import annotations


def load() -> None:
    """Replaces what is known of the installed vLLM."""
    from ..patching import installing
    from . import table

    installing.install("vllm", "vLLM", table.REPLACED, table.FIRST)
