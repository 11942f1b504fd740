"""Sizes that take a GPU's memory: one test at a time, whatever the workers, and only where there is room."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import building
import pytest
import torch

import xkv
from xkv import reference
from xkv.cli.check import memory
from xkv.launch import launch
from xkv.params import CAPACITY_MAX, CSR, INT32_MAX, SLOTS, TABLE, Build, View
from xkv.status import Reason

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

I32, I64 = torch.int32, torch.int64
M16 = 1 << 24  # tokens
_OTHERS = 16  # GB that the other workers may have


@pytest.fixture
def need() -> Iterator[Callable[[float], None]]:
    """Waits for the GPU's memory, skips where it is too small, and gives it back."""
    with open(Path(tempfile.gettempdir()) / "xkv-tests-memory", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def check(gigabytes: float) -> None:
            total = torch.cuda.get_device_properties(0).total_memory / 1e9
            if total < gigabytes + _OTHERS:
                pytest.skip(f"needs {gigabytes} GB and {_OTHERS} for the other workers, has {total:.0f}")

        yield check
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def pages(rows: int, tokens: int, page: int = 1024, seed: int = 0) -> torch.Tensor:
    """Slots of whole pages, scattered: int32 ``[rows, tokens]``."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    ids = torch.randint(1 << 20, (rows, -(-tokens // page), 1), device="cuda", generator=generator)
    slots = (ids * page).to(I32) + torch.arange(page, dtype=I32, device="cuda")
    return slots.view(rows, -1)[:, :tokens]


@pytest.mark.usefixtures("need")
@pytest.mark.parametrize("batch", [1, 2, 16, 17, 1000, 65_535, 65_536])
@pytest.mark.parametrize("form", [TABLE, CSR, SLOTS], ids=["table", "csr", "slots"])
def test_batches(form: int, batch: int) -> None:
    """Every output beside the ids too, against the oracle, guard words included."""
    generator = torch.Generator().manual_seed(batch)
    lens = torch.randint(400, (batch,), generator=generator).cuda()
    rows = torch.randint(9, (batch,), generator=generator).cuda()
    ints = lambda n: memory.guarded_1d(n, I32, "cuda")  # noqa: E731
    for page_size in (1,) if form == SLOTS else (1, 64):
        build = Build(pages(9, 400), rows, lens, form, page_size, 1, page_size, ())
        build.status = torch.full((1,), (1 << 63) - 1, device="cuda")
        if form == TABLE:
            out = memory.guarded(batch, 400 // page_size + 1, 410, I32, "cuda")
            view = View(out, cache_seqlens=ints(batch), cu_seqlens_k=ints(batch + 1))
        else:
            view = View(memory.guarded_1d(batch * 400, I32, "cuda"))
        if form == CSR:
            view.kv_indptr, view.kv_last_page_len = ints(batch + 1), ints(batch)
        if form == SLOTS:
            build.query_lens = lens // 9
        build.views = (view,)
        want = building.twin(build)
        launch.run(build)
        reference.run(want)
        building.assert_same(build, want)


def test_contexts_of_16m_tokens(need: Callable[[float], None]) -> None:
    need(2)
    source = pages(3, M16 + 4)
    rows, lens = torch.tensor([2, 0, 1], device="cuda"), torch.tensor([M16, 5, M16 - 1], device="cuda")
    for page_size in (1, 64, 1024):
        table = xkv.build_page_table(source, rows, lens, page_size=page_size)
        csr = xkv.build_kv_indices(source, rows, lens, page_size=page_size)
        parts = [
            source[r, :n:page_size] // page_size for r, n in zip(rows.tolist(), lens.tolist(), strict=True)
        ]
        for b, part in enumerate(parts):
            assert torch.equal(table[b, : len(part)], part)
        assert torch.equal(csr.kv_indices, torch.cat(parts))
    slots = xkv.build_slot_mapping(source, rows, lens, lens)
    assert torch.equal(slots, torch.cat([source[2, :M16], source[0, :5], source[1, : M16 - 1]]).long())


def test_a_builder_of_16m_tokens(need: Callable[[float], None]) -> None:
    need(4)
    source = pages(3, M16)
    rows, lens = torch.tensor([2, 0], device="cuda"), torch.tensor([M16 - 3, 70], device="cuda")
    name = "aiter_unified" if torch.version.hip else "flashmla"
    table = xkv.MetadataBuilder(name, source, max_batch_size=2, max_context_len=M16)
    meta, P = table.build(rows, lens, seq_lens_delta=3), table.page_size
    assert torch.equal(meta.page_table[0, : M16 // P], source[2, ::P] // P)
    assert meta.cache_seqlens.tolist() == [M16, 73]
    assert meta.cu_seqlens_k.tolist() == [0, M16, M16 + 73]
    triton = xkv.MetadataBuilder("triton", source, max_batch_size=2, max_context_len=M16, sliding_window=99)
    meta = triton.build(rows, lens)
    assert torch.equal(meta.kv_indices[: M16 + 67], torch.cat([source[2, : M16 - 3], source[0, :70]]).long())
    assert torch.equal(meta.window.kv_indices[:99], source[2, M16 - 102 : M16 - 3].long())
    table.check()
    triton.check()


def test_the_longest_row(need: Callable[[float], None]) -> None:
    """2**28 - 1 tokens, and one more is refused on the host."""
    need(4)
    longest = (1 << 28) - 1
    source = pages(1, longest)
    zero, lens = torch.zeros(1, dtype=I64, device="cuda"), torch.tensor([longest], device="cuda")
    csr = xkv.build_kv_indices(source, zero, lens)
    assert torch.equal(csr.kv_indices, source[0])
    assert csr.kv_indptr.tolist() == [0, longest]
    table = xkv.build_page_table(source, zero, lens, page_size=64, max_seq_len=longest)
    assert torch.equal(table[0], source[0, ::64] // 64)
    with pytest.raises(ValueError, match="must hold at most"):
        xkv.build_kv_indices(source.new_empty(1, longest + 1), zero, lens)


def test_source_beyond_31_bits(need: Callable[[float], None]) -> None:
    """2,049 rows of 1M + 4: row * stride overflows int32 (vllm #57030); 8.6 GB."""
    need(9)
    rows, width = 2049 + 8, (1 << 20) + 4
    source = torch.empty(rows, width, dtype=torch.int32, device="cuda")
    for row in range(0, rows, 64):
        part = source[row : row + 64]
        part.copy_((torch.randint_like(part[:, :1], 0, 1 << 20) * 64) + torch.arange(width, device="cuda"))
    index = torch.tensor([0, rows - 1, 2048, 2049], device="cuda")
    lens = torch.tensor([5, width, 1 << 20, 70_000], device="cuda")
    for page_size in (1, 64):
        table = xkv.build_page_table(source, index, lens, page_size=page_size)
        for b in range(4):
            n = -(-int(lens[b]) // page_size)
            want = source[index[b], : int(lens[b]) : page_size] // page_size
            assert torch.equal(table[b, :n], want)
        csr = xkv.build_kv_indices(source, index, lens, page_size=page_size)
        assert csr.kv_indices[csr.kv_indptr[3]] == source[2049, 0] // page_size


def test_table_beyond_31_bits(need: Callable[[float], None]) -> None:
    """A page table of more than 2**31 elements and a source stride beyond 2**31 bytes."""
    need(20)
    source = torch.arange(1 << 14, dtype=torch.int32, device="cuda").expand(1, -1)
    batch, stride = 33, (1 << 26) + 1
    out = torch.full((batch, stride), -7, dtype=torch.int32, device="cuda")
    lens = torch.arange(batch, device="cuda") * 400 + 1
    xkv.build_page_table(source, lens * 0, lens, page_size=1, out=out[:, : 1 << 14])
    for b in (0, 31, 32):
        n = int(lens[b])
        assert torch.equal(out[b, :n], source[0, :n])
        assert bool((out[b, n:] == -7).all())
    wide = torch.empty(5, (1 << 29) + 64, dtype=torch.int32, device="cuda")
    wide[:, :4096] = torch.arange(5 * 4096, dtype=torch.int32, device="cuda").view(5, 4096)
    rows = torch.tensor([4, 0, 3], device="cuda")
    table = xkv.build_page_table(
        wide[:, :4096], rows, torch.full_like(rows, 4096), page_size=64, max_seq_len=4096
    )
    assert torch.equal(table, (wide[rows, :4096:64] // 64).to(torch.int32))


def test_row_strides_beyond_31_bits(need: Callable[[float], None]) -> None:
    """Of more than 2**31 elements, of the source (int64) and of the table."""
    need(35)
    stride = (1 << 31) + 5
    source = torch.empty(stride + 3000, dtype=I64, device="cuda").as_strided((2, 3000), (stride, 1))
    source.copy_(torch.arange(6000, device="cuda").view(2, 3000))
    out = torch.empty(2 * stride + 3000, dtype=I32, device="cuda").as_strided((3, 3000), (stride, 1))
    out.fill_(-7)
    rows, lens = torch.tensor([1, 0, 1], device="cuda"), torch.tensor([3000, 70, 2999], device="cuda")
    xkv.build_page_table(source, rows, lens, page_size=1, out=out)
    for b, (row, n) in enumerate(zip(rows.tolist(), lens.tolist(), strict=True)):
        assert torch.equal(out[b, :n].long(), source[row, :n])
        assert bool((out[b, n:] == -7).all())


def test_live_entries_beyond_31_bits(need: Callable[[float], None]) -> None:
    """A page table of 4.4 GB, every entry of which is live."""
    need(5)
    source = pages(1, M16)
    batch = 66
    rows = torch.zeros(batch, dtype=I32, device="cuda")
    table = xkv.build_page_table(source, rows, torch.full_like(rows, M16), page_size=1, max_seq_len=M16)
    assert table.numel() * table.element_size() > 1 << 32
    assert all(torch.equal(row, source[0]) for row in table)


def test_a_stream_that_passes_31_bits(need: Callable[[float], None]) -> None:
    """129 rows of 16M tokens: cut at the capacity, everywhere, and nothing wraps."""
    need(10)
    source, batch = pages(1, M16), 129
    rows = torch.zeros(batch, dtype=I32, device="cuda")
    out = xkv.KVIndices(
        torch.empty(batch + 1, dtype=I32, device="cuda"),
        torch.full((INT32_MAX,), -7, dtype=I32, device="cuda"),
        torch.empty(batch, dtype=I32, device="cuda"),
    )
    status = xkv.Status("cuda")
    xkv.build_kv_indices(source, rows, torch.full_like(rows, M16), out=out, status=status)
    assert out.kv_indptr.tolist() == [min(b * M16, CAPACITY_MAX) for b in range(batch + 1)]
    for b in range(batch - 2):
        assert torch.equal(out.kv_indices[b * M16 : (b + 1) * M16], source[0]), b
    rest = CAPACITY_MAX - (batch - 2) * M16
    assert torch.equal(out.kv_indices[(batch - 2) * M16 : CAPACITY_MAX], source[0, :rest])
    assert bool((out.kv_indices[CAPACITY_MAX:] == -7).all())
    assert out.kv_last_page_len.tolist() == [1] * (batch - 1) + [0]
    assert status.read() == xkv.Violation(batch - 2, Reason.TRUNCATED)


def test_a_map_of_more_entries_than_31_bits_count(need: Callable[[float], None]) -> None:
    need(9)
    size = (1 << 31) + 100
    token_map = torch.empty(size, dtype=I32, device="cuda")
    ids = torch.tensor([size - 1, 1 << 31, (1 << 31) - 1, 99, size, 0], device="cuda")
    token_map[ids[ids < size]] = torch.arange(5, dtype=I32, device="cuda") + 1000
    status = xkv.Status("cuda")
    zero = torch.zeros(1, dtype=I64, device="cuda")
    table = xkv.build_page_table(ids[None], zero, zero + 6, page_size=1, token_map=token_map, status=status)
    assert table[0].tolist() == [1000, 1001, 1002, 1003, -1, 1004]
    assert status.read() == xkv.Violation(0, Reason.BAD_MAP)


def test_prefix_sums_that_pass_31_bits(need: Callable[[float], None]) -> None:
    """65,536 rows of 16M tokens: a page table of 4.3 GB, whose lengths' sum stops at 2**31 - 1."""
    need(6)
    source, batch = pages(1, M16), 1 << 16
    name = "aiter_unified" if torch.version.hip else "flash_attention"
    page_size = 128 if torch.version.hip else 1024
    longest = M16 // (1024 // page_size)
    builder = xkv.MetadataBuilder(
        name, source, max_batch_size=batch, max_context_len=longest, page_size=page_size
    )
    rows = torch.zeros(batch, dtype=I32, device="cuda")
    meta = builder.build(rows, torch.full_like(rows, longest))
    sums = (torch.arange(batch + 1, device="cuda") * longest).clamp(max=INT32_MAX)
    assert torch.equal(meta.cu_seqlens_k.long(), sums)
    assert bool((meta.cache_seqlens == longest).all())
    want = source[0, :longest:page_size] // page_size
    assert bool((meta.page_table == want).all())
    assert builder.status.read() == xkv.Violation(INT32_MAX // longest, Reason.OVERFLOW)
