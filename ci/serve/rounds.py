"""What every engine goes through once it has started, in one process: off and on in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from serve import workload

PROFILED_TOKENS = 24


class Engine(Protocol):
    """An engine that serves token ids."""

    def mode(self, mode: str) -> None:
        """Switches xkv, between rounds."""

    def forget(self) -> None:
        """Empties the prefix cache."""

    def generate(self, prompts: list[list[int]], new: int, logprobs: bool) -> dict[str, Any]:
        """Serves all of them greedily: ``tokens``, ``logprobs`` (hexadecimal), ``cached``."""

    def take(self) -> dict[str, Any]:
        """What was written down since the last time (`serve.book.Book.take`)."""

    def profile(self, on: bool) -> dict[str, list[float]] | None:
        """Starts a profile, or ends it and says each launch's microseconds by kernel."""


def serve(engine: Engine, mode: str, prompts: list[list[int]], new: int, logprobs: bool) -> dict[str, Any]:
    """One round: a mode, an empty prefix cache, all requests at once."""
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
    """All rounds of an engine with the plugin; ``save`` is given each part as it comes.

    Args:
        engine: one that has started.
        pairs: of steady rounds, beside a first one that is left out.
        spoil: whether one round is spoilt on purpose.
        profile: whether device times are taken.
        save: takes a name and what belongs to it.
        seed: of the order within the pairs.
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
    counted = [serve(engine, mode, short, workload.NEW_TOKENS, False) for mode in ("on+", "off+")]
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
    """The rounds of an engine without the plugin, with which all others are compared."""
    save("mixed", [serve(engine, "off", workload.mixed(), workload.NEW_TOKENS, True)])
    short = workload.steady()
    save("steady", [serve(engine, "off", short, workload.NEW_TOKENS, False) for _ in range(rounds + 1)])
