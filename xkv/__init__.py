"""xkv: what attention backends read of a paged KV cache, built in one Triton launch.

The public names are imported on first use: importing xkv imports no torch and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dispatch import backends
    from .draft import DraftTree
    from .expanded import ExpandedQueries
    from .metadata.buffers import Metadata
    from .metadata.builder import MetadataBuilder
    from .metadata.group import MetadataGroup
    from .metadata.options import SlotMapping
    from .ops.expand_queries import expand_queries
    from .ops.kv_indices import KVIndices, build_kv_indices
    from .ops.page_table import build_page_table
    from .ops.slot_mapping import build_slot_mapping
    from .ops.translate_positions import translate_positions
    from .platforms.detect import Platform, UnsupportedPlatformError, platform
    from .platforms.specs import BackendSpec
    from .precompile import warmup
    from .shard import Shard
    from .status import Reason, Status, StatusError, Violation

__version__ = "0.1.0"

_HOMES = {
    "BackendSpec": ".platforms.specs",
    "backends": ".dispatch",
    "Metadata": ".metadata.buffers",
    "MetadataBuilder": ".metadata.builder",
    "MetadataGroup": ".metadata.group",
    "SlotMapping": ".metadata.options",
    "DraftTree": ".draft",
    "ExpandedQueries": ".expanded",
    "expand_queries": ".ops.expand_queries",
    "KVIndices": ".ops.kv_indices",
    "build_kv_indices": ".ops.kv_indices",
    "build_page_table": ".ops.page_table",
    "build_slot_mapping": ".ops.slot_mapping",
    "translate_positions": ".ops.translate_positions",
    "Platform": ".platforms.detect",
    "UnsupportedPlatformError": ".platforms.detect",
    "platform": ".platforms.detect",
    "Violation": ".status",
    "Reason": ".status",
    "Status": ".status",
    "StatusError": ".status",
    "Shard": ".shard",
    "warmup": ".precompile",
}

__all__ = [
    "BackendSpec",
    "DraftTree",
    "ExpandedQueries",
    "KVIndices",
    "Metadata",
    "MetadataBuilder",
    "MetadataGroup",
    "Platform",
    "Reason",
    "Shard",
    "SlotMapping",
    "Status",
    "StatusError",
    "UnsupportedPlatformError",
    "Violation",
    "backends",
    "build_kv_indices",
    "build_page_table",
    "build_slot_mapping",
    "expand_queries",
    "platform",
    "translate_positions",
    "warmup",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
