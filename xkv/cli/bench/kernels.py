"""The benchmark's own Triton kernels: the least that a point takes, and a kernel before that signals early.

Those of a point and of an extension check nothing: lengths are int64 and exact, ids are not negative, all
tensors are contiguous but for the source. `ROUND` entries are moved at once: 4, in one 16-byte access, where
the table's width is a multiple of 4 and rows of the source begin at a multiple of 16 bytes; else 1.
"""

import triton
import triton.language as tl


@triton.jit
def table_tiles(
    src_ptr, src_stride, rows_ptr, lens_ptr, out_ptr, width,
    PAGE: tl.constexpr, TILE: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """A page table, one program for each tile of the longest row. Grid: (batch, tiles)."""
    b = tl.program_id(0)
    entries = tl.cdiv(tl.load(lens_ptr + b).to(tl.int32), PAGE * ROUND) * ROUND
    start = tl.multiple_of(tl.load(rows_ptr + b) * src_stride, ROUND)
    entry = tl.program_id(1) * TILE + tl.arange(0, TILE)
    ids = tl.load(src_ptr + start + entry * PAGE, mask=entry < entries)
    tl.store(out_ptr + b * width + entry, ids // PAGE, mask=entry < entries)


@triton.jit
def table_loop(
    src_ptr, src_stride, rows_ptr, lens_ptr, out_ptr, width,
    PAGE: tl.constexpr, TILE: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """A page table, a loop over a row's tiles. Grid: (batch, programs of a row, which take tiles in turn)."""
    b = tl.program_id(0)
    entries = tl.cdiv(tl.load(lens_ptr + b).to(tl.int32), PAGE * ROUND) * ROUND
    start = tl.multiple_of(tl.load(rows_ptr + b) * src_stride, ROUND)
    for first in range(tl.program_id(1) * TILE, entries, tl.num_programs(1) * TILE):
        entry = first + tl.arange(0, TILE)
        ids = tl.load(src_ptr + start + entry * PAGE, mask=entry < entries)
        tl.store(out_ptr + b * width + entry, ids // PAGE, mask=entry < entries)


@triton.jit
def csr_loop(
    src_ptr, src_stride, rows_ptr, lens_ptr, indptr_ptr, ids_ptr, last_ptr,
    PAGE: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """CSR indices, sums and last page lengths; a program sums what precedes its row. Grid: table_loop's."""
    b = tl.program_id(0)
    before = tl.zeros([CHUNK], tl.int32)
    for first in range(0, b, CHUNK):
        row = first + tl.arange(0, CHUNK)
        before += tl.cdiv(tl.load(lens_ptr + row, mask=row < b, other=0).to(tl.int32), PAGE)
    begin = tl.sum(before)
    length = tl.load(lens_ptr + b).to(tl.int32)
    entries = tl.cdiv(length, PAGE)
    if tl.program_id(1) == 0:
        if b == 0:
            tl.store(indptr_ptr, 0)
        tl.store(indptr_ptr + b + 1, begin + entries)
        tl.store(last_ptr + b, (length - 1) % PAGE + 1)
    start = tl.load(rows_ptr + b) * src_stride
    for first in range(tl.program_id(1) * TILE, entries, tl.num_programs(1) * TILE):
        entry = first + tl.arange(0, TILE)
        ids = tl.load(src_ptr + start + entry * PAGE, mask=entry < entries)
        tl.store(ids_ptr + begin + entry, ids // PAGE, mask=entry < entries)


@triton.jit
def extension(
    src_ptr, src_stride, rows_ptr, lens_ptr, record_ptr, table_ptr, table_stride, seqlens_ptr, cu_k_ptr,
    cu_q_ptr, batch, PAGE: tl.constexpr, ROWS: tl.constexpr, BATCH_BLOCK: tl.constexpr,
):  # fmt: skip
    """A token more in each request: its page, lengths, their sums; a word of each row is read and replaced.

    Grid: (programs of ROWS requests each, and one for the lengths).
    """
    pid = tl.program_id(0)
    if pid == 0:
        i = tl.arange(0, BATCH_BLOCK)
        lens = tl.load(lens_ptr + i, mask=i < batch, other=0).to(tl.int32)
        tl.store(seqlens_ptr + i, lens, mask=i < batch)
        tl.store(cu_k_ptr + i + 1, tl.cumsum(lens, 0), mask=i < batch)
        tl.store(cu_q_ptr + i + 1, i + 1, mask=i < batch)
        tl.store(cu_k_ptr + i, 0, mask=i == 0)
        tl.store(cu_q_ptr + i, 0, mask=i == 0)
    else:
        b = (pid - 1) * ROWS + tl.arange(0, ROWS)
        known = tl.load(record_ptr + b * 4, mask=b < batch, other=0)
        length = tl.load(lens_ptr + b, mask=b < batch, other=1).to(tl.int32)
        row = tl.load(rows_ptr + b, mask=b < batch, other=0)
        entry = (length - 1) // PAGE
        ids = tl.load(src_ptr + row * src_stride + entry * PAGE, mask=b < batch, other=0)
        tl.store(table_ptr + b * table_stride.to(tl.int64) + entry, ids // PAGE, mask=b < batch)
        tl.store(record_ptr + b * 4, tl.maximum(known, length), mask=b < batch)


@triton.jit(do_not_specialize=["value"])
def early_add(x_ptr, value: "i64", size, TILE: tl.constexpr, USE_PDL: tl.constexpr):
    """Adds in place, and lets the next kernel start at once. Grid: (tiles,)."""
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + at, mask=at < size)
    tl.store(x_ptr + at, x + value, mask=at < size)
