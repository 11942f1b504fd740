"""Who is timed: xkv, and SGLang's kernels and op sequences; and what they are held against."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import dispatch, ops
from ...metadata.builder import MetadataBuilder
from . import sequences
from .cases import ADD, AGAIN, OURS, PLUGIN, READ_TABLE, REPLAY, SGLANG, SGLANG_512, TOKEN_BLOCKS
from .inputs import Inputs, Step
from .sglang import READ_TABLES, SERIAL, Plugin, SGLang

Results = Mapping[str, Tensor]
"""By the names of xkv.Metadata's fields."""


@dataclass(frozen=True, eq=False)
class Provider:
    """One that builds what a case asks for.

    Attributes:
        call: builds a step: issues it on the current stream, does not sync. Returns the results, a
            mapping or a Metadata, where there are no ``results``.
        unit: tokens that one of its ids stands for.
        results: what a call leaves its results in; None: it returns them.
        writes: what each call must write anew.
        fields: what must be among its results.
        measured: what of it is measured: keys of `session.MEASURES`.
    """

    call: Callable[[Step], Any]
    unit: int = 1
    results: Results | None = None
    writes: Sequence[Tensor] = ()
    fields: Sequence[str] = ()
    measured: tuple[str, ...] = ("launches", "device_us", "back_us", "host_us")


Makers = dict[str, Callable[[], Provider]]
"""By name, what makes a provider, with the buffers that it writes to."""


def makers(at: Inputs, sglang: SGLang, plugin: Plugin) -> Makers:
    """Who can build the case.

    Args:
        at: what they read.
        sglang: the kernels that were found.
        plugin: the same, replaced by the plugin's.

    Returns:
        Those that are there, xkv last.
    """
    make = {"table": _table, "csr": _csr, "steps": _steps}[at.case.section]
    return make(at, sglang, plugin)


def _table(at: Inputs, sglang: SGLang, plugin: Plugin) -> Makers:
    """All on one output, as wide as the capacity asks for."""
    out = at.ints(at.batch, at.width)

    def provider(write: Callable[[Tensor, Tensor], object]) -> Provider:
        return Provider(lambda step: write(step.rows, step.lens), at.page_size, {"page_table": out}, (out,))

    made: Makers = {}
    for name, path in ((SGLANG, at.case.file), (SGLANG_512, SERIAL)):
        if sglang.has(path):
            made[name] = lambda path=path: provider(sglang.page_table(at, out, path))  # type: ignore[misc]
    if sglang.has(READ_TABLES):
        made[READ_TABLE] = lambda: provider(lambda rows, lens: sglang.read_table(at, rows, lens, out))
    return made | {OURS: lambda: provider(page_table(at, out))}


def page_table(at: Inputs, out: Tensor) -> Callable[[Tensor, Tensor], object]:
    """xkv.build_page_table, for rows and lengths."""
    return lambda rows, lens: ops.build_page_table(at.source, rows, lens, page_size=at.page_size, out=out)


def _csr(at: Inputs, sglang: SGLang, plugin: Plugin) -> Makers:
    """What is SGLang's is a stream of single tokens at any page size."""
    batch, size = at.batch, at.page_size

    def ours() -> Provider:
        out = ops.KVIndices(at.ints(batch + 1), at.ints(batch * at.width), at.ints(batch))

        def call(step: Step) -> None:
            ops.build_kv_indices(at.source, step.rows, step.lens, page_size=size, out=out)

        return Provider(call, size, out._asdict(), out)

    if not (sglang.has(at.case.file) or sglang.has(READ_TABLES)):
        return {OURS: ours}
    indptr, ids, last = at.ints(batch + 1), at.ints(batch * at.capacity), at.ints(batch)
    # they write neither the first 0 nor, at page size 1, the ones: both are set once and never again
    results, writes = {"kv_indptr": indptr, "kv_indices": ids}, [indptr[1:], ids]
    if size > 1:
        results["kv_last_page_len"] = last
        writes.append(last)

    def theirs(write: Callable[..., object], *blocks: int) -> Provider:
        def call(step: Step) -> None:
            """The torch ops that SGLang's backends issue before the kernel, and the kernel."""
            indptr[1:] = torch.cumsum(step.lens, dim=0)
            if size > 1:
                last[:] = (step.lens - 1) % size + 1
            write(at, step.rows, step.lens, indptr, ids, *blocks)

        return Provider(call, 1, results, writes)

    made: Makers = {}
    if sglang.has(at.case.file):
        made[SGLANG] = lambda: theirs(sglang.tokens)
        made[TOKEN_BLOCKS] = lambda: theirs(sglang.tokens, sglang.token_blocks(at))
    if sglang.has(READ_TABLES):
        made[READ_TABLE] = lambda: theirs(sglang.read_table_packed)
    return made | {OURS: ours}


def _steps(at: Inputs, sglang: SGLang, plugin: Plugin) -> Makers:
    """Each with buffers of its own, as the backend keeps them from step to step."""
    case = at.case
    spec = next(spec for spec in dispatch.backends(at.source.device) if spec.name == case.backend)
    options: dict[str, Any] = {"seq_lens_delta": case.delta, "query_lens": case.drafts} if case.drafts else {}
    fields = ("page_table" if spec.form == "table" else "kv_indices", *spec.outputs)

    def builder() -> MetadataBuilder:
        return MetadataBuilder(
            case.backend, at.source, max_batch_size=at.batch, max_context_len=at.capacity,
            page_size=at.page_size,
        )  # fmt: skip

    def sequence(kernels: SGLang) -> Provider:
        call = getattr(sequences, case.backend)(at, kernels)
        return Provider(call, at.page_size if spec.form == "table" else 1)

    def build() -> Provider:
        ours = builder()
        return Provider(lambda step: ours.build(step.rows, step.lens, **options), at.page_size, fields=fields)

    def replay() -> Provider:
        ours = builder()
        captured = {
            step: ours.capture(at.batch, req_pool_indices=step.rows, seq_lens=step.lens, **options)
            for step in at.steps
        }
        # a graph of graphs cannot be captured
        measured = ("launches", "host_us")
        return Provider(lambda step: captured[step].replay(), at.page_size, fields=fields, measured=measured)

    made: Makers = {
        name: functools.partial(sequence, kernels)
        for name, kernels in ((SGLANG, sglang), (PLUGIN, plugin))
        if kernels.has(case.file)
    }
    return made | {OURS: build, REPLAY: replay}


def references(at: Inputs, found: Mapping[str, Provider]) -> dict[str, Provider]:
    """What stands beside the providers at every point.

    Args:
        at: what they read.
        found: the providers.

    Returns:
        SGLang's once more, where it is there: how far apart equals can be; and a torch add_, for the host.
    """
    x = at.ints(256)
    twice = {AGAIN: Provider(found[SGLANG].call, measured=("device_us",))} if SGLANG in found else {}
    return twice | {ADD: Provider(lambda step: x.add_(1), measured=("host_us",))}
