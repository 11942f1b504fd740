"""NVIDIA: tuning rows and backend specs, as data."""

from .specs import SPECS
from .tuning import DEFAULT_ARCH, TUNING, family

__all__ = ["DEFAULT_ARCH", "SPECS", "TUNING", "family"]
