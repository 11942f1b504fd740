"""`xkv bench --suite sparse`: chosen positions to slots, beside SGLang's and vLLM's kernels."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import ops
from ...shard import Shard
from . import loading, machine, timing
from .predecessor import PREDECESSORS

SGLANG = "sglang/kernels/ops/attention/dsa/transform_index.py"
VLLM = "vllm/v1/attention/backends/mla/sparse_utils.py"
TOKENS, QUICK_TOKENS = (1, 64, 256, 4096, 16384), (1, 4096)
CHOSEN, QUICK_CHOSEN = (512, 2048), (2048,)
PAGES = (1, 64)
KINDS = ("", "compact", "shard")
_DECODES = 256  # query tokens of as many requests; more of them are of _PREFILLS
_PREFILLS = 8
_LENGTH, _CAPACITY = 64 << 10, 128 << 10  # tokens
_POOL = 1 << 24
_BYTES = 2 << 30  # of all inputs of a point
_RANKS, _RANK = 8, 3


class Point(NamedTuple):
    """What is translated: so many query tokens, ``k`` positions each, of a cache with such pages.

    ``kind``: "" as they stand; "compact": packed and counted; "shard": one rank's, packed and counted.
    """

    tokens: int
    k: int
    page: int
    kind: str

    @property
    def batch(self) -> int:
        """Requests."""
        return self.tokens if self.tokens <= _DECODES else _PREFILLS

    @property
    def shard(self) -> Shard | None:
        """The rank's share."""
        return Shard(_RANKS, _RANK, 1, "local") if self.kind == "shard" else None

    def __str__(self) -> str:
        return f"{self.tokens} x {self.k}, page {self.page}{self.kind and ', ' + self.kind}"


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors of a point.

    Attributes:
        table: ``[batch, width]`` int32, page ids, of the rank's own.
        chosen: ``[tokens, k]`` int32 for each launch.
        lens: ``[batch]`` int32.
        to_req: ``[tokens]`` int32.
        starts: ``[batch + 1]`` int32.
    """

    table: Tensor
    chosen: list[Tensor]
    lens: Tensor
    to_req: Tensor
    starts: Tensor

    @classmethod
    def of(cls, point: Point, device: Any = "cuda") -> Inputs:
        """Draws them."""
        ranks = _RANKS if point.shard else 1
        width = _CAPACITY // (point.page * ranks)
        table = torch.randint(_POOL // point.page, (point.batch, width), dtype=torch.int32, device=device)
        size = point.tokens * point.k * 4
        count = max(min(24, _BYTES // (2 * size)), 2)
        chosen = [
            torch.randint(_LENGTH, (point.tokens, point.k), dtype=torch.int32, device=device)
            for _ in range(count)
        ]
        for x in chosen:
            x.masked_fill_(torch.rand(x.shape, device=device) < 0.02, -1)
        each = point.tokens // point.batch
        starts = torch.arange(0, point.tokens + 1, each, dtype=torch.int32, device=device)
        to_req = torch.arange(point.batch, dtype=torch.int32, device=device).repeat_interleave(each)
        lens = torch.full((point.batch,), _LENGTH, dtype=torch.int32, device=device)
        return cls(table, chosen, lens, to_req, starts)


class Provider(NamedTuple):
    """One that translates: its call, and what that writes."""

    call: Callable[[Tensor], object]
    written: Sequence[Tensor]


def kernels(folders: Sequence[Path]) -> dict[str, Any]:
    """SGLang's file and vLLM's kernel, as far as they are there."""
    theirs = loading.load_method(loading.find(folders, VLLM), "sparse_mla_index_remap_kernel")
    return {"sglang": loading.load(loading.find(folders, SGLANG)), "vllm": theirs}


def providers(point: Point, at: Inputs, peers: dict[str, Any]) -> Iterator[tuple[str, Provider]]:
    """By name, who can translate; xkv last."""
    shape = (point.tokens, point.k)

    def new() -> tuple[Tensor, Tensor]:
        ids = torch.full(shape, -1, dtype=torch.int32, device=at.table.device)
        return ids, ids.new_zeros(point.tokens)

    counts_too = bool(point.kind)
    if peers["sglang"] is not None and point.page == 1 and not point.kind:
        yield "SGLang", _sglang(peers["sglang"], point, at, *new())
    if peers["vllm"] is not None:
        yield "vLLM", _vllm(peers["vllm"], point, at, *new())
    for name, more in (("xkv, query_start_loc", {"query_start_loc": at.starts}), ("xkv", {})):
        if point.batch == point.tokens:
            if name != "xkv":
                continue
        elif name == "xkv":
            more = {"token_to_req": at.to_req}
        out, counts = new()

        def call(chosen: Tensor, out: Tensor = out, counts: Tensor = counts, more: Any = more) -> object:
            return ops.translate_positions(
                at.table, chosen, seq_lens=at.lens, source_page_size=point.page, shard=point.shard,
                compact=counts_too, counts=counts if counts_too else None, out=out, **more,
            )  # fmt: skip

        yield name, Provider(call, (out, counts) if counts_too else (out,))


def _sglang(file: Any, point: Point, at: Inputs, out: Tensor, _: Tensor) -> Provider:
    """As transform_index_page_table_decode and _prefill launch it."""
    if point.batch == point.tokens:
        return Provider(lambda x: file.transform_index_page_table_decode(at.table, x, out), (out,))
    each, block = point.tokens // point.batch, 256
    launch = file.transform_index_page_table_prefill_kernel[
        (point.batch, -(-each // 4), -(-point.k // block))
    ]
    return Provider(
        lambda x: launch(
            at.table, x, at.starts, out, at.table.stride(0), 1, x.stride(0), 1, out.stride(0), 1,
            PAGE_TABLE_IS_EXPANDED=False, TOPK=point.k, BLOCK_Q=4, BLOCK_TOPK=block, num_warps=4,
        ), (out,),
    )  # fmt: skip


def _vllm(kernel: Any, point: Point, at: Inputs, out: Tensor, counts: Tensor) -> Provider:
    """As triton_convert_req_index_to_global_index launches it."""
    single = bool(point.kind)
    block, warps = (point.k, 8) if single else (128, 4)
    launch = kernel[(point.tokens, -(-point.k // block))]
    shard = point.shard
    size, rank = (shard.size, shard.rank) if shard else (1, 0)
    return Provider(
        lambda x: launch(
            at.to_req, at.table, x, out, counts, None, None, None, 0, at.table.shape[1],
            BLOCK_SIZE=point.page, BLOCK_STRIDE_ROWS=point.page, BLOCK_N=block, NUM_TOPK_TOKENS=point.k,
            HAS_PREFILL=False, HAS_IDX_MAPPING=False, COUNT_VALID=single, SINGLE_TILE=single,
            COMPACT_TO_FRONT=single, DCP_SIZE=size, DCP_RANK=rank, DCP_INTERLEAVE=1,
            bt_stride0=at.table.stride(0), bt_stride1=1, ti_stride0=x.stride(0), ti_stride1=1,
            out_stride0=out.stride(0), out_stride1=1, num_warps=warps,
        ), (out, counts) if single else (out,),
    )  # fmt: skip


def measured(point: Point, peers: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Microseconds of each provider by name, on the device and the host, and whose results are wrong."""
    at = Inputs.of(point)
    made = dict(providers(point, at, peers))
    for provider in made.values():
        for chosen in (*at.chosen[1:2], at.chosen[0], at.chosen[0]):  # compiled, known, and left there
            provider.call(chosen)
    want = made["xkv"].written
    wrong = [
        name for name, provider in made.items()
        if not all(torch.equal(a, b) for a, b in zip(provider.written, want, strict=True))
    ]  # fmt: skip
    calls = {name: provider.call for name, provider in made.items() if name not in wrong}
    before = lambda _: PREDECESSORS["add"](at.lens)  # noqa: E731
    device = timing.in_place(calls, before, at.chosen, [at.lens, at.to_req], rounds)
    host = timing.host_rounds(calls, at.chosen, rounds)
    return {
        "point": str(point), **point._asdict(), "bytes": 8 * point.tokens * point.k, "wrong": wrong,
        "device_us": {name: statistics.median(device[name]) for name in calls},
        "host_us": {name: statistics.median(host[name]) for name in calls},
    }  # fmt: skip


