"""The demo's engine: who owns which page, what req_to_token says, and that all of it is freed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xkv.cli.demo.engine import Engine
from xkv.cli.demo.traces import HASH_BLOCK, Request

pytestmark = pytest.mark.repo


def prompt(length: int, output: int = 3, hashes: tuple[int, ...] | None = None) -> Request:
    """A request; by default without hashes."""
    return Request(0.0, length, output, hashes or ())


def family(rng: random.Random, count: int, longest: int) -> list[Request]:
    """Requests over few hash chains, so that prefixes meet often; some without hashes."""
    requests = []
    for number in range(count):
        length = rng.choice([rng.randint(1, longest), rng.randint(1, longest) // 512 * 512 or 512])
        blocks = -(-length // HASH_BLOCK)
        chain = tuple(1000 * rng.randint(0, 1) + k for k in range(blocks - 1))
        last = rng.choice([blocks - 1, 10_000 + number])
        requests.append(prompt(length, rng.randint(0, 6), rng.choice([(*chain, last), ()])))
    return requests


def make(**change: int) -> Engine:
    sizes = {"max_reqs": 4, "max_context": 8192, "page_size": 64, "num_pages": 512}
    return Engine(**{**sizes, **change})


def check(engine: Engine) -> None:
    """Every invariant that holds between two steps."""
    size, kv = engine.page_size, engine.kv
    table = engine.req_to_token
    assert torch.equal(table, engine.host_req_to_token)
    assert not table[0].any(), "the padding row was used"
    holders = Counter[int]()
    places: dict[int, set[tuple[int, tuple[int, ...]]]] = defaultdict(set)
    for row, length in engine.lengths().items():
        assert 0 < row <= engine.max_reqs
        pages, hashes = engine.owned_pages(row), engine.request(row).block_hashes
        assert len(set(pages)) == len(pages) == -(-length // size)
        owned = torch.tensor(pages)
        tokens = torch.arange(length)
        assert torch.equal(table[row, :length].long(), owned[tokens // size] * size + tokens % size)
        holders.update(pages)
        for index, page in enumerate(pages):
            places[page].add((index, hashes[: -(-(index + 1) * size // HASH_BLOCK)]))
    cached = kv.refcounts.clone()
    for page, count in holders.items():
        cached[page] -= count
        if count > 1:  # the same stretch of the same prefix, whole, and known to the cache
            ((index, chain),) = places[page]
            assert len(chain) * HASH_BLOCK >= (index + 1) * size
            assert cached[page] == 1
    assert cached[0] == 0
    assert not holders[0]
    assert bool(((cached == 0) | (cached == 1)).all()), "a reference without a holder"
    assert kv.num_free == kv.num_pages - int((kv.refcounts > 0).sum())


def serve(engine: Engine, requests: list[Request], limit: int = 5000) -> list[tuple[object, ...]]:
    """Serves all of them, checking every step; returns each step's rows and lengths."""
    engine.submit(requests)
    history: list[tuple[object, ...]] = []
    stats = engine.stats
    while not engine.done:
        before = stats.decoded_tokens + stats.prefilled_tokens
        batch = engine.step()
        assert stats.decoded_tokens + stats.prefilled_tokens - before <= engine.chunk_tokens
        assert batch.req_pool_indices.tolist() == batch.host_rows
        assert batch.seq_lens.tolist() == batch.host_lens
        assert batch.req_pool_indices.dtype == batch.seq_lens.dtype == torch.int64
        lengths = engine.lengths()
        assert [lengths[row] for row in batch.host_rows] == batch.host_lens
        assert len(set(batch.host_rows)) == len(batch.host_rows) <= engine.max_reqs
        assert batch.sum_seq_lens == sum(batch.host_lens)
        assert batch.max_seq_len == max(batch.host_lens, default=0)
        assert batch.live_tokens == sum(lengths.values()) >= batch.sum_seq_lens
        check(engine)
        history.append((*batch.host_rows, *batch.host_lens))
        assert len(history) < limit, "the engine does not come to an end"
    return history


