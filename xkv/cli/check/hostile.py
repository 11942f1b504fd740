"""Hostile device data against the oracle: nothing else is written, and the report is right."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from ... import __version__, dispatch
from ...integrations.sglang import context_parallel, draft, kv_indices, page_tables, steps
from ...integrations.vllm import indices, lengths
from ...launch import op_calls
from ...platforms import detect, tuning
from ...platforms.specs import BackendSpec
from . import chosen_call, expanded_call, values
from .builder_case import BuilderCase
from .case import Case, MismatchError, captured
from .chosen_call import ChosenCall
from .engine_rows import OF_RANKS, STEPS
from .engine_step_case import StepCase
from .expanded_call import ExpandedCall
from .families import Family, backend_families, families
from .op_case import OpCase
from .plugin_case import PluginCase
from .program import program
from .rank_case import RankCase
from .selftest import Checks
from .sizes import Sizes

SparseCall = type[ChosenCall] | type[ExpandedCall]
_PER_SIZES = 8  # cases that differ in data alone
# the ops of sparse attention, which have no `Build` and a definition of their own
_SPARSE: Mapping[str, tuple[SparseCall, Sequence[str]]] = {
    "translate_positions": (ChosenCall, chosen_call.KINDS),
    "expand_queries": (ExpandedCall, expanded_call.KINDS),
}


def groups(
    count: int, seed: int, device: str, small: bool, spec: BackendSpec | None = None
) -> list[tuple[str, Checks]]:
    """All families, by op and backend: ``count`` cases or a few more; the rest is as in `checks`.

    With a spec, those of this backend alone.
    """
    if spec is None:
        found, sparse = families(detect.platform(device).vendor), _SPARSE
    else:
        found, sparse = backend_families(spec), {}
    each = -(-count // (len(found) + len(sparse)))

    def group(title: str) -> Checks:
        for family in found:
            if family.group == title:
                yield from checks(family, each, seed, device, small)

    titles = dict.fromkeys(family.group for family in found)
    return [
        *((f"hostile {title}", group(title)) for title in titles),
        *((f"hostile {title}", of_calls(*sparse[title], each, seed, device)) for title in sparse),
    ]


def of_calls(made: SparseCall, kinds: Sequence[str], count: int, seed: int, device: str) -> Checks:
    """Random calls of such an op, as many of each kind."""
    for number in range(count):
        for kind in kinds:
            call = partial(made, seed * count + number, kind, hostile=True, device=device)
            yield f"{kind}, seed {seed}, case {number}", partial(_check_call, call)


def _check_call(made: Callable[[], ChosenCall | ExpandedCall]) -> None:
    made().check()


def checks(family: Family, count: int, seed: int, device: str, small: bool, apart: bool = False) -> Checks:
    """The cases of one family; those of its first sizes replay a graph on a GPU.

    Args:
        family: the family.
        count: how many.
        seed: decides everything.
        device: where they run.
        small: sizes for Triton's interpreter.
        apart: every tensor at the end of an allocation of its own.
    """
    for number in range(-(-count // _PER_SIZES)):
        case = draw(family, seed, number, device, small, apart)
        # apart there is no cached memory, without which nothing can be captured
        if number == 0 and torch.device(device).type == "cuda" and not apart:
            case.run = captured(case.run)
        for again in range(min(_PER_SIZES, count - number * _PER_SIZES)):
            yield f"{case}, case {again}", partial(check, case, again)


def draw(family: Family, seed: int, number: int, device: str, small: bool, apart: bool = False) -> Case:
    """A case of a family with sizes of its own; the other arguments are those of `checks`."""
    name = f"{family}, seed {seed}, sizes {number}"
    made: type[Case] = BuilderCase if family.spec else OpCase
    if family.function:
        found = {StepCase: STEPS, RankCase: OF_RANKS}
        made = next((kind for kind, names in found.items() if family.function in names), PluginCase)
    return made(name, family, Sizes(family, random.Random(name), small), device, apart)


def fill(case: Case, number: int) -> None:
    """Puts the values of one of its cases in a case's image."""
    values.fill(case, random.Random(f"{case}, case {number}"))


def check(case: Case, number: int) -> None:
    """The call on one set of values; raises a MismatchError with a program that shows what differs."""
    fill(case, number)
    before = case.memory.image.clone()
    try:
        case.check()
    except Exception as error:
        said = str(error) if isinstance(error, MismatchError) else f"{type(error).__name__}: {error}"
        case.memory.image.copy_(before)
        shown = program(f"xkv {__version__}, {case}, case {number}", case)
        raise MismatchError(f"{said}\nTo see it again, run:\n\n{shown}") from error


@contextmanager
def small_blocks() -> Iterator[None]:
    """Within it blocks are so small that small cases cross them, and are dealt out over all programs."""
    row = tuning.Tuning("strided_far", None, 16, 4, 1, 1, 2, 16, 1, 1, 16, False, "xkv check")
    chosen = dispatch.tuning_row
    try:
        dispatch.tuning_row = lambda _, pattern, *more: dataclasses.replace(row, access_pattern=pattern)
        _forget()  # a known call has the row that it was made with
        yield
    finally:
        dispatch.tuning_row = chosen
        _forget()


def _forget() -> None:
    """Forgets what ops and plugins remember of calls."""
    op_calls.forget()
    of_ranks = context_parallel.tables, context_parallel.indices, context_parallel.ragged
    for cache in (page_tables.tables, kv_indices.indices, steps, draft, lengths.lengths, *of_ranks):
        cache.clear()
    indices.forget()
