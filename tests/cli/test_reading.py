"""Files that the command line reads beside traces: a record or a peer's file, malformed, is one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bench_tables import REPORT

from xkv.__main__ import main
from xkv.cli import loading
from xkv.cli.bench import reading
from xkv.cli.loading import PeerError

pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
FUZZ = settings(max_examples=60, derandomize=True)


def put(path: tuple[str | int, ...], value: Any, report: Any = REPORT) -> Any:
    """The report with another value there."""
    changed = copy.deepcopy(report)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def without(path: tuple[str | int, ...]) -> Any:
    changed = copy.deepcopy(REPORT)
    at = changed
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return changed


def paths(x: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where every part of a value lies."""
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    return [path, *(found for key, part in items for found in paths(part, (*path, key)))]


def shown(content: bytes, tmp_path: Path, capsys: Any) -> tuple[int, str, str]:
    file = tmp_path / "record.json"
    file.write_bytes(content)
    status = main(["bench", "--from", str(file)])
    out, err = capsys.readouterr()
    return status, out, err.removeprefix(f"xkv bench: --from: {file}:")


def test_a_record(tmp_path: Path, capsys: Any) -> None:
    status, out, err = shown(json.dumps(REPORT).encode(), tmp_path, capsys)
    assert (status, err) == (0, "")
    assert "seed again over itself" in out


def dumped(report: Any) -> bytes:
    return json.dumps(report, indent=1).encode()


SHAPE = "not a record of xkv bench: "
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "1: not JSON: Expecting value"),
    "cut off": (dumped(REPORT)[:300], "19: not JSON: "),
    "not text": (b'{"a":\n "\xff"}', " not UTF-8 (invalid start byte at byte 8)"),
    "nested": (b"[" * 100_000, " not JSON that can be read: maximum recursion depth exceeded"),
    "a huge int": (b'{"rounds": ' + b"9" * 5000 + b"}", " not JSON that can be read: Exceeds the limit"),
    "a list": (b"[]", f"1: {SHAPE}expected an object, got a list"),
    "null": (b"null", f"1: {SHAPE}expected an object, got null"),
    "no points": (dumped(without(("points",))), f"1: {SHAPE}there is no 'points' in it"),
    "no gpu": (dumped(without(("setting", "gpu"))), f"2: {SHAPE}setting: there is no 'gpu' in it"),
    "copy": (
        dumped(put(("setting", "copy_gb_s"), "fast")),
        f'9: {SHAPE}setting.copy_gb_s: expected a number of 0 or more, got "fast"',
    ),
    "a point's key": (dumped(put(("points", 1, "more"), 1)), f"36: {SHAPE}points[1]: a point has no 'more'"),
    "a point": (dumped(put(("points", 0), 3)), f"17: {SHAPE}points[0]: expected an object, got 3"),
    "section": (
        dumped(put(("points", 2, "section"), "tables")),
        f'56: {SHAPE}points[2].section: expected one of table, csr, got "tables"',
    ),
    "page size": (
        dumped(put(("points", 0, "page_size"), 64.0)),
        f"20: {SHAPE}points[0].page_size: expected a whole number of 0 or more, got 64.0",
    ),
    "a bool": (
        dumped(put(("points", 0, "batch"), True)),
        f"21: {SHAPE}points[0].batch: expected a whole number of 0 or more, got true",
    ),
    "no time of ours": (
        dumped(without(("points", 0, "us", "xkv"))), f"26: {SHAPE}points[0].us: there is no 'xkv'",
    ),
    "zero": (
        dumped(put(("points", 0, "us", "xkv"), 0)),
        f"29: {SHAPE}points[0].us.xkv: expected a number above 0, got 0",
    ),
    "nan": (
        dumped(put(("points", 0, "us", "seed"), float("nan"))),
        f"30: {SHAPE}points[0].us.seed: expected a number above 0, got nan",
    ),
    "infinite": (
        dumped(REPORT).replace(b"2618.2", b"1e999"),
        f"9: {SHAPE}setting.copy_gb_s: expected a number of 0 or more, got inf",
    ),
    "again alone": (
        dumped(without(("points", 0, "us", "seed"))), f"26: {SHAPE}points[0].us: 'again' needs 'seed'",
    ),
    "a long text": (
        dumped(put(("host",), "x" * 99)), f'{SHAPE}host: expected a list, got "{"x" * 39}...',
    ),
    "wrong": (dumped(put(("wrong",), [1])), f"{SHAPE}wrong[0]: expected text, got 1"),
    "absent": (dumped(put(("absent",), {"a": None})), f"{SHAPE}absent.a: expected text, got null"),
    "twice": (
        b'{\n"wrong": [],\n"wrong": 5,\n' + dumped(without(("wrong",)))[1:],
        f"3: {SHAPE}wrong: expected a list, got 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_record(name: str, tmp_path: Path, capsys: Any) -> None:
    content, says = BAD[name]
    status, out, err = shown(content, tmp_path, capsys)
    assert (status, out) == (2, "")
    assert says in err
    if says[0].isdigit():
        assert err.startswith(says)
    assert err.count("\n") == 1
    assert "Traceback" not in err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=9), part, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(data=st.data())
def test_any_value_anywhere(tmp_path: Path, capsys: Any, data: st.DataObject) -> None:
    """The record is shown, or refused in a sentence."""
    path = data.draw(st.sampled_from(paths(REPORT)[1:]))
    changed = put(path, data.draw(JSON)) if data.draw(st.booleans()) else without(path)
    status, _, err = shown(dumped(changed), tmp_path, capsys)
    assert status in (0, 1, 2)
    assert (status == 0) == (err == "")
    if status == 2:
        assert err.count("\n") == 1


@FUZZ
@given(content=st.binary(max_size=80))
def test_any_bytes(tmp_path: Path, capsys: Any, content: bytes) -> None:
    status, out, err = shown(content, tmp_path, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_the_line_of_every_part() -> None:
    """Each part's own line: as it is laid out here, a part a line and none twice."""
    text = json.dumps(REPORT, indent=1)
    lines = text.splitlines()
    for path in paths(REPORT)[1:]:
        line = lines[text.count("\n", 0, reading._position(text, path))]
        if isinstance(path[-1], str):
            assert line.strip().startswith(f'"{path[-1]}":')


BAD_PEERS = {
    "syntax": (b"import math\n\ndef f(:\n", "3: cannot be imported: SyntaxError: "),
    "NUL": (b"x = 1\0", "cannot be imported: "),
    "not UTF-8": (b"x = '\xff'\n", "cannot be imported: "),
    "missing": (b"import math\nimport no_module_of_ours\n", "2: cannot be imported: ModuleNotFoundError: "),
    "raises": (b"x = 1\ny = x / 0\n", "2: cannot be imported: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("name", BAD_PEERS)
@pytest.mark.parametrize("how", ["load", "load_function"])
def test_bad_peer(how: str, name: str, tmp_path: Path) -> None:
    content, says = BAD_PEERS[name]
    file = tmp_path / "kv_indices.py"
    file.write_bytes(content)
    if how == "load":
        with pytest.raises(PeerError) as info:
            loading.load(file)
    elif name in ("missing", "raises"):  # a function is cut out of it, without what it does not name
        assert loading.load_function(file, "f") is None
        return
    else:
        with pytest.raises(PeerError) as info:
            loading.load_function(file, "f")
    assert str(info.value).startswith(f"{file}:")
    assert says in str(info.value)
