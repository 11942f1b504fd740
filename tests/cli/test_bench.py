"""`python -m xkv bench`: its workloads, what the providers read, and how compiles are counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benching import TINY, make_inputs, write_trace

from xkv.cli.bench import compiles, inputs, workloads
from xkv.cli.bench.cases import DRAFTS, Case
from xkv.cli.bench.workloads import WORKLOADS, Workload

K = 1024


def test_workloads() -> None:
    """Name -> requests, tokens, capacity, as the tables of the documentation have them."""
    assert {load.name: (load.batch, sum(load.lens), load.capacity) for load in WORKLOADS} == {
        "1 x 128K": (1, 128 * K, 128 * K),
        "1 x 1M": (1, K * K, K * K),
        "8 x 8K in 1M": (8, 64 * K, K * K),
        "32 x 32K in 128K": (32, K * K, 128 * K),
        "64 x 128K": (64, 8 * K * K, 128 * K),
        "256 x 4K in 128K": (256, K * K, 128 * K),
        "256 x ~4K in 128K": (256, K * K, 128 * K),
        "256 x 8K in 1M": (256, 2 * K * K, K * K),
        "256 x 128K": (256, 32 * K * K, 128 * K),
        "512 x 2K in 128K": (512, K * K, 128 * K),
        "1 x 1M + 255 x 4K in 1M": (256, K * K + 255 * 4 * K, K * K),
        "4 x 128K + 252 x 2K in 128K": (256, 512 * K + 252 * 2 * K, 128 * K),
        "128K/k": (128, sum(128 * K // k for k in range(1, 129)), 128 * K),
        "1 x ~64K in 128K": (1, 64 * K, 128 * K),
    }
    assert all(0 < length <= load.capacity for load in WORKLOADS for length in load.lens)
    # a workload's tokens are all different ids
    assert max(sum(load.lens) for load in WORKLOADS) <= inputs.POOL
    by_suite = {suite: [load for load in WORKLOADS if suite in load.suites] for suite in ("ops", "steps")}
    assert [len(loads) for loads in by_suite.values()] == [13, 2]
    assert all(any(load.quick for load in loads) for loads in by_suite.values())
    for load in by_suite["steps"]:  # a verify has room
        assert max(max(load.draw(n)) for n in range(24)) + DRAFTS <= load.capacity


def test_lengths_are_drawn() -> None:
    spread = next(load for load in WORKLOADS if load.name == "256 x ~4K in 128K")
    assert sum(spread.draw(0)) == 1043198
    assert spread.draw(1) == spread.draw(1) != spread.draw(0)
    assert all(4096 * 0.9 <= length <= 4096 * 1.1 for length in spread.draw(1))
    assert TINY[0].draw(0) == TINY[0].draw(1) == list(TINY[0].lens)


def test_trace(tmp_path: Path) -> None:
    # the last two: prefill alone, and no room for a verify by one token
    file = write_trace(tmp_path / "mine.jsonl", (1000, 10), (5000, 90), (70, 0), (128 * K - 5, 2))
    few, many = loads = workloads.from_trace(file)
    assert [(load.name, load.batch, load.capacity) for load in loads] == [
        ("mine, 32", 32, 128 * K), ("mine, 256", 256, 128 * K),
    ]  # fmt: skip
    for load in loads:
        assert all(1001 <= length <= 1010 or 5001 <= length <= 5090 for length in load.lens)
    # in 9 steps of 10 it is the one that generates 9 times as much, and at any of its steps
    long = [length for length in many.lens if length > 5000]
    assert 0.8 < len(long) / 256 < 0.97
    assert min(long) < 5010
    assert max(long) > 5080
    assert workloads.from_trace(file) == [few, many]


def test_sources_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LAUNCHES", 3)
    one = Workload("another", (60, 130), 200)
    made = inputs.make_sources([*TINY, one], "cpu")
    assert {capacity: tuple(source.shape) for capacity, source in made.items()} == {
        800: (15, 804), 200: (6, 204),
    }  # fmt: skip
    for source in made.values():
        assert source.dtype == torch.int32
        assert source.min() >= 0
        assert source.max() < inputs.POOL
        pages = source[:, : source.shape[1] // 64 * 64].view(len(source), -1, 64)
        assert torch.equal(pages, pages[..., :1] // 64 * 64 + torch.arange(64))
    for load in (*TINY, one):
        at = inputs.make_inputs(Case("table", 64), load, made[load.capacity])
        assert at.index.shape == at.lens.shape == (3, load.batch)
        assert len(set(at.index.flatten().tolist())) == at.index.numel()
        assert at.index.max() < len(at.source)
        for step in at.steps:
            assert step.lens.tolist() == step.host_lens.tolist() == list(load.lens)
            assert step.total == sum(load.lens)
            assert step.rows.data_ptr() % 16 == at.index.data_ptr() % 16
            assert step.lens.data_ptr() % 16 == at.lens.data_ptr() % 16
        assert at.launches == at.steps
        assert at.width == -(-load.capacity // 64)
    short = inputs.make_inputs(Case("table", 64), one, made[200][:3])
    assert short.launches == [short.steps[0]] * 3


def test_entries() -> None:
    counts = {size: make_inputs(Case("table", size), TINY[0], "cpu").entries for size in (64, 16, 1)}
    assert counts == {64: 11 + 1 + 1 + 2 + 2, 16: 44 + 1 + 4 + 5 + 8, 1: 957}
    assert make_inputs(Case("steps", 64, "flashmla", 4), TINY[0], "cpu").entries == 11 + 1 + 2 + 2 + 3


def test_a_source_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 4 * 804, 0))
    with pytest.raises(MemoryError, match="5 rows of 800 tokens do not fit"):
        inputs.make_sources(TINY[:1], "cuda")


def test_compiles_are_counted_and_another_listener_still_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    heard: list[Any] = []
    before = lambda *, src, **more: heard.append((src.name, more["cache_hit"]))  # noqa: E731
    monkeypatch.setattr(knobs.compilation, "listener", before)
    kernel = SimpleNamespace(fn=test_workloads)  # as Triton's, with the function it was made of
    with compiles.counted() as counts:
        for hit in (False, True):
            knobs.compilation.listener(src=SimpleNamespace(name="table", fn=kernel), cache_hit=hit)
        knobs.compilation.listener(src=SimpleNamespace(name="ir"), cache_hit=False)
    assert counts == {"test_bench.table": 2, "ir": 1}
    assert heard == [("table", False), ("table", True), ("ir", False)]
    assert knobs.compilation.listener is before
