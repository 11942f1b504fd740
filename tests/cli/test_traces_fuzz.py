"""Traces under hypothesis: whatever the bytes, sound requests or a TraceError come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_traces import AZURE, HEADER, check, mooncake

from xkv.cli.demo.traces import TraceError, read_trace

pytestmark = pytest.mark.repo

FUZZ = settings(max_examples=150)


def read_or_reject(path: Path, content: bytes) -> None:
    """Nothing but a list of sound requests or a TraceError at a line of the file may come out."""
    path.write_bytes(content)
    rejected = None
    try:
        check(read_trace(path))
    except TraceError as error:
        rejected = error
    if rejected is not None:
        assert 1 <= rejected.line <= content.count(b"\n") + 2
        assert "\n" not in str(rejected)


@FUZZ
@given(content=st.binary(max_size=200), start=st.sampled_from([b"", b"{", HEADER.encode() + b"\n"]))
def test_any_bytes(tmp_path: Path, content: bytes, start: bytes) -> None:
    read_or_reject(tmp_path / "trace", start + content)


@FUZZ
@given(
    good=st.sampled_from([mooncake() + "\n" + mooncake(), f"{HEADER}\n{AZURE}\n{AZURE}"]),
    data=st.data(),
)
def test_any_edit_of_a_good_trace(tmp_path: Path, good: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(begin, min(len(good), begin + 12)))
    patch = data.draw(
        st.one_of(st.text(max_size=6), st.sampled_from(["-", "e9", "null", "NaN", "[", "9" * 20]))
    )
    edited = good[:begin] + patch + good[end:]
    read_or_reject(tmp_path / "trace", edited.encode("utf-8", "surrogatepass"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@FUZZ
@given(key=st.sampled_from(["timestamp", "input_length", "output_length", "hash_ids"]), value=JSON)
def test_any_value_of_a_key(tmp_path: Path, key: str, value: object) -> None:
    read_or_reject(tmp_path / "trace", mooncake(**{key: value}).encode())
