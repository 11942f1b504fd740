"""AMD: tuning rows and backend specs, as data."""

from .specs import SPECS
from .tuning import CHOSEN, DEFAULT_ARCH, TUNING, family

__all__ = ["CHOSEN", "DEFAULT_ARCH", "SPECS", "TUNING", "family"]
