"""`xkv bench --suite extend`, as far as it goes without a GPU: what is timed, and that it is checked."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest

from xkv.cli.bench import extend, timing
from xkv.cli.bench.extend import BATCHES, CONTEXTS, PAGES, Inputs, Point


def test_points() -> None:
    found = extend.points(quick=False)
    assert {p.page for p in found} == set(PAGES)
    assert {p.batch for p in found} == set(BATCHES)
    assert Point(256, 1_000_000, 1) in found
    assert {p.context for p in found if p.batch == 256} == set(CONTEXTS)
    assert set(extend.points(quick=True)) <= set(found)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, device: str) -> Callable[[Point], list[Inputs]]:
    """Two builders of a point."""
    monkeypatch.setattr(extend, "_BYTES", 1)

    def drawn(point: Point) -> list[Inputs]:
        inputs = extend.drawn(point, 40, device)
        assert len(inputs) == 2
        return inputs

    return drawn


@pytest.mark.parametrize("page", [1, 16])
def test_a_stale_entry_is_seen(page: int, two: Callable[[Point], list[Inputs]]) -> None:
    inputs = two(Point(3, 200, page))

    def step(one: Inputs, spoiled: int) -> None:
        one.builder.extend(one.rows, one.lens)
        one.table[1, 0] += spoiled

    for one in inputs:
        assert extend._is_right(one, functools.partial(step, spoiled=0))
        assert not extend._is_right(one, functools.partial(step, spoiled=1))
        # what an engine has written last is read again before a replay
        assert one.newest.shape[0] == 3
        assert one.newest.max() < one.builder.req_to_token.numel()


@pytest.mark.kernel
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("page", [1, 4])
def test_the_least_writes_a_step(page: int, rows: int, two: Callable[[Point], list[Inputs]]) -> None:
    point = Point(5, 40, page)
    one = two(point)[0]
    for _ in range(page + 1):
        assert extend._is_right(one, functools.partial(extend._least, point, rows, 1))
    record, seqlens, cu_k, cu_q = one.others
    assert record[::4].tolist() == seqlens.tolist() == one.lens.tolist()
    assert cu_k.tolist() == [0, *itertools.accumulate(one.lens.tolist())]
    assert cu_q.tolist() == list(range(6))


@pytest.mark.kernel
def test_a_host_that_is_held_up(
    two: Callable[[Point], list[Inputs]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replay adds a token, also those that are repeated: all fit in the table."""

    def replays(calls: timing.Calls[Inputs], before: Callable[[Inputs], None], inputs: list[Inputs],
                warm: object, rounds: int) -> dict[str, list[float]]:  # fmt: skip
        for one, _ in itertools.product(inputs, range((len(calls) + 1) * (1 + rounds * timing.MOST_REPLAYS))):
            before(one)
        assert all(one.lens.max() < one.table.shape[1] for one in inputs)
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(timing, "in_place", replays)
    monkeypatch.setattr(timing, "host_rounds", lambda calls, inputs, rounds: {name: [1.0] for name in calls})
    monkeypatch.setattr(extend, "drawn", functools.partial(extend.drawn, device=device))
    assert extend.measured(Point(1, 120, 1), 9)["wrong"] == []
