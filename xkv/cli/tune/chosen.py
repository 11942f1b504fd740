"""What the rows of translations of chosen positions are timed on, as `xkv bench --suite sparse` has them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from ... import reference
from ...chosen import ChosenTokens
from ...launch import chosen, launch
from ...platforms.detect import Platform
from ...platforms.tuning import ChosenTuning
from ..bench import sparse
from .chosen_rows import ChosenClass
from .points import Prepared, first_difference

_NOBODY: dict[str, Any] = {"sglang": None, "vllm": None}


class ChosenPoint(NamedTuple):
    """Query tokens, positions of each, the source's page size, and the kind of a point of the suite."""

    tokens: int
    k: int
    page: int
    kind: str

    @property
    def of_bench(self) -> sparse.Point:
        """The same as a point of the suite."""
        return sparse.Point(*self)

    @property
    def name(self) -> str:
        """For the reader."""
        return str(self.of_bench)


def fine(each: ChosenClass) -> list[ChosenPoint]:
    """What the second stage times a class on."""
    points = itertools.product(each.kinds, each.pages, each.chosen, each.tokens)
    return [ChosenPoint(tokens, k, page, kind) for kind, page, k, tokens in points]


def coarse(each: ChosenClass) -> list[ChosenPoint]:
    """What the first stage times it on."""
    return [ChosenPoint(tokens, each.chosen[0], each.pages[0], each.kinds[0]) for tokens in each.tokens]


def prepare(point: ChosenPoint, device: str) -> Prepared:
    """Makes the tensors of a point."""
    at = sparse.Inputs.of(point.of_bench, device)
    ours = dict(sparse.providers(point.of_bench, at, _NOBODY))["xkv"]
    with launch.compile_only() as builds:  # the op checks and describes each launch
        for positions in at.chosen:
            ours.call(positions)

    def difference(call: Callable[[], None]) -> str:
        want = [x.clone() for x in ours.written]
        names = ("out", "counts")[: len(want)]
        reference.translate(dataclasses.replace(builds[0], **dict(zip(names, want, strict=True))))
        for x in ours.written:
            x.fill_(-7)
        call()
        found = map(first_difference, names, ours.written, want)
        return next(filter(None, found), "")

    return Prepared(builds, [at.lens, at.to_req], [at.lens], 0, difference)


def launched(build: ChosenTokens, row: ChosenTuning, where: Platform) -> Callable[[], None]:
    """Compiles a launch with this row; returns what launches it."""
    arguments, grid = chosen.arguments(build), chosen.grid(build, row)
    made = launch.KernelLaunch(
        chosen.chosen_kernel(), build.req_to_token.get_device(), chosen.config(build, row, where),
        chosen.options(build, row, where), grid, arguments,
    )  # fmt: skip

    def run() -> None:
        if made.fast_path:
            made.launch(made.call)
        else:
            made.run_tensors(grid, arguments)

    return run
