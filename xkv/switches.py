"""Boolean environment variables: unset, empty and "0" are off, any other value is on."""

from __future__ import annotations

import os


def on(name: str) -> bool:
    """Whether the environment variable is on. Read at every call."""
    return os.environ.get(name, "0") not in ("", "0")
