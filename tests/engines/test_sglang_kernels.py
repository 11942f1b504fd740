"""Calls of SGLang's kernels mean the same with ours: beside stand-ins of our own, and by their definition."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sglang_standins
import torch
from building import paged_source
from conftest import GPUS
from recorded import Recorded, arguments, on_gpu
from sglang_calls import CALLS, assert_same, newest, original, twin

from xkv.cli.check.memory import guarded, whole
from xkv.integrations import cached_calls
from xkv.integrations.patching import replacing
from xkv.integrations.sglang import (
    context_parallel,
    draft,
    kv_indices,
    load,
    metadata,
    page_tables,
    steps,
    table,
)
from xkv.params import INT32_MAX, Build

pytest_plugins = ("sglang_fixture",)
ROWS = {row.name: row for row in table.KERNELS}
NAMES = [*ROWS]


@pytest.mark.kernel
@pytest.mark.parametrize("name", NAMES)
def test_equal_bit_for_bit(
    name: str, engine: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(draft, "PREPARED_AT", 1)
    monkeypatch.setattr(draft, "_MOST", 1 << 10)
    load()
    kernel, rng = getattr(sglang_standins, name), random.Random(f"{name} 1")
    for _ in range(20 if GPUS else 3):
        call = CALLS[name](rng, device)
        want, again = twin(call), twin(call)
        original(kernel)(want.grid)(**want.args)
        for ours in (call, again) if GPUS else (call,):  # the second from what was remembered of the first
            kernel[ours.grid](**ours.args, num_warps=4)
            assert_same(ours, want)


@pytest.mark.parametrize("page_size", [3, 48, 100, 2048, 8192])
def test_page_sizes_that_theirs_has_not(page_size: int, device: str) -> None:
    """Any: a block of 4096 tokens need not hold a whole number of pages."""
    rng = random.Random(page_size)
    ids = paged_source(rng, 3, 5 * page_size, page_size, 1, torch.int32, device)
    rows, lens = torch.tensor([2, 0, 1]), [5 * page_size, page_size + 1, 0]
    out = guarded(3, 6, 8, torch.int32, device)
    args = (ids, rows.to(device), torch.tensor(lens).to(device), None, out, ids.stride(0), 8)
    want = whole(out).clone()
    for b, n in enumerate(lens):
        for j in range(-(-n // page_size)):
            want[out.storage_offset() + b * 8 + j] = ids[rows[b], j * page_size] // page_size
    assert page_tables.create_flashmla_kv_indices_triton((3, 1), *args, PAGED_SIZE=page_size)
    assert torch.equal(whole(out), want)


@pytest.mark.kernel
@pytest.mark.parametrize("rows", [20, 64], ids=["fit", "do not"])
def test_sums_of_what_fits_in_int32_and_of_what_does_not(rows: int, device: str) -> None:
    """The source says which; its rows are the same memory, which a step without tables does not read."""
    tokens, batch = 1 << 26, min(rows, 40)
    ids = torch.empty(1, tokens, dtype=torch.int32, device=device).expand(rows, tokens)
    index, lens = torch.arange(batch, device=device), torch.full((batch,), tokens, device=device)
    seqlens, sums = (torch.zeros(batch + n, dtype=torch.int32, device=device) for n in (0, 1))
    assert metadata.update_trtllm_mha_graph_metadata_kernel(
        (1,), index, lens, ids, None, None, None, seqlens, sums, None, None, None, None, batch, 0, 1, 0, 0, 0,
        0, 0, 0, PAGE_SIZE=64, HAS_SWA=False, HAS_SWA_OUT=False, Q_MODE=0, PAGE_BLOCK=512, BS_BLOCK=64,
        SKIP_PAGE_TABLE=1,
    )  # fmt: skip
    assert seqlens.tolist() == [tokens] * batch
    assert sums.tolist() == [min(b * tokens, INT32_MAX) for b in range(batch + 1)]


def _flashmla(**change: Any) -> bool:
    given = {
        "req_to_token_ptr": torch.arange(64, dtype=torch.int32).view(2, 32),
        "req_pool_indices_ptr": torch.tensor([1]), "page_kernel_lens_ptr": torch.tensor([9]),
        "kv_start_idx": None, "kv_indices_ptr": torch.zeros(1, 4, dtype=torch.int32),
        "req_to_token_ptr_stride": 32, "kv_indices_ptr_stride": 4, "PAGED_SIZE": 4,
    } | change  # fmt: skip
    return page_tables.create_flashmla_kv_indices_triton((1, 1), **given)


def test_what_is_left_to_the_original() -> None:
    assert _flashmla()
    assert not _flashmla(kv_start_idx=torch.tensor([4]))
    assert _flashmla(kv_start_idx=torch.tensor([4]), PAGED_SIZE=1, kv_indices_ptr_stride=9,
                     kv_indices_ptr=torch.zeros(1, 9, dtype=torch.int32))  # fmt: skip
    assert not _flashmla(req_to_token_ptr=torch.zeros(2, 32))
    assert not _flashmla(page_kernel_lens_ptr=torch.tensor([9], dtype=torch.int16))
    assert not _flashmla(kv_indices_ptr=object())
    assert not _flashmla(kv_indices_ptr_stride=99)
    assert not _flashmla(v2p_ptr=torch.arange(16))
    assert not _flashmla(PAGE_MULT=2)


def test_tables_without_their_shape() -> None:
    """A kernel is given pointers: flat buffers mean the same."""
    flat = torch.zeros(4, dtype=torch.int32)
    assert _flashmla(kv_indices_ptr=flat, req_to_token_ptr=torch.arange(64, dtype=torch.int32))
    assert flat.tolist() == [8, 9, 10, 0]


def test_an_empty_batch_and_a_grid_that_is_a_function(engine: Path) -> None:
    load()
    kernel = sglang_standins.create_flashmla_kv_indices_triton
    assert kernel[(0, 1)](None, None, None, None, None, 1, 1) is None
    ran = []
    kernel.run = lambda *args, grid, **options: ran.append(grid)
    try:
        grid = lambda meta: (1, 1)  # noqa: E731
        kernel[grid](None, None, None, None, None, 1, 1)
    finally:
        del kernel.run
    assert ran == [grid]


def recording(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Build], list[list[Any]]]:
    """What is built from now on, and what is launched of what is remembered."""
    built: list[Build] = []
    launched: list[list[Any]] = []

    def run(build: Build) -> Recorded:
        built.append(build)
        return Recorded(build, launched)

    monkeypatch.setattr(cached_calls.launch, "run", run)
    return built, launched


@pytest.mark.parametrize("name", [x for x in NAMES if "draft_decode" not in x and "transform" not in x])
def test_a_call_of_other_sizes_is_a_call_like_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what is launched is what would be launched if nothing were remembered."""
    built, launched = recording(monkeypatch)
    rng, launch = random.Random(f"{name} 2"), replacing.resolve(newest(ROWS[name]).launch)
    of_ranks = (context_parallel.tables, context_parallel.indices, context_parallel.ragged)
    every = (page_tables.tables, kv_indices.indices, steps, *of_ranks)
    for x in every:
        x.clear()
    seen = 0
    for _ in range(200):
        call = CALLS[name](rng, "cpu")
        count, known = len(built), len(launched)
        call = call._replace(
            args={k: on_gpu(v) if isinstance(v, torch.Tensor) else v for k, v in call.args.items()}
        )
        if not launch(call.grid, **call.args) or len(built) > count:
            continue
        assert len(launched) == known + (call.grid[0] > 0)
        if len(launched) == known:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(cached_calls.CachedCalls, "_launch", lambda *_: False)
            assert launch(call.grid, **call.args)
        assert launched[-1] == arguments(built[-1])
        seen += 1
    for x in every:
        x.clear()
    assert seen > 20


