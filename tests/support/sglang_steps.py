"""SGLang's kernels beside the plugin's launches in their place, on the GPU at hand: device and host.

    PYTHONPATH=.:tests/support python tests/support/sglang_steps.py [FILE.json]

The kernels are those of .engines (`ci/support.py` fetches them), of the version below. Device times are in
place, as in `xkv bench`; host times are without a sync; every output is compared, too.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from engine_texts import CACHE, Text, load
from tabulate import tabulate

from xkv.cli.bench import machine, timing
from xkv.cli.bench.cases import Case
from xkv.cli.bench.inputs import Inputs, Step, make_inputs, make_sources
from xkv.cli.bench.predecessor import PREDECESSORS
from xkv.cli.bench.workloads import Workload
from xkv.integrations.sglang import table as sglang
from xkv.integrations.vllm import table as vllm
from xkv.shard import Shard

ROUNDS = 31
VERSIONS = {"sglang": "0.5.23", "vllm": "0.33.0"}
K = 1 << 10
LOADS = (
    Workload("1 x 64K", (64 * K,), 128 * K),
    Workload("64 x 16K", (16 * K,) * 64, 128 * K),
    Workload("256 x ~4K", (4 * K,) * 256, 128 * K, spread=True),
)
MODULES = {
    "dcp": "sglang.kernels.ops.attention.dcp_kernels",
    "metadata": "sglang.kernels.ops.attention.metadata",
    "trtllm": "sglang.kernels.ops.attention.trtllm_mha_graph_metadata",
    "draft": "sglang.kernels.ops.speculative.cache_locs",
    "vllm": "vllm.v1.worker.gpu.cp_utils",
}
SHARD = Shard(8, 3, source="global")


class Point(NamedTuple):
    """A call site: its name, its kernel, the call of a step, and what it writes."""

    name: str
    kernel: Any
    call: Callable[[Step], object]
    written: Sequence[torch.Tensor]


def kernel(module: str, name: str) -> Any:
    """A kernel of an engine's, replaced by the plugin."""
    engine = MODULES[module].split(".")[0]
    found = load(Text(engine, VERSIONS[engine], name, MODULES[module], ""))
    rows = sglang.KERNELS if engine == "sglang" else vllm.KERNELS
    why = next(row for row in rows if row.name == name).replace(SimpleNamespace(**{name: found}))
    assert why is None, why
    return found


def ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def sums_of(lens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()


def local(step: Step) -> torch.Tensor:
    """What the rank has of each row."""
    found = [SHARD.local_length(n) for n in step.host_lens.tolist()]
    return torch.tensor(found, dtype=torch.int32, device="cuda")


def parallel(at: Inputs, page: int, *, pools: bool = False) -> Iterator[Point]:
    """Decode context parallelism: page tables of a rank, and its token CSR."""
    lens = {id(step): local(step) for step in at.steps}
    out = ints(at.batch, -(-at.capacity // (page * SHARD.size)) + 1)
    v2p = torch.randperm(1 << 25, device="cuda") if pools else None
    blocks = triton.cdiv(out.shape[1], max(4096 // page, 1))
    found = kernel("dcp", "create_mla_kv_page_table_for_dcp")
    yield Point(
        f"DCP page table, page {page}{', pools' * pools}", found,
        lambda step: found[(at.batch, blocks)](
            at.source, step.rows, lens[id(step)], out, v2p, at.source.stride(0), out.stride(0),
            PHYSICAL_PAGE_SIZE=page, DCP_SIZE=SHARD.size, DCP_RANK=SHARD.rank,
            PAGES_PER_BLOCK=max(4096 // page, 1), HAS_V2P=pools,
        ), [out],
    )  # fmt: skip


def parallel_indices(at: Inputs) -> Iterator[Point]:
    lens = {id(step): local(step) for step in at.steps}
    sums = {key: sums_of(x) for key, x in lens.items()}
    room = max(int(x[-1]) for x in sums.values())
    out = ints(room, dtype=torch.int64)
    found = kernel("dcp", "create_triton_kv_indices_for_dcp_triton")
    yield Point(
        "DCP indices", found,
        lambda step: found[(at.batch,)](
            at.source, step.rows, lens[id(step)], sums[id(step)], None, out, at.source.stride(0), SHARD.size,
            SHARD.rank,
        ), [out],
    )  # fmt: skip
    table, queries, ids = torch.randint(1 << 20, (at.batch * 4, room), device="cuda").int(), 4, ints(room)
    found2 = kernel("dcp", "compact_dcp_verify_token_table_to_ragged")
    if room * at.batch < 1 << 27:
        yield Point(
            "DCP table to CSR", found2,
            lambda step: found2[(at.batch,)](
                table, lens[id(step)], sums[id(step)], ids, table_stride=room, Q_LEN=queries, BLOCK_SIZE=128
            ), [ids],
        )  # fmt: skip


def local_lengths(at: Inputs) -> Iterator[Point]:
    out, lens = ints(512), {id(step): step.lens.int() for step in at.steps}
    for x in lens.values():
        x.resize_(512).resize_(at.batch)  # a buffer for 512 requests, as vLLM's
    found = kernel("vllm", "_dcp_local_seq_lens_kernel")
    yield Point(
        "vLLM lengths of a rank", found,
        lambda step: found[(4,)](
            out, lens[id(step)], SHARD.size, SHARD.rank, 1, at.batch, out.shape[0], 128
        ), [out],
    )  # fmt: skip


def drafts(at: Inputs, topk: int, page: int, *, blocks: int = 0, window: int = 0) -> Iterator[Point]:
    """All steps of draft decoding."""
    steps, rows = 4, at.batch * topk
    width = max(step.total for step in at.steps) * topk + rows * steps
    ids, sums = ints(steps, width), ints(steps, rows + 1)
    places = {id(step): step.lens.repeat_interleave(topk) for step in at.steps}
    power = triton.next_power_of_2
    found = kernel("draft", "generate_draft_decode_kv_indices")
    more: dict[str, Any] = {"NUM_STEPS": steps} if blocks else {}
    if window:
        more |= {"window_size": window, "sink_size": 4}
    name = f"draft indices, top {topk}, page {page}{', in blocks' * bool(blocks)}{', window' * bool(window)}"
    yield Point(
        name, found,
        lambda step: found[(steps * max(blocks, 1), at.batch, topk)](
            step.rows, at.source, step.lens, ids, sums, places[id(step)], at.source.stride(0), width,
            rows + 1, power(at.batch), power(steps), power(rows), page, **more,
        ), [ids, sums],
    )  # fmt: skip


def decode(at: Inputs, page: int, kind: str) -> Iterator[Point]:
    """The FlashAttention backend's decode metadata; ``kind``: "", "swa", "pools"."""
    out, lens, sums = ints(at.batch, -(-at.capacity // page)), ints(at.batch), ints(at.batch + 1)
    swa = ints(at.batch, -(-at.capacity // page)) if kind else None
    mapping = torch.randperm(1 << 25, device="cuda") if kind == "swa" else None
    full, window = (
        torch.randperm((1 << 25) // page, device="cuda") if kind == "pools" else None for _ in "ab"
    )
    width, columns = -(-at.capacity // page), 256 if page == 1 and not kind else 128
    stride = lambda x, n=0: 0 if x is None else x.stride(n)  # noqa: E731
    found = kernel("metadata", "_fused_decode_metadata_kernel")
    yield Point(
        f"decode metadata, page {page}{kind and ', ' + kind}", found,
        lambda step: found[(at.batch, triton.cdiv(width, columns))](
            step.lens, 1, at.source, at.source.stride(0), 1, step.rows, 1, lens, 1, sums, 1, out,
            out.stride(0), 1, swa, stride(swa), stride(swa, 1), mapping, stride(mapping), full, stride(full),
            window, stride(window), at.batch, width, PAGE_SIZE=page, SEQ_LEN_DELTA=0, BLOCK_COLS=columns,
            SKIP_PAGE_TABLE=False, ZERO_TAIL=False, num_warps=columns // 32, num_stages=3,
        ), [out, lens, sums, *([] if swa is None else [swa])],
    )  # fmt: skip


def draft_extend(at: Inputs, page: int, *, swa: bool) -> Iterator[Point]:
    width = -(-at.capacity // page)
    out, lens, (sums, queries) = ints(at.batch, width), ints(at.batch), ints(2, at.batch + 1)
    extend, each = torch.full((at.batch,), 4, device="cuda"), 4
    mapping = torch.randperm(1 << 25, device="cuda") if swa else None
    second = ints(at.batch, width) if swa else None
    locs = torch.arange(at.batch * each, device="cuda") if swa else None
    twins = None if locs is None else torch.zeros_like(locs)
    found = kernel("metadata", "_draft_extend_metadata_kernel")
    yield Point(
        f"draft-extend metadata, page {page}{', swa and slots' * swa}", found,
        lambda step: found[(at.batch, triton.cdiv(width, 256))](
            step.lens, 1, extend, 1, at.source, at.source.stride(0), 1, step.rows, 1, lens, 1, sums, 1,
            queries, 1, out, out.stride(0), 1, mapping, second, locs, twins, at.batch, width,
            each if swa else 0, PAGE_SIZE_ONE=page == 1, SHIFT=page.bit_length() - 1, BLOCK_COLS=256,
            num_warps=8, num_stages=3, HAS_SWA=swa, OUT_BLOCK=each if swa else 1,
        ), [x for x in (out, lens, sums, queries, second, twins) if x is not None],
    )  # fmt: skip


def graph_metadata(at: Inputs, page: int, *, skip: bool = False) -> Iterator[Point]:
    """TRTLLM MHA's metadata in a graph, with a window's table and the slots of new tokens."""
    out, second = ints(at.batch, -(-at.capacity // page)), ints(at.batch, -(-at.capacity // page))
    lens, sums = ints(at.batch), ints(at.batch + 1)
    mapping, locs = torch.randperm(1 << 25, device="cuda"), torch.arange(at.batch, device="cuda")
    twins = torch.zeros_like(locs)
    found = kernel("trtllm", "update_trtllm_mha_graph_metadata_kernel")
    programs = at.batch + 1 + triton.cdiv(at.batch, 512)
    yield Point(
        f"TRTLLM MHA metadata, page {page}, {'without tables' if skip else 'swa and slots'}", found,
        lambda step: found[(programs,)](
            step.rows, step.lens, at.source, mapping, locs, None, lens, sums, None, out, second, twins,
            at.batch, 0, -(-at.capacity // page), 0, at.batch, at.batch, at.source.stride(0), out.stride(0),
            second.stride(0), PAGE_SIZE=page, HAS_SWA=not skip, HAS_SWA_OUT=True, Q_MODE=0, PAGE_BLOCK=512,
            BS_BLOCK=triton.next_power_of_2(at.batch), SKIP_PAGE_TABLE=int(skip),
        ), [lens, sums, twins, *([] if skip else [out, second])],
    )  # fmt: skip


def points(at: Inputs) -> Iterator[Point]:
    """The call sites of one workload."""
    yield from parallel(at, 64)
    yield from parallel(at, 64, pools=True)
    yield from parallel(at, 1)
    yield from parallel_indices(at)
    yield from local_lengths(at)
    yield from drafts(at, 1, 1)
    yield from drafts(at, 4, 1)
    yield from drafts(at, 4, 64)
    yield from drafts(at, 4, 1, blocks=16)
    yield from drafts(at, 4, 1, window=4096)
    for page in (1, 64):
        for kind in ("", "swa", "pools"):
            yield from decode(at, page, kind)
        yield from draft_extend(at, page, swa=False)
        yield from draft_extend(at, page, swa=True)
    yield from graph_metadata(at, 64)
    yield from graph_metadata(at, 64, skip=True)


def measured(point: Point, at: Inputs) -> tuple[list[float], list[float], bool]:
    """Device and host microseconds, SGLang's and ours, and whether both wrote the same."""
    ours, theirs = type(point.kernel), type(point.kernel).xkv_base
    written = []
    for kind in (theirs, ours):
        point.kernel.__class__ = kind
        for x in point.written:
            x.fill_(0)
        for _ in range(2):
            point.call(at.steps[0])
        written.append([x.clone() for x in point.written])

    def by(kind: type) -> Callable[[Step], object]:
        def call(step: Step) -> object:
            point.kernel.__class__ = kind
            return point.call(step)

        return call

    made = {"theirs": by(theirs), "ours": by(ours)}
    for call in made.values():
        for step in at.steps:
            call(step)
    assert timing.launches(made["ours"], at.steps[0]) == 1
    device = timing.in_place(
        made, lambda step: PREDECESSORS["add"](step.lens), at.launches, [at.index, at.lens], ROUNDS
    )
    host = timing.host_rounds(made, at.steps, ROUNDS)
    same = all(torch.equal(a, b) for a, b in zip(*written, strict=True))
    return *([statistics.median(x[name]) for name in made] for x in (device, host)), same  # type: ignore[return-value]


def main() -> int:
    """Prints the table; returns 1 if anything differs."""
    assert CACHE.is_dir(), f"no {CACHE} here: see ci/support.py"
    sources, rows, ratios = make_sources(LOADS, "cuda"), [], []
    wanted = sys.argv[2:]
    for load_ in LOADS:
        at = make_inputs(Case("table", 1), load_, sources[load_.capacity])
        for point in points(at):
            if wanted and not any(name in point.name for name in wanted):
                continue
            device, host, same = measured(point, at)
            ratios.append(device[0] / device[1])
            rows.append(
                [point.name, load_.name, *device, ratios[-1], *host, "equal" if same else "DIFFERENT"]
            )
            print(rows[-1], flush=True)
    print(machine.versions(), f"geometric mean {statistics.geometric_mean(ratios):.2f}")
    head = ["call site", "workload", "theirs us", "xkv us", "ratio", "theirs host", "xkv host", ""]
    print(tabulate(rows, head, tablefmt="github", floatfmt=".2f"))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps([head, *rows], indent=1), encoding="utf-8")
    return int(any(row[-1] != "equal" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
