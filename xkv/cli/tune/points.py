"""What a tuning row is timed on, and the builds of it."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor

from ...params import CSR, TABLE, Build, View
from ..bench.cases import Case
from ..bench.inputs import Inputs, Step
from ..bench.workloads import Workload
from .rows import Class


class Point(NamedTuple):
    """What a row is timed on: a workload, a page size, TABLE or CSR, tokens of a source entry."""

    load: Workload
    size: int
    form: int
    source_page_size: int = 1

    @property
    def case(self) -> Case:
        """What is built."""
        return Case("table" if self.form == TABLE else "csr", self.size)

    @property
    def name(self) -> str:
        """For the reader."""
        of_pages = f" of {self.source_page_size}" if self.source_page_size > 1 else ""
        return f"{self.load.name}, page {self.size}{of_pages}{', csr' * (self.form == CSR)}"


def fine(each: Class) -> list[Point]:
    """What the second stage times a class on."""
    points = itertools.product(each.forms, each.sizes, each.loads)
    return [Point(load, size, form, each.source_page_size) for form, size, load in points]


def source_of(at: Inputs, page_size: int) -> Tensor:
    """The source of slots, or that of the pages which they lie in: it shows the same tokens."""
    return at.source if page_size == 1 else at.source[:, ::page_size] // page_size


def build_of(at: Inputs, point: Point, source: Tensor, out: dict[str, Tensor], step: Step) -> Build:
    """The launch of a step: one view of ``out``, the buffers by the names of their fields."""
    if point.form == TABLE:
        view = View(out["page_table"])
    else:
        view = View(out["kv_indices"], kv_indptr=out["kv_indptr"], kv_last_page_len=out["kv_last_page_len"])
    sizes = at.page_size, point.source_page_size, at.page_size
    return Build(source, step.rows, step.lens, point.form, *sizes, (view,))
