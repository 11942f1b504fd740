"""No request ever sees another one's pages: an engine served over the traces, and faults that are seen."""

from __future__ import annotations

import dataclasses
import os

import pytest
import serving
import torch
from conftest import GPUS, INTERPRETED
from serving import MAX_CONTEXT, MAX_REQS, PAGE_SIZE, PAGES, TRACES, IsolationError

from xkv.cli.demo.engine import Engine
from xkv.cli.demo.traces import Request

pytestmark = pytest.mark.skipif(
    INTERPRETED, reason="rows of 4,096 tokens take the interpreter a second a step"
)

# XKV_STEPS=N: engine steps a trace
STEPS = int(os.environ.get("XKV_STEPS", "20000" if GPUS else "300"))
FAULTY_STEPS = 300
NAMES = ["mooncake_conversation.jsonl", "azure_llm_2023_conv.csv", "synthetic"]


def new(device: str, max_reqs: int = MAX_REQS) -> Engine:
    return Engine(
        max_reqs=max_reqs, max_context=MAX_CONTEXT, page_size=PAGE_SIZE, num_pages=PAGES, device=device,
        chunk_tokens=2048,
    )  # fmt: skip


def plain(rows: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows, lens


@pytest.mark.slow
@pytest.mark.parametrize("trace", NAMES)
def test_no_request_names_a_foreign_page(trace: str, device: str) -> None:
    if trace != "synthetic" and not (TRACES / trace).exists():
        pytest.skip(f"{TRACES / trace} is not here")
    engine = new(device)
    made = serving.readers(engine)
    assert serving.play(engine, trace, STEPS, 0, plain, made) == 3 * STEPS
    for reader in made:
        reader.builder.check()  # nothing had to be cut
        assert STEPS // 4 < reader.extended < STEPS - STEPS // 20
    assert torch.equal(engine.req_to_token.cpu(), engine.host_req_to_token)
    if STEPS >= 300:
        stats, kv = engine.stats, engine.kv
        assert stats.admitted > 3 * MAX_REQS, "rows were reused"
        assert min(stats.finished, stats.preempted) > 5
        if "azure" not in trace:  # which has no hashes
            assert min(stats.shared_tokens, kv.evicted_pages) > 0
    if GPUS:
        assert all(reader.captured for reader in made)


def one_too_long(rows, lens):
    return rows, lens + 1


def a_page_too_long(rows, lens):
    """The stale tail of the source's row is read."""
    return rows, lens + PAGE_SIZE


def one_row_on(rows, lens):
    return rows % MAX_REQS + 1, lens


def swapped_rows(rows, lens):
    return rows.flip(0), lens


class OfTheStepBefore:
    """Rows and lengths that the engine has moved on from, as of a graph whose inputs were not refreshed."""

    def __init__(self) -> None:
        self.last = None

    def __call__(self, rows, lens):
        now, self.last = self.last, (rows, lens)
        return (rows, lens) if now is None or len(now[0]) != len(rows) else now


def faulty(device: str, number: int, feed, graph: bool, **faults: int) -> None:
    """Serves with one of the backends alone, in graphs alone or without any."""
    engine = new(device)
    reader = dataclasses.replace(serving.readers(engine)[number], **faults)
    honest = reader.build
    reader.build = lambda rows, lens, graph_, extends: honest(rows, lens, graph, extends)
    serving.play(engine, "synthetic", FAULTY_STEPS, 0, feed, [reader])


in_and_out_of_graphs = pytest.mark.parametrize(
    "graph", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["eager", "graph"]
)


every_reader = pytest.mark.parametrize("number", [0, 1, 2], ids=["table", "csr", "window"])
FOREIGN = r"names page .*, which belongs to|a tail names a page"


@in_and_out_of_graphs
@every_reader
@pytest.mark.parametrize("feed", [a_page_too_long, one_row_on, swapped_rows], ids=lambda f: f.__name__)
def test_a_wrong_row_or_a_stale_tail_is_seen(feed, number: int, graph: bool, device: str) -> None:
    with pytest.raises(IsolationError, match=FOREIGN):
        faulty(device, number, feed, graph)


@in_and_out_of_graphs
@every_reader
@pytest.mark.parametrize("made", [lambda: one_too_long, OfTheStepBefore], ids=["one too long", "a step late"])
def test_a_wrong_length_is_seen(made, number: int, graph: bool, device: str) -> None:
    """By a token's id where tokens have one each; by the length itself while the page is the same."""
    with pytest.raises(AssertionError, match=FOREIGN + "|a length of"):
        faulty(device, number, made(), graph)


@in_and_out_of_graphs
def test_a_stale_tail_of_the_table_is_seen(graph: bool, device: str) -> None:
    """A backend that reads one entry past the live ones."""
    with pytest.raises(IsolationError, match=FOREIGN):
        faulty(device, 0, plain, graph, past=1)


def one_after_the_other(device: str, graph: bool, **faults: bool) -> serving.Reader:
    """Serves a request in the row of a shorter one, which it does not share a page with."""
    engine = new(device, max_reqs=1)
    reader = dataclasses.replace(serving.readers(engine)[0], **faults)
    none = torch.zeros(MAX_REQS, dtype=torch.int64, device=device)
    reader.builder.build(none, none)  # what no build wrote, an extension writes whole
    engine.submit(Request(0.0, tokens, 6, ()) for tokens in (500, 900))
    while not engine.done:
        batch = engine.step()
        if not batch.host_rows:
            continue  # a padded row in a graph would tell the request's row from it
        meta = reader.build(batch.req_pool_indices, batch.seq_lens, graph, batch.extends)
        serving.check(engine, batch, reader, meta)
    return reader


@in_and_out_of_graphs
def test_a_broken_promise_is_seen(graph: bool, device: str) -> None:
    """An engine that extends after an admission too, where a row was given to another, longer request."""
    with pytest.raises(IsolationError, match="row 1 names"):
        one_after_the_other(device, graph, always_extends=True)
    assert one_after_the_other(device, graph).extended > 4
