"""A record of `python -m xkv bench`: read back, or refused in a sentence that names the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bench_tables import RECORD

from xkv.__main__ import main
from xkv.cli.bench import records

pytestmark = pytest.mark.repo

for module in ("tabulate", "tqdm", "msgspec"):
    pytest.importorskip(module)
DOCS = Path(__file__).resolve().parents[2] / "docs"
FUZZ = settings(max_examples=60, derandomize=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As it is written."""
    file = tmp_path_factory.mktemp("record") / "record.json"
    records.write(RECORD, file)
    assert records.read(file) == RECORD
    return json.loads(file.read_text())


def shown(content: bytes, tmp_path: Path, capsys: Any) -> tuple[int, str, str]:
    file = tmp_path / "record.json"
    file.write_bytes(content)
    status = main(["bench", "--from", str(file)])
    out, err = capsys.readouterr()
    return status, out, err.removeprefix(f"xkv bench: --from: {file}: ")


GONE = object()


def put(data: Any, path: str, value: Any) -> bytes:
    """The record with another value there, or without it."""
    changed = copy.deepcopy(data)
    *above, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    at = changed
    for key in above:
        at = at[key]
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return json.dumps(changed).encode()


RANGE = "must be from 1e-06 to 1e12, got"
BAD: list[tuple[str, Any, str]] = [
    ("points", GONE, ""),  # there is nothing to show of it, no more
    ("setting", GONE, "Object missing required field `setting`"),
    ("setting/gpu", GONE, "Object missing required field `gpu` - at `$.setting`"),
    ("setting/gpu", 4, "Expected `str`, got `int` - at `$.setting.gpu`"),
    ("setting/copy_gb_s", "fast", "Expected `float | null`, got `str` - at `$.setting.copy_gb_s`"),
    ("setting/l2", "hot", "Invalid enum value 'hot' - at `$.setting.l2`"),
    ("points/0", 3, "Expected `object`, got `int` - at `$.points[0]`"),
    ("points/2/section", "tables", "Invalid enum value 'tables' - at `$.points[2].section`"),
    ("points/0/page_size", GONE, "Object missing required field `page_size` - at `$.points[0]`"),
    ("points/0/page_size", 64.5, "Expected `int`, got `float` - at `$.points[0].page_size`"),
    ("points/0/batch", True, "Expected `int`, got `bool` - at `$.points[0].batch`"),
    ("points/0/max_len", 1.5, "Expected `int | null`, got `float` - at `$.points[0].max_len`"),
    ("points/0/least", 3, "Expected `str`, got `int` - at `$.points[0].least`"),
    ("points/0/times/xkv/back_us", 0, f"times.xkv.back_us {RANGE} 0 - at `$.points[0]`"),
    ("setting/predecessor", "late", "Invalid enum value 'late' - at `$.setting.predecessor`"),
    ("setting/issued", "hand", "Invalid enum value 'hand' - at `$.setting.issued`"),
    ("setting/predecessor", GONE, ""),
    ("points/0/times/xkv", GONE, "times has no 'xkv' - at `$.points[0]`"),
    ("points/0/times/xkv/device_us", 0, f"times.xkv.device_us {RANGE} 0 - at `$.points[0]`"),
    (
        "points/0/times/xkv/device_us",
        1e13,
        f"times.xkv.device_us {RANGE} 10000000000000.0 - at `$.points[0]`",
    ),
    ("points/3/times/xkv/launches", 0, ""),
    (
        "points/3/times/xkv/launches",
        -1,
        "times.xkv.launches must be from 0 to 1e12, got -1 - at `$.points[3]`",
    ),
    ("points/0/times/xkv/device_us", float("nan"), "JSON is malformed: invalid character"),
    (
        "points/0/times/xkv/device_us",
        "2",
        "Expected `int | float`, got `str` - at `$.points[0].times[...][...]`",
    ),
    (
        "points/0/times/xkv/devise_us",
        2,
        "Invalid enum value 'devise_us' - at `key` in `$.points[0].times[...]`",
    ),
    ("points/0/times/xkv", 2.0, "Expected `object`, got `float` - at `$.points[0].times[...]`"),
    ("wrong", [1], "Expected `str`, got `int` - at `$.wrong[0]`"),
    ("missing", {"a": 1}, "Expected `array`, got `object` - at `$.missing`"),
    ("compiles/a", None, "Expected `int`, got `null` - at `$.compiles[...]`"),
    ("widths/0/max_ms", GONE, "Object missing required field `max_ms` - at `$.widths[0]`"),
    ("serving/0/loads", 0.5, "Expected `int`, got `float` - at `$.serving[0].loads`"),
]


@pytest.mark.parametrize(("path", "value", "says"), BAD)
def test_a_bad_record(path: str, value: Any, says: str, data: Any, tmp_path: Path, capsys: Any) -> None:
    """The message says which field, what was expected and what came."""
    status, out, err = shown(put(data, path, value), tmp_path, capsys)
    assert status == (2 if says else 0)
    assert bool(out) == (not says)
    assert err.startswith(f"not a record of xkv bench: {says}" if says else "")
    assert err.count("\n") == bool(says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Input data was truncated"),
        (b'{"a":\n', "Input data was truncated"),
        (b'{"wrong": ["\xff"]}', "'utf-8' codec can't decode byte 0xff"),
        (b'{"a": ' + b"[" * 100_000, "maximum recursion depth exceeded"),
        (
            b'{"setting": {"rounds": ' + b"9" * 5000 + b"}}",
            "Integer value out of range - at `$.setting.rounds`",
        ),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
    ],
)
def test_no_record(content: bytes, says: str, tmp_path: Path, capsys: Any) -> None:
    status, out, err = shown(content, tmp_path, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"not a record of xkv bench: {says}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=9), part, max_size=3),
    max_leaves=6,
)


def paths(x: Any, path: str = "") -> list[str]:
    """Where every part of a value lies."""
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    return [path, *(found for key, part in items for found in paths(part, f"{path}/{key}".lstrip("/")))]


@FUZZ
@given(draw=st.data())
def test_any_value_anywhere(data: Any, tmp_path: Path, capsys: Any, draw: st.DataObject) -> None:
    """The record is shown, or refused in a sentence."""
    path = draw.draw(st.sampled_from(paths(data)[1:]))
    changed = put(data, path, draw.draw(JSON) if draw.draw(st.booleans()) else GONE)
    status, _, err = shown(changed, tmp_path, capsys)
    assert status in (0, 1, 2)
    assert (status == 0) == (err == "")
    if status == 2:
        assert err.count("\n") == 1


@FUZZ
@given(content=st.binary(max_size=80))
def test_any_bytes(tmp_path: Path, capsys: Any, content: bytes) -> None:
    status, out, err = shown(content, tmp_path, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.repo
@pytest.mark.parametrize(("name", "points"), [("bench-h200", 78), ("steps-h200", 30)])
def test_what_is_published(name: str, points: int, capsys: Any) -> None:
    """The records are read, and the page shows what they print; all device times are in place."""
    record = records.read(DOCS / f"{name}.json")
    assert len(record.points) == points
    assert all(point.in_place and point.us("xkv") for point in record.points)
    assert main(["bench", "--from", str(DOCS / f"{name}.json")]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(printed) in (DOCS / f"{name.split('-')[0]}.md").read_text()
