"""The public, stateless ops, one to a file: checked arguments in, one launch, tensors out."""

from .kv_indices import KVIndices, build_kv_indices
from .page_table import build_page_table
from .slot_mapping import build_slot_mapping

__all__ = ["KVIndices", "build_kv_indices", "build_page_table", "build_slot_mapping"]
