"""What a tuning row is timed on, and the launches of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import reference
from ...launch import launch
from ...params import CSR, RECORD_WORDS, SLOTS, TABLE, Build, View
from ..bench import inputs, oracle, providers
from ..bench.cases import OURS, Case
from ..bench.inputs import Inputs, Step
from ..bench.sglang import Plugin, SGLang
from ..bench.workloads import Workload
from .classes import Class

Buffers = Mapping[str, Tensor]
Difference = Callable[[Callable[[], None]], str]
_POISON = -7  # in what is compared, before it is written


class Point(NamedTuple):
    """What a row is timed on.

    Attributes:
        load: the workload.
        size: tokens of a page; of slots, query tokens of the whole batch, about.
        form: TABLE, CSR or SLOTS.
        source_page_size: tokens of a source entry.
        kind: "" or, as in `classes.Class`, what else the launch does.
    """

    load: Workload
    size: int
    form: int
    source_page_size: int = 1
    kind: str = ""

    @property
    def case(self) -> Case:
        """What is built."""
        return Case("csr" if self.form == CSR else "table", 1 if self.form == SLOTS else self.size)

    @property
    def queries(self) -> int:
        """Of slots: query tokens of each request."""
        return max(self.size // self.load.batch, 1)

    @property
    def name(self) -> str:
        """For the reader."""
        if self.form == SLOTS:
            return f"{self.load.name}, {self.queries} query tokens each"
        of_pages = f" of {self.source_page_size}" if self.source_page_size > 1 else ""
        kind = f", {self.kind}" if self.kind else ""
        return f"{self.load.name}, page {self.size}{of_pages}{', csr' * (self.form == CSR)}{kind}"


def fine(each: Class) -> list[Point]:
    """What the second stage times a class on."""
    points = itertools.product(each.forms, each.sizes, each.loads)
    return [Point(load, size, form, each.source_page_size, each.kind) for form, size, load in points]


def coarse(each: Class) -> list[Point]:
    """What the first stage times it on."""
    form, size = each.forms[0], each.sizes[0]
    return [Point(load, size, form, each.source_page_size, each.kind) for load in each.loads]


class Prepared(NamedTuple):
    """A point on the device.

    Attributes:
        builds: a launch for each set of source rows.
        warm: small tensors that an engine has just written.
        lens: the lengths that the kernel before each of the builds has written.
        more: tokens that a step has more than the one before: what the kernel before adds.
        difference: calls what launches the first of the builds, and names what is wrong; "" for nothing.
    """

    builds: list[Any]
    warm: list[Tensor]
    lens: list[Tensor]
    more: int
    difference: Difference


def prepare(point: Point, source: Tensor) -> Prepared:
    """Makes the tensors of a point.

    Args:
        point: the point.
        source: what `inputs.make_sources` made for its capacity.
    """
    at = inputs.make_inputs(point.case, point.load, source)
    if point.kind == "extension":
        return _extensions(at, point)
    if point.form == SLOTS:
        return _slots(at, point)
    ours = providers.makers(at, SGLang([]), Plugin([]))[OURS]()
    out = dict(ours.results or {})
    if point.kind == "map":
        # each page is its own: the lookup costs the same, and what is built is what the oracle expects
        out["page_map"] = torch.arange(inputs.POOL // point.size, dtype=torch.int32, device=source.device)
    first = dataclasses.replace(at, steps=at.steps[:1])

    def difference(call: Callable[[], None]) -> str:
        return oracle.difference(first, dataclasses.replace(ours, call=lambda step: call()))

    read = source_of(at, point)
    return _prepared(at, [build_of(at, point, read, out, step) for step in at.steps], 0, difference)


def _prepared(at: Inputs, builds: list[Build], more: int, difference: Difference) -> Prepared:
    return Prepared(builds, [at.index, at.lens], [step.lens for step in at.steps], more, difference)


def _extensions(at: Inputs, point: Point) -> Prepared:
    """Each step has a table of its own, which a build has filled, and which every launch extends.

    It writes lengths and their sums too, as a builder's does: with the sums over the batch a program has more
    to do than with the last entries of its rows.
    """
    builds = []
    for step in at.steps:
        out = {
            "page_table": at.ints(at.batch, at.width), "record": at.ints(1 + at.batch, RECORD_WORDS),
            "cache_seqlens": at.ints(at.batch), "cu_seqlens_k": at.ints(at.batch + 1),
        }  # fmt: skip
        builds.append(build_of(at, point, at.source, out, step))
        launch.run(dataclasses.replace(builds[-1], extends=False))

    def difference(call: Callable[[], None]) -> str:
        whole, lens = dataclasses.replace(builds[0], extends=False), at.steps[0].lens
        table = whole.views[0].out
        table.fill_(_POISON)  # lest what another row wrote passes for this one's
        launch.run(whole)
        lens.add_(point.size)  # each request needs a page more
        call()
        want = torch.full_like(table, _POISON)
        reference.run(dataclasses.replace(whole, views=(View(want),)))
        wrong = first_difference("page_table", table, want)
        lens.sub_(point.size)
        launch.run(whole)
        return wrong

    return _prepared(at, builds, 1, difference)


def _slots(at: Inputs, point: Point) -> Prepared:
    """The last query tokens of each request, whose positions are given."""
    count = at.batch * point.queries
    starts = torch.arange(0, count + 1, point.queries, dtype=torch.int32, device=at.source.device)
    last = torch.arange(point.queries, device=at.source.device) - point.queries
    builds = []
    for step in at.steps:
        out = {
            "slots": at.ints(count, dtype=torch.int64), "starts": starts,
            "positions": (step.lens[:, None] + last).clamp_(min=0).view(-1),
        }  # fmt: skip
        builds.append(build_of(at, point, at.source, out, step))

    def difference(call: Callable[[], None]) -> str:
        slots = builds[0].views[0].out
        want = slots.clone()
        view = dataclasses.replace(builds[0].views[0], out=want)
        reference.run(dataclasses.replace(builds[0], views=(view,)))
        slots.fill_(_POISON)
        call()
        return first_difference("slots", slots, want)

    return _prepared(at, builds, 0, difference)


def first_difference(name: str, got: Tensor, want: Tensor) -> str:
    """Names the first entry that is not as wanted; "" if there is none."""
    if torch.equal(got, want):
        return ""
    where = (got != want).nonzero()[0].tolist()
    return f"{name}: entry {where} is {got[tuple(where)]}, not {want[tuple(where)]}"


def source_of(at: Inputs, point: Point) -> Tensor:
    """The source of slots, or that of the pages which they lie in: it shows the same tokens."""
    size = point.source_page_size
    return at.source if size == 1 else at.source[:, ::size] // size


def build_of(at: Inputs, point: Point, source: Tensor, out: Buffers, step: Step) -> Build:
    """The launch of a step.

    Args:
        at: what it reads.
        point: the point.
        source: `source_of` it.
        out: the buffers, by the names of their fields.
        step: the step.
    """
    if point.form == SLOTS:
        view = View(out["slots"], kv_indptr=out["starts"])
        return Build(
            source, step.rows, step.lens, SLOTS, 1, 1, 1, (view,), positions=out["positions"],
            indptr_is_input=True,
        )  # fmt: skip
    if point.form == TABLE:
        view = View(
            out["page_table"], record=out.get("record"), cache_seqlens=out.get("cache_seqlens"),
            cu_seqlens_k=out.get("cu_seqlens_k"),
        )  # fmt: skip
    else:
        view = View(out["kv_indices"], kv_indptr=out["kv_indptr"], kv_last_page_len=out["kv_last_page_len"])
    view.page_map = out.get("page_map")
    sizes = at.page_size, point.source_page_size, at.page_size
    return Build(
        source, step.rows, step.lens, point.form, *sizes, (view,), extends=point.kind == "extension",
        sums_fit=point.kind == "extension",
    )  # fmt: skip
