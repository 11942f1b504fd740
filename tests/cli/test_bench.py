"""`python -m xkv bench`: its workloads, what they read, and its contenders against the oracle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benching import FOUND, HOST, TINY, write_trace

from xkv.cli.bench import compiles, contenders, inputs, oracle, session, workloads
from xkv.cli.bench.records import BLOCKS, CHAIN, EMPTY, OURS, READ_TABLE, SEED, SERIAL, TOKENS
from xkv.cli.bench.workloads import WORKLOADS, Workload

K = 1024


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LAUNCHES", 2)


def test_workloads() -> None:
    """Name -> requests, tokens, capacity, as the tables of the design have them."""
    assert {load.name: (load.batch, sum(load.lens), load.capacity) for load in WORKLOADS} == {
        "1 x 128K": (1, 128 * K, 128 * K),
        "1 x 1M": (1, K * K, K * K),
        "8 x 8K in 1M": (8, 64 * K, K * K),
        "32 x 32K in 128K": (32, K * K, 128 * K),
        "64 x 128K": (64, 8 * K * K, 128 * K),
        "256 x 4K in 128K": (256, K * K, 128 * K),
        "256 x ~4K in 128K": (256, 1043198, 128 * K),
        "256 x 8K in 1M": (256, 2 * K * K, K * K),
        "256 x 128K": (256, 32 * K * K, 128 * K),
        "512 x 2K in 128K": (512, K * K, 128 * K),
        "1 x 1M + 255 x 4K in 1M": (256, K * K + 255 * 4 * K, K * K),
        "4 x 128K + 252 x 2K in 128K": (256, 512 * K + 252 * 2 * K, 128 * K),
        "128K/k": (128, sum(128 * K // k for k in range(1, 129)), 128 * K),
    }
    assert all(0 < length <= load.capacity for load in WORKLOADS for length in load.lens)
    assert set(workloads.QUICK) < {load.name for load in WORKLOADS}
    # a workload's tokens are all different ids
    assert max(sum(load.lens) for load in WORKLOADS) <= inputs.POOL


def test_entries() -> None:
    assert [TINY[0].entries(size) for size in (64, 16, 1)] == [11 + 1 + 1 + 2 + 2, 44 + 1 + 4 + 5 + 8, 957]


def test_trace(tmp_path: Path) -> None:
    # the last two: prefill alone, and too long by one token
    file = write_trace(tmp_path / "mine.jsonl", (1000, 10), (5000, 90), (70, 0), (128 * K - 1, 2))
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


def test_sources_and_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LAUNCHES", 3)
    made = inputs.make_sources([*TINY, HOST], "cpu")
    assert {capacity: tuple(source.shape) for capacity, source in made.items()} == {
        800: (15, 804), 200: (6, 204),
    }  # fmt: skip
    for source in made.values():
        assert source.dtype == torch.int32
        assert source.min() >= 0
        assert source.max() < inputs.POOL
        pages = source[:, : source.shape[1] // 64 * 64].view(len(source), -1, 64)
        assert torch.equal(pages, pages[..., :1] // 64 * 64 + torch.arange(64))
    for load in (*TINY, HOST):
        at = inputs.make_inputs(load, 64, made[load.capacity])
        sets = 6 if load.batch == 1 else 3
        assert at.index.shape == (min(sets, 3), load.batch)
        assert len(set(at.index.flatten().tolist())) == at.index.numel()
        assert at.index.max() < len(at.source)
        assert all(rows.data_ptr() % 16 == at.index.data_ptr() % 16 for rows in at.rows)
        assert len(at.launches) == 3
        assert at.width == -(-load.capacity // 64)


def test_a_source_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 4 * 804, 0))
    with pytest.raises(MemoryError, match="5 rows of 800 tokens do not fit"):
        inputs.make_sources(TINY[:1], "cuda")


def points(device: str, *loads: Workload, sizes: tuple[int, ...] = (64, 16, 1)) -> list[inputs.Inputs]:
    sources = inputs.make_sources(loads, device)
    return [inputs.make_inputs(load, size, sources[load.capacity]) for load in loads for size in sizes]


@pytest.mark.kernel
@pytest.mark.usefixtures("few")
def test_contenders_against_the_oracle(stubs: Path, device: str) -> None:
    peers = contenders.Peers([stubs])
    assert peers.absent == {}
    for at in points(device, *TINY):
        table, csr = contenders.table(at, peers), contenders.csr(at, peers)
        assert {each.name for each in table} == {SEED, SERIAL, READ_TABLE, OURS}
        assert {each.name for each in csr} == {TOKENS, BLOCKS, READ_TABLE, OURS}
        assert oracle.differences(at, table) == {}
        assert oracle.differences(at, csr) == {}


@pytest.mark.usefixtures("few")
def test_ours_alone(device: str) -> None:
    """Without any peer: in the reference, the interpreter or on a GPU."""
    peers = contenders.Peers([])
    assert set(peers.absent) == set(FOUND)
    for at in points(device, *TINY):
        for make in (contenders.table, contenders.csr):
            found = make(at, peers)
            assert [each.name for each in found] == [OURS]
            assert oracle.differences(at, found) == {}


SPOIL = [
    ("page_table", lambda x: x[1, 0].add_(1), "set 0: live entry 11 of page_table is"),
    ("kv_indices", lambda x: x[16].zero_(), "set 0: live entry 16 of kv_indices is 0, not"),
    ("kv_indices", lambda x: x[17].zero_(), None),
    ("kv_indptr", lambda x: x[0].fill_(1), "set 0: live entry 0 of kv_indptr is 1, not 0"),
    ("kv_indptr", lambda x: x[5].fill_(1), "set 0: live entry 5 of kv_indptr is 1, not 17"),
    ("kv_last_page_len", lambda x: x[3].fill_(2), "set 0: live entry 3 of kv_last_page_len is 2, not 1"),
    ("page_table", lambda x: x[1, 1].add_(1), None),
    # what a call leaves out is not taken from the call before it
    ("page_table", lambda x: x[4, 1].fill_(-7), "set 0: live entry 16 of page_table is -7, not"),
]


@pytest.mark.parametrize(("name", "how", "said"), SPOIL)
@pytest.mark.usefixtures("few")
def test_the_oracle_sees(name: str, how: Any, said: str | None) -> None:
    (at,) = points("cpu", TINY[0], sizes=(64,))
    make = contenders.table if name == "page_table" else contenders.csr
    (each,) = make(at, contenders.Peers([]))

    def spoilt(rows: torch.Tensor) -> None:
        each.call(rows)
        how(each.out[name])

    wrong = oracle.differences(at, [contenders.Contender(OURS, spoilt, each.unit, each.out)])
    assert len(wrong) == (said is not None)
    assert said is None or wrong[OURS].startswith(said)


@pytest.mark.kernel
@pytest.mark.usefixtures("few")
def test_the_floor_s_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (at,) = points(device, TINY[0], sizes=(64,))
    out = at.ints(16)
    monkeypatch.setattr(inputs.Inputs, "ints", lambda *_: out)
    calls = session.least(at)
    for rows in at.rows:
        out.fill_(-7)
        calls[EMPTY](rows)
        assert out.tolist() == [-7] * 16
        calls[CHAIN](rows)
        assert out.tolist() == [int(at.source[rows[0], 699]), *[-7] * 15]


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
