"""The demo's engine when a running request is taken back."""

from __future__ import annotations

import random

import pytest
from test_engine import check, check_empty, family, make, serve


@pytest.mark.parametrize("seed", range(4))
def test_preempted_requests_start_anew(seed: int) -> None:
    """Sound after each preemption, of a request in prefill too; all are served, all is freed."""
    rng = random.Random(seed)
    engine = make(max_reqs=3, num_pages=60, chunk_tokens=300)
    requests = family(rng, 10, 2000)
    engine.submit(requests)
    for _ in range(60):
        engine.step()
        if engine.lengths() and rng.random() < 0.5:
            row = rng.choice(list(engine.lengths()))
            request, waiting = engine.request(row), engine.waiting
            engine.preempt(row)
            assert (engine.waiting, row in engine.lengths()) == (waiting + 1, False)
            assert engine._waiting[0] is request
        check(engine)
    assert engine.stats.preempted > 5
    serve(engine, [])
    assert engine.stats.finished == len(requests) == engine.stats.admitted - engine.stats.preempted
    check_empty(engine)
    with pytest.raises(KeyError):
        engine.preempt(1)
