"""A pytest plugin for ci/mutate.py: records which test has started, in case the process ends in it."""

from __future__ import annotations

import os
from pathlib import Path


def pytest_runtest_logstart(nodeid: str) -> None:
    """Records the test that starts.

    Args:
        nodeid: the name of the test.
    """
    Path(os.environ["XKV_MUTATE_LOG"]).write_text(nodeid)
