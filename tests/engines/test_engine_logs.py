"""The plugins' line is seen in a log that is configured after them, once a process."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable, Iterator

import pytest

from xkv.integrations.patching import logs

LINE = "xkv replaces something"


class Lines(logging.Handler):
    """What a handler is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it first: a process that has not configured logging."""
    root = logging.RootLogger(logging.WARNING)
    manager = logging.Manager(root)
    monkeypatch.setattr(logging, "root", root)
    monkeypatch.setattr(logging.Logger, "root", root)
    monkeypatch.setattr(logging.Logger, "manager", manager)
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    logs._kept.clear()
    yield root.handlers.clear  # pytest adds its own when the test begins
    logs._kept.clear()
    logging.setLogRecordFactory(factory)


def configure(how: str, level: str) -> Lines:
    """As SGLang does it, or vLLM."""
    lines = Lines()
    if how == "root":
        logging.basicConfig(level=getattr(logging, level), handlers=[lines], force=True)
        return lines
    handlers = {"engine": {"()": lambda: lines, "level": level}}
    loggers = {"engine": {"handlers": ["engine"], "level": level, "propagate": False}}
    config = {"version": 1, "disable_existing_loggers": False, "handlers": handlers, "loggers": loggers}
    logging.config.dictConfig(config)
    return lines


@pytest.mark.parametrize("how", ["root", "own logger"])
@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_said_once_when_there_is_a_log(how: str, level: str, start: Callable[[], None]) -> None:
    start()
    logs.say(logging.getLogger("engine.xkv"), getattr(logging, level), LINE)
    logging.getLogger("engine.early").warning("too early")
    lines = configure(how, "INFO")
    for number in range(3):
        logging.getLogger("engine.other").info("%s", number)
    assert lines.lines == [f"{level} {LINE}", "INFO 0", "INFO 1", "INFO 2"]
    assert logging.getLogRecordFactory() is logging.LogRecord
    configure(how, "INFO")
    logging.getLogger("engine.other").info("again")
    assert not logs._kept


@pytest.mark.parametrize("how", ["root", "own logger"])
def test_said_at_once_where_there_is_a_log(how: str, start: Callable[[], None]) -> None:
    start()
    lines = configure(how, "INFO")
    logs.say(logging.getLogger("engine.xkv"), logging.INFO, LINE)
    assert lines.lines == [f"INFO {LINE}"]
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_not_said_where_it_is_not_asked_for(start: Callable[[], None]) -> None:
    start()
    logs.say(logging.getLogger("engine.xkv"), logging.INFO, LINE)
    lines = configure("own logger", "WARNING")
    logging.getLogger("engine.other").warning("a warning")
    logging.getLogger("engine.other").info("no warning")
    assert lines.lines == ["WARNING a warning"]


def test_an_engine_s_own_record_factory_stays(start: Callable[[], None]) -> None:
    """VLLM puts one around whatever is there when it configures."""
    start()
    logs.say(logging.getLogger("engine.xkv"), logging.INFO, LINE)
    before = logging.getLogRecordFactory()

    def factory(*args: object, **kwargs: object) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.process_name = "mine"
        return record

    logging.setLogRecordFactory(factory)
    lines = configure("own logger", "INFO")
    logging.getLogger("engine.other").info("one")
    logging.getLogger("engine.other").info("two")
    assert lines.lines == [f"INFO {LINE}", "INFO one", "INFO two"]
    assert logging.getLogRecordFactory() is factory
