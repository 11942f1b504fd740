"""AMD: tuning rows, and the specs of the backends that run there."""

from .specs import SPECS
from .tuning import DEFAULT_ARCH, TUNING, family

__all__ = ["DEFAULT_ARCH", "SPECS", "TUNING", "family"]
