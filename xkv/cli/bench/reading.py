"""A record of `python -m xkv bench`, read back: checked against its shape, so that any file is answered."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .records import AGAIN, CHAIN, EMPTY, OURS, SECTIONS

_LARGEST = 1e15  # of a number: what a table has room for
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class RecordError(ValueError):
    """A file that is no record; the message says `file:line: where: what was expected, what came`."""


class _Leaf(NamedTuple):
    """A value without parts: what it must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _number(low: float, x: Any, *, above: bool = False) -> bool:
    # a bool is an int to Python; nan is in no range
    return type(x) in (int, float) and low <= x <= _LARGEST and (x > low or not above)


_TEXT = _Leaf("text", lambda x: isinstance(x, str))
_COUNT = _Leaf("a whole number of 0 or more", lambda x: type(x) is int and 0 <= x <= _LARGEST)
_AMOUNT = _Leaf("a number of 0 or more", lambda x: _number(0, x))
_POSITIVE = _Leaf("a number above 0", lambda x: _number(0, x, above=True))
_RATIO = _Leaf("a number of 0 or more, or null", lambda x: x is None or _number(0, x))
_NAMES = tuple(section.name for section in SECTIONS)
_SECTION = _Leaf(f"one of {', '.join(_NAMES)}", lambda x: x in _NAMES)


class _Each(NamedTuple):
    """An object with any names, and some that must be there; its values are alike."""

    value: Any
    required: tuple[str, ...] = ()


# A dict is an object with these names, and maybe more; a list of one is a list of such.
_RECORD = {
    "setting": {
        **dict.fromkeys(("gpu", "driver", "torch", "triton", "xkv", "date", "l2"), _TEXT),
        "copy_gb_s": _AMOUNT, "rounds": _COUNT,
    },
    "absent": _Each(_TEXT),
    "points": [
        {
            "section": _SECTION, "workload": _TEXT, "bytes_us": _AMOUNT,
            **dict.fromkeys(("page_size", "batch", "capacity", "entries", "sets"), _COUNT),
            "us": _Each(_POSITIVE, (OURS, EMPTY, CHAIN)),
        }
    ],
    "host": [{"name": _TEXT, "median": _AMOUNT, "min": _AMOUNT, "over_seed": _RATIO}],
    "stepless": [_TEXT],
    "compiles": _Each(_COUNT),
    "widths": [
        {"name": _TEXT, "widths": _COUNT, "compiles": _COUNT, "median_ms": _AMOUNT, "max_ms": _AMOUNT}
    ],
    "serving": [{"name": _TEXT, "steps": _COUNT, "compiles": _COUNT, "loads": _COUNT}],
    "wrong": [_TEXT],
}  # fmt: skip

_Path = tuple[str | int, ...]


class _ShapeError(ValueError):
    """What is wrong with a part; `read` adds the file and the line."""

    def __init__(self, path: _Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def read(file: Path) -> dict[str, Any]:
    """Reads what `python -m xkv bench` wrote to --json.

    Args:
        file: the record.

    Returns:
        The report.

    Raises:
        RecordError: it is not JSON, or not of that shape.
        OSError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
        report: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}: not JSON that can be read: {error}") from error
    try:
        _check((), report, _RECORD)
        for n, point in enumerate(report["points"]):
            _check_point(("points", n), point)
    except _ShapeError as error:
        line = text.count("\n", 0, _position(text, error.path)) + 1
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error.path)
        part = f"{where.removeprefix('.')}: " if where else ""
        raise RecordError(f"{file}:{line}: not a record of xkv bench: {part}{error}") from error
    return report


def _check(path: _Path, x: Any, shape: Any) -> None:
    if isinstance(shape, _Leaf):
        if not shape.holds(x):
            raise _ShapeError(path, f"expected {shape.expected}, got {_shown(x)}")
    elif isinstance(shape, list):
        if not isinstance(x, list):
            raise _ShapeError(path, f"expected a list, got {_shown(x)}")
        for n, each in enumerate(x):
            _check((*path, n), each, shape[0])
    else:
        if not isinstance(x, dict):
            raise _ShapeError(path, f"expected an object, got {_shown(x)}")
        parts = dict.fromkeys(x, shape.value) if isinstance(shape, _Each) else shape
        for name in shape.required if isinstance(shape, _Each) else shape:
            if name not in x:
                raise _ShapeError(path, f"there is no {name!r} in it")
        for name, part in parts.items():
            _check((*path, name), x[name], part)


def _check_point(path: _Path, point: dict[str, Any]) -> None:
    """What one part of a point says about another."""
    if more := sorted(point.keys() - _RECORD["points"][0].keys()):  # type: ignore[index]
        raise _ShapeError(path, f"a point has no {more[0]!r}")
    baseline = next(section.baseline for section in SECTIONS if section.name == point["section"])
    if AGAIN in point["us"] and baseline not in point["us"]:
        raise _ShapeError((*path, "us"), f"{AGAIN!r} needs {baseline!r}")


def _shown(x: Any) -> str:
    """A value, as much of it as a line has room for."""
    if isinstance(x, (list, dict)):
        return "a list" if isinstance(x, list) else "an object"
    text = json.dumps(x) if not isinstance(x, float) or math.isfinite(x) else str(x)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _position(text: str, path: _Path) -> int:
    """Where in the text of a record the part lies that a path of names and indices leads to."""
    at = _skip(text, 0)
    for key in path:
        at, n, last = _skip(text, at + 1), 0, None
        while text[at] not in "]}":
            name: str | int = n
            if text[at] == '"' and isinstance(key, str):
                name, at = _DECODER.raw_decode(text, at)
                at = _skip(text, _skip(text, at) + 1)  # past the colon
            if name == key:
                last = at  # of several of that name the last counts
            at = _skip(text, _DECODER.raw_decode(text, at)[1])
            at, n = _skip(text, at + 1) if text[at] == "," else at, n + 1
        assert last is not None
        at = last
    return at


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