def test_a_call_that_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors: measured no more. Others at the same addresses are."""
    builds, launched = recording(monkeypatch)
    tables, measured = page_tables.tables, []
    sizes = tables._sizes
    monkeypatch.setattr(tables, "_sizes", lambda *given: measured.append(given) or sizes(*given))
    tables.clear()
    pool, lens = on_gpu(torch.arange(4)), on_gpu(torch.tensor([9, 30, 1, 0]))
    source = on_gpu(torch.arange(256, dtype=torch.int32).view(4, 64))
    out = on_gpu(torch.zeros(4, 16, dtype=torch.int32))

    def ask(ids: torch.Tensor, to: torch.Tensor) -> list[Any]:
        given = (ids, pool, lens, None, None, None, to, None)
        assert tables(given, 4, ids.stride(0), to.stride(0), 4)
        # what would be launched if nothing were remembered
        want = arguments(tables._build(*given, 4, ids.stride(0), to.stride(0), 4))
        assert launched[-1:] in ([], [want])
        return want

    for _ in range(5):
        ask(source, out)
    assert len(measured) == 3  # built, like the one before, the second of its kind; then no more
    assert len(launched) == 4
    narrow = out[:, :9]  # the same address
    assert ask(source, narrow) != ask(source, out)
    assert ask(source[:3], out) != ask(source, out)
    assert (len(launched), len(builds)) == (8, 1)
    tables.clear()
    ask(source, out)
    assert len(builds) == 2


@pytest.mark.kernel
def test_launches_of_draft_decoding_are_kept_for_buffers_that_come_again(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Others, as of steps without a graph, are the original's: theirs would take longer to prepare."""
    draft.clear()
    call = CALLS["generate_draft_decode_kv_indices"](random.Random(3), device)
    again = CALLS["generate_draft_decode_kv_indices"](random.Random(4), device)
    launch = draft.generate_draft_decode_kv_indices
    assert not launch(call.grid, **call.args)
    assert not launch(again.grid, **again.args)
    assert launch(call.grid, **call.args)
    assert launch(again.grid, **again.args)
    assert len(draft._launches) == 2
    monkeypatch.setattr(draft, "_MOST", 2)
    third = CALLS["generate_draft_decode_kv_indices"](random.Random(5), device)
    assert [launch(third.grid, **third.args) for _ in range(3)] == [False] * 3
    assert launch(call.grid, **call.args)
    draft.clear()
