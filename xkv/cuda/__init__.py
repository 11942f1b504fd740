"""NVIDIA: tuning rows, and the specs of the backends that run there."""

from xkv.cuda.specs import SPECS
from xkv.cuda.tuning import DEFAULT_ARCH, TUNING, family

__all__ = ["DEFAULT_ARCH", "SPECS", "TUNING", "family"]
