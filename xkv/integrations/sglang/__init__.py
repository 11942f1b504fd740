"""The plugin that SGLang loads: its index kernels launch xkv's, wherever they are called from.

docs/engines.md says what is replaced. ``XKV_DISABLE=1``, or an ``SGLANG_PLUGINS`` without "xkv", turns it
off.
"""

from __future__ import annotations

import logging

from xkv import switches

log = logging.getLogger(__name__)


def load() -> None:
    """Replaces what is known of the installed SGLang; its plugin loader calls this, once a process.

    Compiles and launches nothing, and touches no device. One line of the log says what was replaced, what
    was left alone and why; it is a warning where something is not known.
    """
    if switches.on("XKV_DISABLE"):
        log.info("xkv: SGLang's kernels are left alone (XKV_DISABLE is set)")
        return
    from xkv.integrations.sglang import plugin

    level, line = plugin.install()
    log.log(level, "%s", line)