def check_empty(engine: Engine) -> None:
    """After the last request nothing is held, and without the cache nothing is left."""
    assert engine.lengths() == {}
    assert int(engine.kv.refcounts.max()) <= 1
    engine.kv.clear()
    assert not engine.kv.refcounts.any()
    assert engine.kv.num_free == engine.kv.num_pages


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32),
    page_size=st.sampled_from([1, 16, 64, 512, 1024]),
    max_reqs=st.integers(1, 6),
    slack=st.sampled_from([0, 1, 2000, 9000]),
    chunk=st.sampled_from([7, 500, 8192]),
)
def test_invariants(seed: int, page_size: int, max_reqs: int, slack: int, chunk: int) -> None:
    """Under any load and any pressure: sound at every step, all served, all freed."""
    longest = 600 if chunk == 7 else 2600
    requests = family(random.Random(seed), 10, longest)
    num_pages = -(-(longest + 8 + slack) // page_size)
    sizes = {"page_size": page_size, "num_pages": num_pages, "max_context": longest + 8}
    engine = make(**sizes, max_reqs=max_reqs, seed=seed, chunk_tokens=chunk)
    serve(engine, requests)
    assert engine.stats.admitted == engine.stats.finished == len(requests)
    computed = engine.stats.prefilled_tokens + engine.stats.shared_tokens
    assert computed == sum(request.input_len for request in requests)
    assert engine.stats.decoded_tokens == sum(max(r.output_len - 1, 0) for r in requests)
    check_empty(engine)


def test_chunked_prefill_then_one_token_a_step() -> None:
    engine = make(chunk_tokens=100)
    engine.submit([prompt(250, 4)])
    lengths, batches = [], []
    while not engine.done:
        batches.append(engine.step().host_lens)
        lengths.append(sum(engine.lengths().values()))
    # the prefill gives the first of the four tokens; the last is never put into the cache
    assert lengths == [100, 200, 250, 251, 252, 253, 0]
    assert batches == [[], [], [], [251], [252], [253], []]


@pytest.mark.parametrize(("page_size", "shared"), [(1, 1024), (64, 1024), (512, 1024), (1024, 1024)])
def test_prefix_is_shared(page_size: int, shared: int) -> None:
    """Whole pages of the common prefix are the same pages; the rest is private."""
    engine = make(page_size=page_size, num_pages=8192 // page_size)
    engine.submit([prompt(1500, 5, (1, 2, 3)), prompt(1400, 5, (1, 2, 4)), prompt(1400, 5)])
    engine.step()
    check(engine)
    assert engine.stats.shared_tokens == shared
    first, second, third = (engine.owned_pages(row) for row in engine.lengths())
    assert first[: shared // page_size] == second[: shared // page_size]
    assert not set(first[shared // page_size :]) & set(second)
    assert not set(third) & (set(first) | set(second))
    row, other, _ = engine.lengths()
    assert torch.equal(engine.req_to_token[row, :shared], engine.req_to_token[other, :shared])


def test_only_equal_chains_are_shared() -> None:
    """The same block behind another prefix is another block, and half a page is not shared."""
    engine = make(page_size=1024, num_pages=16)
    engine.submit([prompt(1500, 5, (1, 2, 3)), prompt(1500, 5, (9, 2, 3)), prompt(900, 5, (1, 2))])
    engine.step()
    check(engine)
    assert engine.stats.admitted == 3
    assert engine.stats.shared_tokens == 0


def test_the_last_prompt_token_is_always_computed() -> None:
    engine = make()
    serve(engine, [prompt(1024, 2, (1, 2)), prompt(1024, 2, (1, 2))])
    assert engine.stats.shared_tokens == 512
    assert engine.stats.prefilled_tokens == 1024 + 512
    check_empty(engine)


def test_finished_prefix_is_kept_then_evicted() -> None:
    engine = make(num_pages=32, max_reqs=1)  # 2048 tokens
    serve(engine, [prompt(1100, 2, (1, 2, 3)), prompt(1100, 2, (1, 2, 4))])
    assert engine.stats.shared_tokens == 1024
    assert engine.kv.evicted_pages == 0
    assert engine.kv.num_free == 16
    serve(engine, [prompt(1500, 2), prompt(1100, 2, (1, 2, 5))])
    # 24 pages were asked for and 16 were free: the second unit goes, and its parent stays
    assert engine.kv.evicted_pages == 8
    assert engine.stats.shared_tokens == 1024 + 512
    check_empty(engine)


def test_admission_waits_for_pages() -> None:
    """Two requests that fit only one after the other: the pool never overflows."""
    engine = make(num_pages=20)
    engine.submit([prompt(1000, 200), prompt(1000, 200)])
    together = 0
    while not engine.done:
        engine.step()
        together = max(together, len(engine.lengths()))
    assert (together, engine.stats.finished) == (1, 2)


def test_a_shared_prefix_is_not_counted_as_room() -> None:
    """What a request would share cannot be evicted for it: it waits for the pages it lacks."""
    engine = make(num_pages=32, max_reqs=2)
    serve(engine, [prompt(1100, 2, (1, 2, 3))])  # leaves 16 pages cached and 16 free
    engine.submit([prompt(600, 10), prompt(1500, 2, (1, 2, 4))])  # 10 of the 16, then 8 of 6
    engine.step()
    assert engine.stats.admitted == 2
    serve(engine, [])
    assert (engine.stats.finished, engine.stats.shared_tokens) == (3, 1024)
    check_empty(engine)


def test_tails_are_stale() -> None:
    """A reused row keeps the ids of the longer request before it."""
    engine = make(max_reqs=1, num_pages=64)
    serve(engine, [prompt(2000, 2), prompt(100, 3)])
    row = engine.req_to_token[1]
    assert bool(row[102:2001].all())
    assert not row[2001:].any()
    assert len(row) % 16
    check_empty(engine)


def test_seed_decides_everything() -> None:
    requests = family(random.Random(5), 12, 3000)
    runs = []
    for seed in (1, 1, 2):
        engine = make(seed=seed)
        history = serve(engine, requests)
        runs.append((history, engine.req_to_token.tolist()))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


BAD_SIZES = [("page_size", 0), ("page_size", 48), ("page_size", 2048), ("num_pages", 0)]
BAD_LIMITS = [("num_pages", 2**25), ("max_reqs", 0), ("max_context", 0), ("chunk_tokens", 4)]


@pytest.mark.parametrize(("name", "value"), BAD_SIZES + BAD_LIMITS)
def test_bad_arguments(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=r"must|past int32"):
        make(**{name: value})


@pytest.mark.parametrize("request_", [prompt(8192, 2), prompt(4000, 200)])
def test_submit_refuses_what_never_fits(request_: Request) -> None:
    engine = make(num_pages=64)  # 4096 tokens
    assert not engine.fits(request_)
    with pytest.raises(ValueError, match="exceed"):
        engine.submit([request_])
    assert engine.done
