"""vLLM's own call sites with its kernels and with ours, on the GPU at hand: device and host, side by side.

    XKV_ENGINES=FOLDER python tests/support/vllm_steps.py

FOLDER/vllm-0.33.0 is what `vllm_engine.py` reads. Device time is of a graph of calls over rotated tables,
host time of calls without a sync, both as in `xkv bench`; every output is compared, too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tabulate import tabulate
from vllm_engine import ROOT, distribution, folder, installed, modules

import xkv
from xkv.cli.bench import machine, timing

DEVICE = torch.device("cuda")
BLOCK = 16
INPUTS = 16
ROUNDS = 25


class Step(NamedTuple):
    """A call site, the kernel it launches and who holds that, and what the call writes.

    ``op``: the same by xkv's general op, where one has it.
    """

    name: str
    host: Any
    kernel: str
    calls: list[Callable[[], Any]]
    written: list[torch.Tensor]
    op: Sequence[Callable[[], Any]] = ()


def filled(rows: int, width: int) -> torch.Tensor:
    return torch.randint(1 << 20, (rows, width), dtype=torch.int32, device=DEVICE)


def sums(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lens], device=DEVICE).cumsum(0).int()


def positions(lens: list[int], queries: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n - q, n, device=DEVICE) for n, q in zip(lens, queries, strict=True)])


def slots(engine: Any, name: str, lens: list[int], queries: list[int], groups: int) -> Iterator[Step]:
    """Both runners' slot mappings; V1 makes one launch a group, V2 one for all."""
    batch, width, room = len(lens), 1 + max(lens) // BLOCK, max(8192, sum(queries))
    at, where = sums(queries), positions(lens, queries)
    ones = [
        engine.v1.BlockTable(BLOCK, batch, width, room, False, DEVICE, 1)
        for _ in range(INPUTS if groups == 1 else 0)
    ]
    for one in ones:
        one.block_table.gpu = filled(batch, width)
    if ones:
        calls = [lambda one=one: one.compute_slot_mapping(batch, at, where) for one in ones]
        written = [one.slot_mapping.gpu for one in ones]
        request, ends = torch.arange(batch, device=DEVICE), torch.tensor(lens, device=DEVICE).int()
        op = [
            partial(
                xkv.build_slot_mapping, one.block_table.gpu, request, ends, positions=where,
                query_start_loc=at, source_page_size=BLOCK, pad_value=-1, out=out,
            )
            for one, out in zip(ones, written, strict=True)
        ]  # fmt: skip
        yield Step(f"V1 slots, {name}", engine.v1.ComputeSlotMappingKernel, "kernel", calls, written, op)
    made = [tables(engine, batch, width, room, groups) for _ in range(INPUTS)]
    rows = torch.randperm(batch, device=DEVICE).int()
    calls = [lambda one=one: one.compute_slot_mappings(rows, at, where, room) for one in made]
    written = [one.slot_mappings for one in made]
    yield Step(
        f"V2 slots, {name}, groups {groups}", engine.v2, "_compute_slot_mappings_kernel", calls, written
    )


def tables(engine: Any, batch: int, width: int, room: int, groups: int) -> Any:
    made = engine.v2.BlockTables([BLOCK] * groups, batch, room, [width] * groups, DEVICE)
    for table in made.block_tables:
        table.gpu = filled(batch, width)
    made.init_block_table_layout_tensors()
    return made


