"""Lines that are logged before logging is configured.

Engines load plugins first: SGLang in all of its processes, vLLM from 0.31 on in ``LLM`` and in the process
that reads a server's arguments. What is logged then is dropped, or has no format. So a line is kept, and
logged right before the first record of anybody's that is made once a handler would get the line.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

_kept: dict[int, tuple[logging.Logger, int, str]] = {}
_numbers = itertools.count()


def say(log: logging.Logger, level: int, line: str) -> None:
    """Logs a line now, where a handler would see it, or else as soon as one would: once."""
    if _seen(log, level):
        log.log(level, "%s", line)
        return
    _kept[next(_numbers)] = log, level, line
    if not isinstance(logging.getLogRecordFactory(), _Factory):
        logging.setLogRecordFactory(_Factory(logging.getLogRecordFactory()))


def _seen(log: logging.Logger, level: int) -> bool:
    return log.isEnabledFor(level) and log.hasHandlers()


class _Factory:
    """Makes records as the factory before it did; before each one, says what was kept and is seen by now."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        for number in list(_kept):
            log, level, line = _kept.get(number, (None, 0, ""))
            # no lock, as whoever logs may hold some of its own: it is said by the thread that removes it
            if log is not None and _seen(log, level) and _kept.pop(number, None) is not None:
                log.log(level, "%s", line)
        if not _kept and logging.getLogRecordFactory() is self:
            logging.setLogRecordFactory(self._make)
        record: logging.LogRecord = self._make(*args, **kwargs)
        return record
