"""AMD: tuning rows, and the specs of the backends that run there."""

from xkv.rocm.specs import SPECS
from xkv.rocm.tuning import DEFAULT_ARCH, TUNING, family

__all__ = ["DEFAULT_ARCH", "SPECS", "TUNING", "family"]
