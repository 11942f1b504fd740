"""`xkv bench --suite extend`, as far as it goes without a GPU: what is timed, and that it is checked."""

from __future__ import annotations

from typing import Any

import pytest

from xkv.cli.bench import extend
from xkv.cli.bench.extend import BATCHES, CONTEXTS, PAGES, Point


def test_points() -> None:
    found = extend.points(quick=False)
    assert {p.page for p in found} == set(PAGES)
    assert {p.batch for p in found} == set(BATCHES)
    assert Point(256, 1_000_000, 1) in found
    assert {p.context for p in found if p.batch == 256} == set(CONTEXTS)
    assert set(extend.points(quick=True)) <= set(found)


@pytest.mark.parametrize("page", [1, 16])
def test_a_stale_entry_is_seen(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extend, "_BYTES", 1)
    inputs = extend.drawn(Point(3, 200, page), "cpu")
    assert len(inputs) == 2
    assert all(map(extend._is_right, inputs))
    spoiled: Any = inputs[0].builder
    spoiled._views[0].out[1, 0] += 1
    assert not extend._is_right(inputs[0])
    assert extend._is_right(inputs[1])
    for one in inputs:  # what an engine has written last is read again before a replay
        assert one.newest.shape[0] == 3
        assert one.newest.max() < one.builder.req_to_token.numel()
