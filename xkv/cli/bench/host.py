"""What the host pays for one call, by route."""

from __future__ import annotations

import statistics
from typing import Any

from ... import dispatch
from ...metadata.builder import MetadataBuilder
from .. import timing
from ..steps import compared
from ..steps.peers import SGLang, Step
from . import contenders
from .inputs import Inputs
from .records import OURS, SEED

_SEED = f"{SEED}: kernel[grid]"
# a step of these, theirs beside ours; those that the platform has
_STEPS = tuple(
    compared.Row(backend, size, 0)
    for backend, size in (("flashmla", 64), ("aiter_mla", 1), ("flashinfer_mla", 1))
)


def work(at: Inputs, peers: contenders.Peers) -> tuple[dict[str, timing.Work], list[str]]:
    """Readies the calls that are timed, each of them compiled. Syncs.

    Args:
        at: a batch at page size 64.
        peers: what was found of the peers.

    Returns:
        The calls by name, and what is wrong: where theirs and ours differ.
    """
    table = {each.name: each.call for each in contenders.table(at, peers)}
    calls: dict[str, timing.Work] = {"torch add_": timing.add_()}
    if SEED in table:
        calls[_SEED] = table[SEED], at.rows
    calls[f"{OURS}: op with out="] = table[OURS], at.rows
    for rows in at.rows:
        table[OURS](rows)
    graph = timing.capture(table[OURS], at.rows[:1])
    calls[f"{OURS}: op, replay of its graph"] = lambda _: graph.replay(), [None]

    host = at.lens.cpu()
    steps = [Step(rows, at.lens, host, int(host.sum())) for rows in at.rows]
    here = {spec.name for spec in dispatch.backends(at.source.device)}
    theirs = None if peers.home is None else SGLang(peers.home)
    wrong = []
    for row in _STEPS:
        if row.backend not in here:
            continue
        name = f"{row.backend}:"
        if theirs is not None:
            name += " step,"
            found = list(compared.differences(row, theirs, at.source, at.load.capacity, steps))
            wrong += [f"{row.name}: {what}" for what in found[:1]]
            both = compared.both(row, theirs, at.source, at.batch, at.load.capacity)
            calls[f"{name} theirs"] = both[0], steps
        build, replay = _ours(row, at, steps[0])
        calls[f"{name} {OURS} build"] = build, steps
        calls[f"{name} {OURS} replay"] = replay, [None]
    for call, inputs in calls.values():
        for one in inputs:
            call(one)
    return calls, wrong


def _ours(row: compared.Row, at: Inputs, step: Step) -> tuple[Any, Any]:
    """What builds a step, and what replays this one, captured."""
    builder = MetadataBuilder(
        row.backend, at.source, max_batch_size=at.batch, max_context_len=at.load.capacity,
        page_size=row.page_size,
    )  # fmt: skip
    captured = builder.capture(at.batch, req_pool_indices=step.rows, seq_lens=step.lens)
    return lambda step: builder.build(step.rows, step.lens), lambda _: captured.replay()


def left_out(device: Any) -> list[str]:
    """The backends whose steps this platform has not."""
    here = {spec.name for spec in dispatch.backends(device)}
    return [row.backend for row in _STEPS if row.backend not in here]


def rows(calls: dict[str, timing.Work], rounds: int) -> list[dict[str, Any]]:
    """Times them in turn. Syncs.

    Args:
        calls: of `work`.
        rounds: repeats of each.

    Returns:
        For each its name, the median and the least of its rounds in microseconds, and the median over
        that of the seed's kernel[grid], or None where that is not there.
    """
    found = timing.host_rounds(calls, rounds)
    median = {name: statistics.median(values) for name, values in found.items()}
    seed = median.get(_SEED)
    return [
        {
            "name": name, "median": round(median[name], 2), "min": round(min(values), 2),
            "over_seed": None if seed is None else round(median[name] / seed, 3),
        }
        for name, values in found.items()
    ]  # fmt: skip
