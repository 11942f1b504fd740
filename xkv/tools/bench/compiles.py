"""How many kernels are compiled, told by Triton's own listener."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xkv.tools.bench import contenders
from xkv.tools.bench.inputs import Inputs
from xkv.tools.bench.records import OURS, SEED


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the kernels that Triton makes, those it has in its disk cache included.

    Yields:
        By source file and name, how many so far.
    """
    from triton import knobs

    counts: Counter[str] = Counter()
    before = knobs.compilation.listener

    def listen(*, src: Any, **more: Any) -> None:
        counts[_name(src)] += 1
        if before is not None:
            before(src=src, **more)

    # not knobs.runtime.jit_post_compile_hook: with that one set Triton dumps the constexprs as JSON
    knobs.compilation.listener = listen
    try:
        yield counts
    finally:
        knobs.compilation.listener = before


def _name(src: Any) -> str:
    kernel = getattr(src, "fn", None)  # intermediate code has none
    return str(src.name) if kernel is None else f"{Path(kernel.fn.__code__.co_filename).stem}.{src.name}"


def widths(
    at: Inputs, peers: contenders.Peers, counts: Counter[str], number: int
) -> list[dict[str, Any]]:
    """Builds tables of so many widths, each a page wider than the one before. Syncs.

    Args:
        at: what is read.
        peers: what was found of the peers.
        counts: of `counted`, which must be counting.
        number: widths.

    Returns:
        For the seed, if it is there, and for ours: compiles, and milliseconds of a width's first call.
    """
    at = dataclasses.replace(at, lens=at.lens.int())  # so that neither has its kernel already
    makers: dict[str, Callable[[Tensor], Callable[[Tensor], object]]] = {
        OURS: lambda out: contenders.ours(at, out)
    }
    if peers.kv_indices is not None:
        makers = {SEED: lambda out: contenders.seed(at, peers.kv_indices, out), **makers}
    found = []
    for name, make in makers.items():
        before, ms = counts.total(), []
        for width in range(at.width + 1, at.width + 1 + number):
            call = make(at.ints(at.batch, width))
            _sync(at)
            start = time.perf_counter()
            call(at.rows[0])
            _sync(at)
            ms.append((time.perf_counter() - start) * 1e3)
        found.append(
            {
                "name": name, "widths": number, "compiles": counts.total() - before,
                "median_ms": round(statistics.median(ms), 3), "max_ms": round(max(ms), 3),
            }
        )  # fmt: skip
    return found


def _sync(at: Inputs) -> None:
    if at.source.is_cuda:
        torch.cuda.synchronize()
