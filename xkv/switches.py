"""Switches in the environment: unset, empty and "0" are off, all else is on."""

from __future__ import annotations

import os


def on(name: str) -> bool:
    """Whether the environment variable of that name is on, as of now."""
    return os.environ.get(name, "0") not in ("", "0")
