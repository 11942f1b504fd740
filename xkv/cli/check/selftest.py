"""The groups of `xkv check`, in the order they are run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from ...launch import compile
from ...platforms import detect
from ...status import Reason, Violation
from . import cases
from .cases import CSR, SLOTS, TABLE, call_of, tokens_of
from .trial import Case, MismatchError, Trial, captured, new, once

Checks = Iterable[tuple[str, Callable[[], None]]]
"""What is checked, and what raises where it does not hold; device work only in the latter."""


@dataclass(frozen=True)
class Bench:
    """Where the checks run, and how many.

    Attributes:
        device: "cpu" or "cuda".
        quick: a few page sizes instead of all.
        interpreted: the kernel runs in Triton's interpreter, a thousand times slower.
    """

    device: str
    quick: bool
    interpreted: bool

    def __str__(self) -> str:
        if self.interpreted:
            return "cpu: the kernel in Triton's interpreter"
        if self.device == "cpu":
            return "cpu: the torch reference"
        return f"{torch.cuda.get_device_name()}: {detect.platform(self.device)}"

    @property
    def page_sizes(self) -> list[int]:
        """Tokens of an output page."""
        return [1, 64] if self.quick else [1 << k for k in range(11)]

    @property
    def units(self) -> list[int]:
        """Tokens of a source entry."""
        return [1, 16] if self.quick else [1, 16, 64]

    @property
    def shapes(self) -> list[tuple[str, int, int]]:
        """(op, page size, source page size) for what need not be tried with every page size."""
        sizes = [(64, 16)] if self.quick else [(1, 1), (1, 16), (16, 1), (1024, 64)]
        return [(op, *size) for op in (TABLE, CSR) for size in sizes] + [(SLOTS, 1, 16)]

    def each(self, tried: Iterable[Case]) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every case as a check."""
        for case in tried:
            yield str(case), functools.partial(once, case, self.device)

    def topic(self, of: Callable[[str, int, int], Iterable[Case]]) -> Checks:
        """The cases of one topic, for all shapes, as checks."""
        return self.each(case for shape in self.shapes for case in of(*shape))


def bench(device: str, quick: bool) -> Bench:
    """Returns what to check on.

    Args:
        device: "cpu", "cuda" or "auto": the GPU where there is one, unless TRITON_INTERPRET=1 makes
            the kernel run on the CPU.
        quick: a few page sizes instead of all.
    """
    interpreted = compile.interpreted()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not interpreted else "cpu"
    return Bench(device, quick, interpreted)


def page_tables(bench: Bench) -> Checks:
    """Every page size, source page size and dtype."""
    return bench.each(cases.all_sizes(TABLE, bench.page_sizes, bench.units))


def kv_indices(bench: Bench) -> Checks:
    """Every page size, source page size and dtype."""
    return bench.each(cases.all_sizes(CSR, bench.page_sizes, bench.units))


def slot_mappings(bench: Bench) -> Checks:
    """Every source page size and dtype, every page size of a map."""
    return bench.each(cases.all_slots(bench.page_sizes, bench.units))


def starts_and_windows(bench: Bench) -> Checks:
    """``kv_start`` and ``seq_lens_delta``."""
    return bench.topic(cases.starts)


def maps(bench: Bench) -> Checks:
    """``token_map`` and ``page_map``."""
    return bench.topic(cases.maps)


def tails_and_missing_ids(bench: Bench) -> Checks:
    """``pad_value``, ``pad_to_multiple_of`` and ``missing_id``."""
    return bench.topic(cases.tails)


def planted_violations(bench: Bench) -> Checks:
    """What is cut, and what the status word says of it."""
    return bench.topic(cases.violations)


def skewed_batches(bench: Bench) -> Checks:
    """Rows of many blocks, which the kernel deals out over all its programs."""
    # on a GPU, more than all its programs take in a first pass; elsewhere, what is quick
    on_gpu = bench.device == "cuda" and not bench.interpreted
    batch, tokens = (300, (60_000, 480_000)) if on_gpu else (20, (3000, 3000))
    for op, page_size in ((TABLE, 1), (TABLE, 16), (CSR, 1), (CSR, 16), (SLOTS, 1)):
        longest = tokens[page_size > 1]
        yield from bench.each(cases.skewed(op, page_size, batch, longest))


def new_outputs(bench: Bench) -> Checks:
    """Without ``out``: sized on the device's word, or on the host's bound."""
    for op, page_size, unit in bench.shapes:
        case = Case(op, call_of(op, page_size, unit), torch.int64 if page_size > 1 else torch.int32)
        bound = tokens_of(page_size, unit) * (1 if op == TABLE else 9) + 5
        for host in (None, bound):
            yield f"{case}, bound {host}", functools.partial(new, case, bench.device, host)


def graph_replays(bench: Bench) -> Checks:
    """Captured once, replayed with other rows and lengths; nothing where there is no GPU."""
    if bench.device == "cpu" or bench.interpreted:
        return
    shapes = ((TABLE, 1, 1), (TABLE, 64, 1), (CSR, 1, 1), (CSR, 64, 16), (SLOTS, 1, 16))
    for op, page_size, unit in shapes:
        check = functools.partial(_replayed, op, page_size, unit, bench.device)
        yield f"{op}, page_size={page_size}, source_page_size={unit}", check


GROUPS: list[Callable[[Bench], Checks]] = [
    page_tables,
    kv_indices,
    slot_mappings,
    starts_and_windows,
    maps,
    tails_and_missing_ids,
    planted_violations,
    skewed_batches,
    new_outputs,
    graph_replays,
]


def _replayed(op: str, page_size: int, unit: int, device: str) -> None:
    """One captured call, replayed with other sources, rows, starts and lengths."""
    rounds = [_round(op, page_size, unit, seed) for seed in range(4)]
    rounds[2].call["req_pool_indices"][1] = -1
    rounds[2].call["seq_lens"][1] = 1
    rounds[2].violation = Violation(1, Reason.BAD_ROW)
    trial = Trial(rounds[0], device)
    replay = captured(trial.build)
    for case in (*rounds[1:], rounds[0]):
        trial.load(case)
        replay()
        try:
            trial.compare()
        except MismatchError as error:
            raise MismatchError(f"{case.note}: {error}") from None


def _round(op: str, page_size: int, unit: int, seed: int) -> Case:
    call = call_of(op, page_size, unit, seed=seed) | {"pad_value": -5}
    if op != SLOTS:
        call["kv_start"] = call["seq_lens"] // (seed + 2)
    room = tokens_of(page_size, unit) // page_size + 1
    return Case(op, call, room=room if op == TABLE else room * 9, note=f"values {seed}")
