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
from .cases import KV_INDICES, OURS, SGLANG
from .inputs import Inputs
from .providers import page_table
from .records import Serving, Widths
from .sglang import SGLang


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


def widths(at: Inputs, sglang: SGLang, counts: Counter[str], number: int) -> list[Widths]:
    """Builds tables of so many widths, each a page wider than the one before. Syncs.

    Args:
        at: what is read.
        sglang: the kernels that were found.
        counts: of `counted`, which must be counting.
        number: widths.

    Returns:
        For SGLANG, if it is there, and for xkv.
    """
    lens = at.lens[0].int()  # so that neither has its kernel already
    found = []
    for name, make in _makers(sglang).items():
        before, ms = counts.total(), []
        for width in range(at.width + 1, at.width + 1 + number):
            call = make(at, at.ints(at.batch, width))
            _sync(at)
            start = time.perf_counter()
            call(at.index[0], lens)
            _sync(at)
            ms.append((time.perf_counter() - start) * 1e3)
        compiles = counts.total() - before
        found.append(Widths(name, number, compiles, round(statistics.median(ms), 3), round(max(ms), 3)))
    return found


def serving(at: Inputs, sglang: SGLang, counts: Counter[str], steps: int) -> list[Serving]:
    """Plays steps of a server: other batches, widths, int dtypes, page sizes and places in memory. Syncs.

    Args:
        at: whose source is read.
        sglang: the kernels that were found.
        counts: of `counted`, which must be counting.
        steps: of each.

    Returns:
        For SGLANG, if it is there, and for xkv, which is warmed up first: compiles and loads.
    """
    sizes, widths_ = (64, 32, 16, 1), (61, 64, 100, 250, 256, 500)
    out = at.ints(at.batch + 1, max(widths_) + 2)
    builder = MetadataBuilder("flashmla", at.source, max_batch_size=at.batch, max_context_len=at.capacity)
    builder.warmup()
    for size in sizes:
        warmup(ops.build_page_table, at.source, at.index[0], at.lens[0], page_size=size, out=out[:-1])

    found = []
    for name, make in _makers(sglang).items():
        rng, before = random.Random(0), counts.total()
        with loaded() as loads:
            for _ in range(steps):
                batch, width = rng.randint(1, at.batch - 1), rng.choice(widths_)
                size, shift, wide = rng.choice(sizes), rng.randint(0, 1), rng.random() < 0.5
                rows, lens = (
                    x[shift : batch + shift].to(torch.int64 if wide else torch.int32)
                    for x in (at.index[0], at.lens[0].clamp(max=width * size))
                )
                # a buffer of its own for each width, as engines size them, and views into it
                table = out.view(-1)[: at.batch * width].view(at.batch, width)[shift : batch + shift]
                case = at.case._replace(page_size=size)
                here = dataclasses.replace(at, case=case, index=rows[None], lens=lens[None])
                make(here, table)(rows, lens)
                if name == OURS:
                    builder.build(rows, lens)
        _sync(at)
        found.append(Serving(name, steps, counts.total() - before, len(loads)))
    return found


def _makers(sglang: SGLang) -> dict[str, Callable[[Inputs, Tensor], Callable[[Tensor, Tensor], object]]]:
    """By name, what makes a call that builds a page table; xkv last."""
    found = {SGLANG: sglang.page_table} if sglang.has(KV_INDICES) else {}
    return found | {OURS: page_table}


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
