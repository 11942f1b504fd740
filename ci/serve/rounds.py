"""The rounds of an engine in one process, with xkv off and on alternately."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from serve import workload

PROFILED_TOKENS = 24
COUNTED = 3  # rounds, off and on, in which each launch is timed


class Engine(Protocol):
    """An engine that serves token ids."""

    def mode(self, mode: str) -> None:
        """Switches xkv, between rounds."""

    def forget(self) -> None:
        """Empties the prefix cache."""

    def generate(self, prompts: list[list[int]], new: int, logprobs: bool) -> dict[str, Any]:
        """Serves all of them greedily: ``tokens``, ``logprobs`` (hexadecimal), ``cached``."""

    def take(self) -> dict[str, Any]:
        """Returns the records since the last call (`serve.book.Book.take`)."""

    def profile(self, on: bool) -> dict[str, list[float]] | None:
        """Starts a profile, or ends it and returns the device times of launches by kernel."""


def serve(engine: Engine, mode: str, prompts: list[list[int]], new: int, logprobs: bool) -> dict[str, Any]:
    """Runs one round: sets the mode, empties the prefix cache, sends all requests at once."""
    engine.mode(mode)
    engine.forget()
    engine.take()
    start = time.perf_counter()
    done = engine.generate(prompts, new, logprobs)
    seconds = time.perf_counter() - start
    return {"mode": mode, "seconds": seconds, **done, **engine.take()}


def every(
    engine: Engine, pairs: int, spoil: bool, profile: bool, save: Callable[[str, Any], None], seed: int = 3
) -> None:
    """Runs all rounds of an engine with the plugin; calls ``save`` with each part of the results.

    Args:
        engine: a started engine.
        pairs: number of pairs of steady rounds, after a first one that is discarded.
        spoil: whether to run the control round, in which results are corrupted.
        profile: whether to measure device times.
        save: is called with a name and a value.
        seed: seed of the order within the pairs.
    """
    prompts, short = workload.mixed(), workload.steady()
    modes = ["on+", "off+"] + ["spoilt"] * spoil
    save("mixed", [serve(engine, mode, prompts, workload.NEW_TOKENS, True) for mode in modes])
    rng = random.Random(seed)
    rounds = []
    for pair in range(pairs + 1):
        order = ["off", "on"] if rng.random() < 0.5 else ["on", "off"]
        for mode in order:
            rounds.append({"pair": pair, **serve(engine, mode, short, workload.NEW_TOKENS, False)})
    save("steady", rounds)
    # off and on alternately here too: the clock of a shared node changes by up to two within seconds
    modes = ["on+", "off+"] * COUNTED
    counted = [serve(engine, mode, short, workload.NEW_TOKENS, False) for mode in modes]
    save("counted", counted)
    if profile:
        times = {}
        for mode in ("off", "on"):
            engine.mode(mode)
            engine.forget()
            engine.profile(True)
            engine.generate(short, PROFILED_TOKENS, False)
            times[mode] = engine.profile(False)
        save("device", times)


def plain(engine: Engine, rounds: int, save: Callable[[str, Any], None]) -> None:
    """Runs the rounds of an engine without the plugin, which are the reference of the comparison."""
    save("mixed", [serve(engine, "off", workload.mixed(), workload.NEW_TOKENS, True)])
    short = workload.steady()
    save("steady", [serve(engine, "off", short, workload.NEW_TOKENS, False) for _ in range(rounds + 1)])