def points(quick: bool) -> list[Point]:
    """What is timed."""
    tokens, chosen = (QUICK_TOKENS, QUICK_CHOSEN) if quick else (TOKENS, CHOSEN)
    return [Point(t, k, page, kind) for page in PAGES for kind in KINDS for k in chosen for t in tokens]


def run(folders: Sequence[Path], rounds: int, quick: bool, out: Path | None) -> list[str]:
    """Measures and prints the table; returns what is wrong."""
    from tabulate import tabulate

    peers, record, rows = kernels(folders), [], []
    speed = timing.copy_gb_s()
    for point in points(quick):
        found = measured(point, peers, rounds)
        record.append(found)
        us = found["device_us"]
        others = [us[name] for name in ("SGLang", "vLLM") if name in us]
        ratio = min(others) / us["xkv"] if others and "xkv" in us else None
        copied = found["bytes"] / speed / 1e3
        rows.append(
            [str(point), *(us.get(name) for name in ("SGLang", "vLLM", "xkv, query_start_loc", "xkv")), ratio,
             us["xkv"] / copied, found["host_us"].get("xkv")]
        )  # fmt: skip
    head = ["chosen", "SGLang", "vLLM", "xkv, starts", "xkv", "best/xkv", "xkv/copy", "xkv host"]
    print(machine.versions(), f"copies {speed:.0f} GB/s")
    print(tabulate(rows, head, tablefmt="github", floatfmt=".2f", missingval="-"))
    ratios = [row[5] for row in rows if row[5] is not None]
    if ratios:
        print(f"the better of both / xkv: geometric mean {statistics.geometric_mean(ratios):.2f}")
    if out is not None:
        out.write_text(json.dumps({"versions": machine.versions(), "points": record}, indent=1) + "\n")
    return [f"{each['point']}: {name}" for each in record for name in each["wrong"]]
