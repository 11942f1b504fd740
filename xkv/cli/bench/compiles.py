"""How many kernels are compiled, told by Triton's own listener."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...metadata.builder import MetadataBuilder
from ...precompile import warmup
from . import contenders
from .inputs import Inputs
from .records import OURS, SEED


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


def widths(at: Inputs, peers: contenders.Peers, counts: Counter[str], number: int) -> list[dict[str, Any]]:
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


def serving(at: Inputs, peers: contenders.Peers, counts: Counter[str], steps: int) -> list[dict[str, Any]]:
    """Plays steps of a server: other batches, widths, int dtypes, page sizes and places in memory. Syncs.

    Args:
        at: whose source is read.
        peers: what was found of the peers.
        counts: of `counted`, which must be counting.
        steps: of each.

    Returns:
        For the seed, if it is there, and for ours, which is warmed up first: compiles and loads.
    """
    sizes, widths_ = (64, 32, 16, 1), (61, 64, 100, 250, 256, 500)
    out = at.ints(at.batch + 1, max(widths_) + 2)
    builder = MetadataBuilder(
        "flashmla", at.source, max_batch_size=at.batch, max_context_len=at.load.capacity
    )
    builder.warmup()
    for size in sizes:
        warmup(ops.build_page_table, at.source, at.rows[0], at.lens, page_size=size, out=out[:-1])

    def ours(rows: Tensor, lens: Tensor, table: Tensor, size: int) -> None:
        ops.build_page_table(at.source, rows, lens, page_size=size, out=table)
        builder.build(rows, lens)

    def seed(rows: Tensor, lens: Tensor, table: Tensor, size: int) -> None:
        file = peers.kv_indices
        grid = len(rows), file.get_num_kv_index_blocks_flashmla(table.shape[1], size)
        file.create_flashmla_kv_indices_triton[grid](
            at.source, rows, lens, None, table, at.source.stride(0), table.stride(0), PAGED_SIZE=size
        )

    calls: dict[str, Callable[[Tensor, Tensor, Tensor, int], None]] = {OURS: ours}
    if peers.kv_indices is not None:
        calls = {SEED: seed, OURS: ours}
    found = []
    for name, call in calls.items():
        rng, before = random.Random(0), counts.total()
        with loaded() as loads:
            for _ in range(steps):
                batch, width = rng.randint(1, at.batch - 1), rng.choice(widths_)
                size, shift, wide = rng.choice(sizes), rng.randint(0, 1), rng.random() < 0.5
                rows, lens = (
                    x[shift : batch + shift].to(torch.int64 if wide else torch.int32)
                    for x in (at.rows[0], at.lens.clamp(max=width * size))
                )
                # a buffer of its own for each width, as engines size them, and views into it
                table = out.view(-1)[: at.batch * width].view(at.batch, width)[shift : batch + shift]
                call(rows, lens, table, size)
        _sync(at)
        found.append({"name": name, "steps": steps, "compiles": counts.total() - before, "loads": len(loads)})
    return found


@contextmanager
def loaded() -> Iterator[list[str]]:
    """Counts the kernels that Triton loads.

    Yields:
        Their names, as they come.
    """
    from triton import knobs

    names: list[str] = []

    def listen(module: Any, function: Any, name: str, *more: Any) -> None:
        names.append(name)

    chain = knobs.runtime.kernel_load_start_hook
    chain.add(listen)
    try:
        yield names
    finally:
        chain.remove(listen)


def _sync(at: Inputs) -> None:
    if at.source.is_cuda:
        torch.cuda.synchronize()
