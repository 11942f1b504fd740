"""The kernel of `expand_queries` as machine code for GPUs that are not here: what a lane loads at a time."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from compiling import GPUS, I32, I64, need
from triton.compiler import CompiledKernel

from xkv.cli.kernels.compiling import plugged
from xkv.cli.kernels.variants import meta
from xkv.expanded import ExpandedQueries, Expansion
from xkv.launch import expanded
from xkv.shard import Shard

pytestmark = pytest.mark.compile
WIDE = {"cuda": r"\b(ld|st)\.global\.v(?:4\.b32|2\.b64)", "hip": r"\bglobal_(load|store)_dwordx4"}


def compiled(arch: str, table: torch.dtype | None, *, aligned: bool) -> CompiledKernel:
    """With everything that it can be asked for."""
    out = ExpandedQueries(meta(4096), meta(4096, dtype=I64), meta(4096))
    build = Expansion(meta(257, dtype=I64), meta(256), 4096, out, shard=Shard(8, 3, 16))
    if table is not None:
        build.out = out._replace(out_page_table=meta(4096, 512, dtype=table))
        build.page_table = meta(256, 512, dtype=table)
    build.status = meta(1, dtype=I64)
    kernel, where = expanded.expanded_kernel(), GPUS[arch]
    with plugged(kernel, where):
        args = [*expanded.arguments(build), expanded.config(build, where, aligned=aligned)]
        made: CompiledKernel = kernel.warmup(*args, grid=(1,), **expanded.options(where))
    return made


@pytest.mark.parametrize(
    ("arch", "table", "aligned"),
    [(arch, *how) for arch in GPUS for how in ((None, False), (I32, False), (I32, True), (I64, True))],
    ids=str,
)
def test_machine_code(arch: str, table: Any, aligned: bool) -> None:
    """It keeps to registers; where rows are aligned, they are copied 16 bytes at a time."""
    need(GPUS[arch])
    kernel, vendor = compiled(arch, table, aligned=aligned), GPUS[arch].vendor
    text = kernel.asm["ptx" if vendor == "cuda" else "amdgcn"]
    wanted = {"cuda": {"ld", "st"}, "hip": {"load", "store"}}[vendor] if aligned else set()
    assert set(re.findall(WIDE[vendor], text)) == wanted
    assert not re.search(r"\.local\b|\bscratch_(load|store)", text)
    assert kernel.metadata.shared <= 1 << 10
