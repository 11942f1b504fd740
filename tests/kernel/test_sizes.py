"""Addresses beyond 31 and 32 bits, on the CPU: tensors over memory that is never touched cost nothing."""

from __future__ import annotations

import mmap

import pytest
import torch
from conftest import INTERPRETED
from hypothesis import given, settings
from hypothesis import strategies as st

import xkv
from xkv.launch import launch
from xkv.params import CAPACITY_MAX, CSR, INT32_MAX, SLOTS, TABLE, Build, View
from xkv.platforms import tuning
from xkv.status import Reason

BYTES = 1 << 37
I32, I64 = torch.int32, torch.int64
FEW = settings(max_examples=8 if INTERPRETED else 25)


def untouched(size: int) -> mmap.mmap:
    """An address range of so many bytes, all zeros, of which only what is written takes memory."""
    noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    except (OSError, ValueError) as error:
        pytest.skip(f"no address range of {size} bytes here: {error}")


@pytest.fixture(scope="module")
def memories() -> list[mmap.mmap]:
    """Two ranges of 128 GiB."""
    return [untouched(BYTES), untouched(BYTES)]


def strides(rows: int, width: int, itemsize: int) -> st.SearchStrategy[int]:
    """Row strides in elements, most of them around powers of two, up to what the memory holds."""
    most = BYTES // itemsize // rows - width
    around = st.tuples(st.sampled_from([28, 29, 30, 31, 32, 33]), st.integers(-3, 3))
    return around.map(lambda x: min((1 << x[0]) + x[1], most)) | st.integers(width, most)


