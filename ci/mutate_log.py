"""A pytest plugin of ci/mutate.py: writes down which test has begun, in case the process ends in it."""

from __future__ import annotations

import os
from pathlib import Path


def pytest_runtest_logstart(nodeid: str) -> None:
    """Keeps the last one.

    Args:
        nodeid: the test's name.
    """
    Path(os.environ["XKV_MUTATE_LOG"]).write_text(nodeid)
