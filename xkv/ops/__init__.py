"""The public, stateless ops, one to a file: checked arguments in, one launch, tensors out."""

from .expand_queries import expand_queries
from .kv_indices import KVIndices, build_kv_indices
from .page_table import build_page_table
from .slot_mapping import build_slot_mapping
from .translate_positions import translate_positions

__all__ = [
    "KVIndices",
    "build_kv_indices",
    "build_page_table",
    "build_slot_mapping",
    "expand_queries",
    "translate_positions",
]