@FEW
@given(data=st.data(), source_dtype=st.sampled_from([I32, I64]), dtype=st.sampled_from([I32, I64]))
@pytest.mark.parametrize("page_size", [1, 16])
def test_row_strides(
    page_size: int, memories: list[mmap.mmap], data: st.DataObject, source_dtype: torch.dtype,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Of the source and of a table: rows that lie up to 2**37 bytes apart, and words beside them."""
    rows, width = 4, 40
    source_stride = data.draw(strides(rows, width, source_dtype.itemsize))
    stride = data.draw(strides(rows, width + 2, dtype.itemsize))
    source = torch.frombuffer(memories[0], dtype=source_dtype).as_strided((rows, width), (source_stride, 1))
    source.copy_(torch.arange(rows * width).view(rows, width) * page_size)
    whole = torch.frombuffer(memories[1], dtype=dtype).as_strided((rows, width + 2), (stride, 1))
    whole.fill_(-7)
    index = torch.tensor(data.draw(st.permutations(range(rows))))
    lens = torch.tensor([width, 1, width - 1, 17])
    status = xkv.Status("cpu")
    xkv.build_page_table(source, index, lens, page_size=page_size, out=whole[:, 1:-1], status=status)
    for b in range(rows):
        n = -(-int(lens[b]) // page_size)
        want = [-7] * (width + 2)
        want[1 : 1 + n] = (source[index[b], : lens[b] : page_size] // page_size).tolist()
        assert whole[b].tolist() == want
    assert status.read() is None


@FEW
@given(data=st.data(), dtype=st.sampled_from([I32, I64]))
@pytest.mark.parametrize("op", ["build_kv_indices", "build_slot_mapping"])
def test_streams_of_far_rows(
    op: str, memories: list[mmap.mmap], data: st.DataObject, dtype: torch.dtype
) -> None:  # fmt: skip
    rows, width = 4, 30
    source = torch.frombuffer(memories[0], dtype=dtype)
    source = source.as_strided((rows, width), (data.draw(strides(rows, width, dtype.itemsize)), 1))
    source.copy_(torch.arange(rows * width).view(rows, width))
    index, lens = torch.tensor([3, 0, 2]), torch.tensor([width, 3, 9])
    want = torch.cat([source[r, :n] for r, n in zip(index, lens, strict=True)])
    if op == "build_kv_indices":
        assert torch.equal(xkv.build_kv_indices(source, index, lens).kv_indices.to(dtype), want)
    else:
        assert torch.equal(xkv.build_slot_mapping(source, index, lens, lens, dtype=dtype), want)


@FEW
@given(
    past=st.lists(st.integers(-2, 3), min_size=1, max_size=12),
    size=st.sampled_from([(1 << 31) - 1, 1 << 31, (1 << 31) + 9, (1 << 32) + 1, (1 << 34) - 5]),
    unit=st.sampled_from([1, 16]),
)
@pytest.mark.parametrize("kind", ["token_map", "page_map"])
def test_maps_of_more_entries_than_int32_counts(
    kind: str, memories: list[mmap.mmap], past: list[int], size: int, unit: int
) -> None:
    """Ids on either side of the map's end, and in its middle, where 32 bits would wrap."""
    entries = torch.frombuffer(memories[0], dtype=I32)[:size]
    page = 16 if kind == "page_map" else 1
    ids = [size - 1 + p for p in past] + [size // 2, 1]
    for n, i in enumerate(ids):
        if i < size:
            entries[i] = 100 + n
    source = torch.tensor([[i * page // unit for i in ids]])
    first = source[0] * unit  # the token that an entry shows
    wanted = []
    for token in first.tolist():
        i = token // page
        wanted.append((int(entries[i]) * page + token % page) // unit if i < size else -1)
    zero, length = torch.tensor([0]), torch.tensor([len(ids) * unit])
    status = xkv.Status("cpu")
    table = xkv.build_page_table(
        source, zero, length, page_size=unit, source_page_size=unit, dtype=I64, status=status,
        map_page_size=page, **{kind: entries},
    )  # fmt: skip
    assert table[0].tolist() == wanted
    assert status.read() == (xkv.Violation(0, Reason.BAD_MAP) if -1 in wanted else None)


@pytest.mark.kernel
def test_lengths_whose_sum_passes_int32(device: str) -> None:
    """Nine rows of 2**28 - 1 tokens: the prefix sums stop at 2**31 - 1, and the row is named."""
    num_page = 1 << (15 if device == "cpu" else 10)  # the interpreter takes a millisecond per tile
    row = tuning.Tuning("strided_far", None, num_page, 4, 2, 2, 2, num_page, 1, 2, 16, False, "test")
    lens = torch.full((9,), (1 << 28) - 1, device=device)
    if device == "cpu":
        source = torch.frombuffer(untouched(1 << 30), dtype=I32)[None, 1:]
    else:
        source = torch.zeros(1, (1 << 28) - 1, dtype=I32, device=device)
    cu = torch.zeros(10, dtype=I32, device=device)
    build = Build(source, lens * 0, lens, TABLE, 1024, 1, 1024, ())
    build.status = torch.full((1,), (1 << 63) - 1, device=device)
    out = torch.full((9, 1 << 18), -7, dtype=I32, device=device)
    build.views = (View(out, cu_seqlens_k=cu),)
    launch.launch(build, row, xkv.platform(device))
    sums = [min(n * ((1 << 28) - 1), INT32_MAX) for n in range(10)]
    assert cu.tolist() == sums
    assert build.status.item() == 8 * 256 + Reason.OVERFLOW
    assert not out.any()


@given(width=st.integers(0, 1 << 40), rows=st.integers(1, 1 << 16))
@pytest.mark.parametrize("form", [TABLE, CSR, SLOTS])
def test_capacities_fit_a_block_more(form: int, width: int, rows: int) -> None:
    """No index within an output, and none of a tile that begins in it, passes int32."""
    out = torch.empty(1, dtype=I32).expand(*((rows, width) if form == TABLE else (width,)))
    capacity = View(out).capacity(form)
    assert capacity == min(width, CAPACITY_MAX)
    assert capacity + (1 << 15) <= INT32_MAX