def gather(engine: Any, name: str, lens: list[int], groups: int) -> Iterator[Step]:
    batch, width = len(lens), 1 + max(lens) // BLOCK
    made = [tables(engine, batch, width, 8192, groups) for _ in range(INPUTS)]
    blocks = torch.tensor([[-(-n // BLOCK) for n in lens]] * groups, dtype=torch.int32, device=DEVICE)
    rows = torch.randperm(batch, device=DEVICE).int()
    for one in made:
        one.num_blocks.gpu = blocks
    calls = [lambda one=one: one.gather_block_tables(rows, batch) for one in made]
    written = [x for one in made for x in one.input_block_tables]
    yield Step(
        f"V2 gather, {name}, groups {groups}", engine.v2, "_gather_block_tables_kernel", calls, written
    )


def pages(engine: Any, name: str, lens: list[int]) -> Iterator[Step]:
    batch, width = len(lens), 1 + max(lens) // BLOCK
    blocks = [-(-n // BLOCK) for n in lens]
    ids, sources = [], [filled(batch, width) for _ in range(INPUTS)]
    for what, host, kernel, lengths in (
        ("FlashInfer pages", engine.flashinfer, "_copy_page_indices_kernel", blocks),
        ("Aiter tokens", engine.aiter, "_expand_page_indices_kernel", lens),
    ):
        at, real = sums(lengths), torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        ids = [torch.zeros(sum(lengths), dtype=torch.int32, device=DEVICE) for _ in sources]

        def call(
            out: Any, table: Any, host: Any = host, kernel: str = kernel, at: Any = at, real: Any = real
        ) -> None:
            if host is engine.flashinfer:
                getattr(host, kernel)[(batch,)](out, table, table.stride(0), at, BLOCK_SIZE=1024)
                return
            chunks = -(-width * BLOCK // 1024)
            getattr(host, kernel)[(batch, chunks)](
                out, table, table.stride(0), table.stride(1), at, real,
                KERNEL_BLOCK_SIZE=BLOCK, BLOCK_SIZE=1024, CLAMP_TAIL=False,
            )  # fmt: skip

        calls = [
            lambda out=out, table=table, call=call: call(out, table)
            for out, table in zip(ids, sources, strict=True)
        ]
        yield Step(f"{what}, {name}", host, kernel, calls, ids)


def measured(step: Step) -> list[Any]:
    """Launches, device and host microseconds: vLLM's, then the plugin's, then the op's."""
    ours = getattr(step.host, step.kernel)
    row: list[Any] = [step.name]
    results: list[list[torch.Tensor]] = []
    replaced = type(ours)
    for kind, issued in ((replaced.xkv_base, step.calls), (replaced, step.calls), (replaced, step.op)):
        ours.__class__ = kind
        if not issued:
            row += ["", "", ""]
            continue
        for x in step.written:
            x.fill_(-7)
        for call in issued:
            call()
        results.append([x.clone() for x in step.written])
        issue = {"": lambda call: call()}
        device = timing.back_to_back(issue, issued, step.written[:1], ROUNDS, cold=False)
        host = timing.host_rounds(issue, issued, ROUNDS)
        row.append(timing.launches(issue[""], issued[0]))
        row += [round(statistics.median(found[""]), 1) for found in (device, host)]
    same = all(torch.equal(a, b) for found in results[1:] for a, b in zip(results[0], found, strict=True))
    return [*row, "equal" if same else "DIFFERENT"]


def steps(engine: SimpleNamespace) -> Iterator[Step]:
    """What is measured."""
    decode = [3800 + 7 * n % 600 for n in range(256)]
    long = [64 << 10]
    million = [1 << 20, *[4096] * 255]
    for name, lens in (("256 x ~4K", decode), ("1 x 64K", long), ("1 x 1M + 255 x 4K", million)):
        yield from slots(engine, f"decode {name}", lens, [1] * len(lens), 1)
        yield from gather(engine, name, lens, 1)
        yield from pages(engine, name, lens)
    yield from slots(engine, "decode 256 x ~4K", decode, [1] * 256, 4)
    yield from gather(engine, "256 x ~4K", decode, 4)
    yield from slots(engine, "prefill 8192 + 63 decodes", [8192, *[4096] * 63], [8192, *[1] * 63], 1)


def main() -> int:
    """Prints the table; returns 1 if anything differs."""
    root = folder()
    with tempfile.TemporaryDirectory() as dist, installed(ROOT, Path(dist), root, root=root):
        distribution(Path(dist))
        import vllm.plugins

        vllm.plugins.load_general_plugins()
        rows = [measured(step) for step in steps(modules())]
    us = ["device us", "host us"]
    head = ["step", "theirs", *us, "plugin", *us, "op", *us, ""]
    x = torch.zeros(256, dtype=torch.int32, device=DEVICE)
    (add,) = timing.host_rounds({"": x.add_}, [1], ROUNDS).values()
    print(machine.versions(), f"torch add_ {statistics.median(add):.1f} us of host")
    print(tabulate(rows, head, tablefmt="github"))
    return int(any(row[-1] != "equal" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
