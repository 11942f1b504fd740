"""The kernel of chosen positions as machine code for GPUs that are not here, with every tuning row."""

from __future__ import annotations

import re

import pytest
import torch
from compiling import GPUS, I32, I64, need
from triton.compiler import CompiledKernel

from xkv import dispatch
from xkv.chosen import ChosenTokens
from xkv.cli.kernels.compiling import compiled_chosen
from xkv.cli.kernels.variants import meta
from xkv.launch import chosen
from xkv.platforms.tuning import ChosenTuning
from xkv.shard import Shard

pytestmark = pytest.mark.compile
WIDE = {
    "cuda": r"\b(ld|st)\.global(\.\w+::\w+)*\.v4\.b32", "hip": r"\b(?:global|buffer)_(load|store)_dwordx4"
}  # fmt: skip


def translation(kind: str, dtype: torch.dtype = I32) -> ChosenTokens:
    """``kind``: "" as they stand; "compact" with counts; "all" that it can be asked for."""
    build = ChosenTokens(
        meta(256, 4096), meta(4096, 2048, dtype=dtype), meta(4096, 2048), source_page_size=16,
        block_stride=16, token_to_req=meta(4096), seq_lens=meta(256),
    )  # fmt: skip
    if kind:
        build.compact, build.counts = True, meta(4096)
    if kind == "all":
        build.token_to_req, build.query_start_loc = None, meta(257, dtype=I64)
        build.req_pool_indices, build.status = meta(256, dtype=I64), meta(1, dtype=I64)
        build.shard, build.dummy = Shard(8, 3, 16), 0
    return build


def compiled(arch: str, build: ChosenTokens, tuning: ChosenTuning, *, aligned: bool) -> CompiledKernel:
    made: CompiledKernel = compiled_chosen(build, tuning, GPUS[arch], aligned=aligned)
    return made


@pytest.mark.parametrize("kind", ["", "compact", "all"])
@pytest.mark.parametrize("arch", GPUS)
def test_machine_code(arch: str, kind: str) -> None:
    """Each row keeps to registers; positions that are aligned are loaded 16 bytes at a time."""
    where = GPUS[arch]
    need(where)
    build = translation(kind)
    for tokens in dispatch.chosen_sizes(where):
        tuning = dispatch.chosen_row(where, tokens, build.whole_rows)
        kernel = compiled(arch, build, tuning, aligned=True)
        text = kernel.asm["ptx" if where.vendor == "cuda" else "amdgcn"]
        a_lane_has = tuning.block // (tuning.num_warps * where.warp_size)
        if a_lane_has >= 4:
            assert re.search(WIDE[where.vendor], text), tuning
        assert not re.search(r"\.local\b|\bscratch_(load|store)", text), tuning


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_unaligned_and_wide(arch: str) -> None:
    """Nothing is loaded 16 bytes at a time that may begin anywhere."""
    where = GPUS[arch]
    need(where)
    for dtype in (I32, I64):
        build = translation("", dtype)
        tuning = dispatch.chosen_row(where, 4096, build.whole_rows)
        kernel = compiled(arch, build, tuning, aligned=False)
        text = kernel.asm["ptx" if where.vendor == "cuda" else "amdgcn"]
        assert not re.search(WIDE[where.vendor], text)


@pytest.mark.parametrize(("kind", "strides"), [("", [None] * 4), ("all", [None, 2, 2, 1])])
def test_vectors_of_int32_alone_have_no_strides(kind: str, strides: list[int | None]) -> None:
    """Nor instructions for the upper half of an int64."""

    def found(narrow: bool | None) -> list[int | None]:
        values = chosen.arguments(translation(kind), narrow)
        by_name = dict(zip(chosen.chosen_kernel().arg_names, values, strict=False))
        return [by_name[f"{name}_stride"] for name in ("to_req", "starts", "rows", "lens")]

    assert found(None) == strides
    assert found(True) == [None] * 4
    assert any(found(False))


@pytest.mark.parametrize(("tokens", "k", "page", "ranks", "source", "compact", "vectors"), [
    (4096, 2048, 64, 1, "", True, True), (4096, 512, 64, 1, "", True, True),
    (4096, 2048, 1, 1, "", True, False), (4096, 2048, 1, 1, "", False, True),
    (4096, 2048, 1, 8, "local", True, True), (4096, 2048, 1, 8, "global", True, False),
    (64, 2048, 1, 1, "", True, True), (64, 512, 64, 1, "", True, False), (64, 512, 64, 1, "", False, True),
])  # fmt: skip
def test_packed_positions_change_lanes_as_integers_or_not_at_all(
    tokens: int, k: int, page: int, ranks: int, source: str, compact: bool, vectors: bool
) -> None:
    """Vectors of packed positions change lanes, through shared memory, before they are stored."""
    where = GPUS["sm90"]
    need(where)
    build = ChosenTokens(
        meta(8, 4096), meta(tokens, k), meta(tokens, k), source_page_size=page, block_stride=page,
        token_to_req=meta(tokens), compact=compact, counts=meta(tokens),
        shard=Shard(ranks, 0, 1, source) if source else None,
    )  # fmt: skip
    tuning = dispatch.chosen_row(where, tokens, build.whole_rows)
    assert chosen.config(build, tuning, where, aligned=True).VEC_16B is vectors
    assert chosen.config(build, tuning, where, aligned=False).VEC_16B is False
    moved = re.findall(r"ttg.convert_layout .*", compiled("sm90", build, tuning, aligned=True).asm["ttgir"])
    assert bool(moved) is (compact and vectors)
    assert not any("ptr" in each for each in moved)
