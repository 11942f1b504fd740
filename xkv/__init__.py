"""xkv: what attention backends read of a paged KV cache, built in one Triton launch.

The names below are resolved on first use: importing xkv imports no torch and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xkv.dispatch import backends
    from xkv.metadata.buffers import Metadata
    from xkv.metadata.builder import MetadataBuilder
    from xkv.ops import KVIndices, build_kv_indices, build_page_table, build_slot_mapping
    from xkv.platforms.detect import Platform, UnsupportedPlatformError, platform
    from xkv.platforms.specs import BackendSpec
    from xkv.status import Offence, Reason, Status, StatusError
    from xkv.warmup import warmup

__version__ = "0.1.0"

_HOMES = {
    "BackendSpec": "xkv.platforms.specs",
    "backends": "xkv.dispatch",
    "Metadata": "xkv.metadata.buffers",
    "MetadataBuilder": "xkv.metadata.builder",
    "KVIndices": "xkv.ops",
    "build_kv_indices": "xkv.ops",
    "build_page_table": "xkv.ops",
    "build_slot_mapping": "xkv.ops",
    "Platform": "xkv.platforms.detect",
    "UnsupportedPlatformError": "xkv.platforms.detect",
    "platform": "xkv.platforms.detect",
    "Offence": "xkv.status",
    "Reason": "xkv.status",
    "Status": "xkv.status",
    "StatusError": "xkv.status",
    "warmup": "xkv.warmup",
}

__all__ = [
    "BackendSpec",
    "KVIndices",
    "Metadata",
    "MetadataBuilder",
    "Offence",
    "Platform",
    "Reason",
    "Status",
    "StatusError",
    "UnsupportedPlatformError",
    "backends",
    "build_kv_indices",
    "build_page_table",
    "build_slot_mapping",
    "platform",
    "warmup",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'xkv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
