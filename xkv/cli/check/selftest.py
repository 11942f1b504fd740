"""The groups of `xkv check`, in the order they are run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ... import ops
from ...launch import compile
from ...platforms import detect
from ...shard import Shard, local_length
from ...status import Reason, Status, Violation
from . import curated, oracle
from .case import MismatchError, captured, placed
from .curated import INDICES, MAPPING, PAGE_TABLE, Curated
from .op_case import OpCase

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
        return [(op, *size) for op in (PAGE_TABLE, INDICES) for size in sizes] + [(MAPPING, 1, 16)]

    def cases(self, found: Iterable[Curated]) -> Checks:
        """Every case as a check."""
        for each in found:
            yield str(each), functools.partial(once, each, self.device)

    def of_shapes(self, of: Callable[[str, int, int], Iterable[Curated]]) -> Checks:
        """What has cases of a shape, for all shapes, as checks."""
        return self.cases(each for shape in self.shapes for each in of(*shape))


def bench(device: str, quick: bool) -> Bench:
    """Where to check; "auto": on the GPU if there is one, unless TRITON_INTERPRET=1 asks for the CPU."""
    interpreted = compile.interpreted()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not interpreted else "cpu"
    return Bench(device, quick, interpreted)


def once(curated: Curated, device: str) -> None:
    """Makes one call; raises a MismatchError where it did not do what it must."""
    _compare(curated, curated.case(device))


def _compare(curated: Curated, case: OpCase, seed: int = 0) -> None:
    curated.load(case, seed)
    case.check()
    violation = Status.of(case.memory.tensors["status"]).read()
    if violation != curated.violation:
        raise MismatchError(f"status: got {violation}, want {curated.violation}")


def topic(title: str, bench: Bench) -> Checks:
    """One of `curated.TOPICS`."""
    return bench.of_shapes(functools.partial(curated.topic, title))


def skewed_batches(bench: Bench) -> Checks:
    """Rows of many blocks, which the kernel deals out over all its programs."""
    # on a GPU, more than all its programs take in a first pass; elsewhere, what is quick
    on_gpu = bench.device == "cuda" and not bench.interpreted
    batch, tokens = (300, (60_000, 480_000)) if on_gpu else (20, (3000, 3000))
    for op, page_size in ((PAGE_TABLE, 1), (PAGE_TABLE, 16), (INDICES, 1), (INDICES, 16), (MAPPING, 1)):
        longest = tokens[page_size > 1]
        yield from bench.cases([curated.skewed(op, page_size, batch, longest)])


def new_outputs(bench: Bench) -> Checks:
    """Without ``out``: sized on the device's word, or on the host's bound."""
    shards = (None, Shard(2, 1), Shard(4, 1, 1, "global"))
    for (op, page_size, unit), shard in itertools.product(bench.shapes, shards):
        dtype = torch.int64 if page_size > 1 else torch.int32
        found = curated.curated(op, page_size, unit, dtype=dtype, shard=shard)
        bound = found.sizes["tokens"] * (1 if op == PAGE_TABLE else found.sizes["batch"]) + 5
        for host in (None, bound):
            yield f"{found}, bound {host}", functools.partial(new, found, bench.device, host)


def new(curated: Curated, device: str, bound: int | None) -> None:
    """The same of a call without ``out``, with this ``max_seq_len`` or ``max_tokens``: sizes count, too."""
    case, op, page_size = curated.case(device), curated.family.group, curated.family.page_size
    curated.load(case)
    case.memory.send()
    bounds = {"max_seq_len" if op == PAGE_TABLE else "max_tokens": bound}
    inputs = placed(case.arguments, case.memory.tensors)
    result: Any = getattr(ops, op)(**inputs, **bounds, dtype=curated.family.dtype)
    got: dict[str, torch.Tensor] = result._asdict() if isinstance(result, ops.KVIndices) else {"out": result}
    got = {name.replace("kv_indices", "out"): x.cpu() for name, x in got.items()}
    lens, shape = case.memory.host["seq_lens"], got["out"].shape
    if op == PAGE_TABLE:
        longest = local_length(int(lens.max()) if bound is None else bound, curated.family.shard)
        shape = torch.Size([len(lens), -(-longest // page_size)])
    elif bound is None:  # else what is past the live entries is anything
        shape = torch.Size(
            [int(case.memory.host["query_lens"].sum() if op == MAPPING else got["kv_indptr"][-1])]
        )
    if got["out"].shape != shape:
        raise MismatchError(f"out: got the shape {list(got['out'].shape)}, want {list(shape)}")
    want = {name: x.clone() for name, x in got.items()}
    build = case.launch(case.memory.host | want)
    build.pad_value = 0 if op == PAGE_TABLE else None
    oracle.run(build)
    for name, x in got.items():
        if not torch.equal(x, want[name]):
            at = tuple((x != want[name]).nonzero()[0].tolist())
            raise MismatchError(f"{name}{list(at)}: got {int(x[at])}, want {int(want[name][at])}")


def graph_replays(bench: Bench) -> Checks:
    """Captured once, replayed with other sources, rows, starts and lengths; nothing where there is no GPU."""
    if bench.device == "cpu" or bench.interpreted:
        return
    shapes = ((PAGE_TABLE, 1, 1), (PAGE_TABLE, 64, 1), (INDICES, 1, 1), (INDICES, 64, 16), (MAPPING, 1, 16))
    for shape in shapes:
        yield ", ".join(map(str, shape)), functools.partial(_replayed, *shape, bench.device)


def _replayed(op: str, page_size: int, unit: int, device: str) -> None:
    def change(t: dict[str, torch.Tensor]) -> None:
        if op != MAPPING:
            t["kv_start"].copy_(t["seq_lens"] // 3)
        if bad:
            t["req_pool_indices"][1], t["seq_lens"][1] = -1, 1

    bad = False
    options = "pad_value" if op == MAPPING else "pad_value kv_start"
    found = curated.curated(op, page_size, unit, options, change=change)
    case = found.case(device)
    case.run = captured(case.run)
    for seed in (1, 2, 3, 0):
        bad = seed == 2
        try:
            _compare(found._replace(violation=Violation(1, Reason.BAD_ROW) if bad else None), case, seed)
        except MismatchError as error:
            raise MismatchError(f"values {seed}: {error}") from None


GROUPS: dict[str, Callable[[Bench], Checks]] = {
    "page tables": lambda bench: bench.cases(curated.all_sizes(PAGE_TABLE, bench.page_sizes, bench.units)),
    "kv indices": lambda bench: bench.cases(curated.all_sizes(INDICES, bench.page_sizes, bench.units)),
    "slot mappings": lambda bench: bench.cases(curated.all_slots(bench.page_sizes, bench.units)),
    **{title: functools.partial(topic, title) for title in curated.TOPICS},
    "planted violations": lambda bench: bench.of_shapes(curated.violations),
    "skewed batches": skewed_batches,
    "new outputs": new_outputs,
    "graph replays": graph_replays,
}
