"""Triton kernels for what no op of xkv says: vLLM's groups of block tables, known by their addresses alone.

Each is one launch for all groups, in the shapes of vLLM's own: grid (rows, parts of a row, groups); the last
does what the other two do. What
bounds a row is the row's width; nothing is specialised on a number, so that nothing compiles while serving.
"""

import triton
import triton.language as tl

INT32_MAX = tl.constexpr(2**31 - 1)


@triton.jit
def _table(ptrs, group):
    """The group's table: an int32 tensor's address, as vLLM keeps it in a tensor of uint64."""
    return tl.cast(tl.load(ptrs + group), tl.pointer_type(tl.int32))


@triton.jit(do_not_specialize=list(range(10)))
def gather_block_tables(
    rows_ptr, src_ptrs, dst_ptrs, widths_ptr, counts_ptr, computed_ptr, reach_ptr, block_sizes_ptr,
    num_rows: "i64", batch: "i64", WINDOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row b of each group's table: the live blocks of row ``rows[b]``, zeros where the batch has none.

    ``num_rows`` rows of ``widths[group]`` blocks in every table; ``counts[group, row]`` of them live.
    """
    _gather_row(
        tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2), rows_ptr, src_ptrs,
        dst_ptrs, widths_ptr, counts_ptr, computed_ptr, reach_ptr, block_sizes_ptr, num_rows, batch,
        WINDOW, BLOCK,
    )  # fmt: skip


@triton.jit
def _gather_row(
    b, part, parts, group, rows_ptr, src_ptrs, dst_ptrs, widths_ptr, counts_ptr, computed_ptr, reach_ptr,
    block_sizes_ptr, num_rows, batch, WINDOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of a row's ``parts``. The counts lie in the host's memory: each read of one crosses PCIe."""
    width = tl.load(widths_ptr + group).to(tl.int64)
    row = tl.load(rows_ptr + b, mask=b < batch, other=-1).to(tl.int64)
    real = (row >= 0) & (row < num_rows)
    row = tl.where(real, row, 0)
    start = part.to(tl.int64) * BLOCK
    # a part that begins past the width has nothing to do, whatever the count is
    count = tl.load(counts_ptr + group * num_rows + row, mask=real & (start < width), other=0).to(tl.int64)
    src = _table(src_ptrs, group) + row * width
    dst = _table(dst_ptrs, group) + b.to(tl.int64) * width
    column = start + tl.arange(0, BLOCK)
    # before the count is there: a row of the source has its whole width
    ids = tl.load(src + column, mask=real & (column < width), other=0)
    end = tl.where(real, tl.minimum(count, width), width)
    first = end * 0
    if WINDOW:
        reach = tl.load(reach_ptr + group).to(tl.int64)
        below = tl.load(computed_ptr + row, mask=real, other=0).to(tl.int64) - reach
        block_size = tl.load(block_sizes_ptr + group).to(tl.int64)
        first = tl.where(reach > 0, tl.maximum(below, 0) // block_size, 0)
    tl.store(dst + column, tl.where(column >= first, ids, 0), mask=column < end)
    for at in range(start + parts * BLOCK, end, parts * BLOCK):
        column = at + tl.arange(0, BLOCK)
        ids = tl.load(src + column, mask=real & (column >= first) & (column < end), other=0)
        tl.store(dst + column, ids, mask=column < end)


@triton.jit(do_not_specialize=list(range(6)))
def copy_page_indices(
    out_ptr, table_ptr, sums_ptr, stride: "i64", width: "i64", capacity: "i64", BLOCK: tl.constexpr
):
    """The first ``sums[b + 1] - sums[b]`` blocks of row b, from ``out[sums[b]]`` on; grid (rows, parts).

    A row's first entries are read before its sums have come. None is longer than its width, and nothing is
    written outside of the ``capacity`` entries.
    """
    b, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start = part.to(tl.int64) * BLOCK
    src = table_ptr + b.to(tl.int64) * stride
    column = start + tl.arange(0, BLOCK)
    ids = tl.load(src + column, mask=(part == 0) & (column < width), other=0)
    row_start = tl.load(sums_ptr + b).to(tl.int64)
    begin = _inside(row_start, capacity)
    end = _inside(tl.load(sums_ptr + b + 1).to(tl.int64), capacity)
    count = tl.where(row_start < 0, 0, tl.minimum(end - begin, width))
    tl.store(out_ptr + begin + column, ids, mask=(part == 0) & (column < count))
    if part == 0:
        start += parts * BLOCK
    for at in range(start, count, parts * BLOCK):
        column = at + tl.arange(0, BLOCK)
        ids = tl.load(src + column, mask=column < count, other=0)
        tl.store(out_ptr + begin + column, ids, mask=column < count)


@triton.jit(do_not_specialize=list(range(17)))
def slot_mappings(
    out_ptr, rows_ptr, starts_ptr, positions_ptr, tables_ptr, widths_ptr, block_sizes_ptr, enabled_ptr,
    sharded_ptr, width: "i64", block_size: "i32", out_stride: "i64", pad_from: "i64", capacity: "i64",
    cp_size: "i32", cp_rank: "i32", interleave: "i32",
    GROUPS: tl.constexpr, CP: tl.constexpr, PAD_ID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The slot of every token, PAD_ID for one without; the last row of programs pads what is left.

    GROUPS: tables, widths and block sizes are each group's; else of one table, row b of which is request b's.
    CP: only every ``cp_size``-th stretch of ``interleave`` tokens lies on this rank; vLLM has blocks of whole
    stretches.
    """
    b, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts = tl.num_programs(1)
    out = out_ptr + group * out_stride
    if b == tl.num_programs(0) - 1:
        if GROUPS:
            pad_from = tl.load(starts_ptr + b).to(tl.int64)
        _pad(part, parts, out, pad_from, capacity, PAD_ID, BLOCK)
    else:
        _slots_row(
            b, part, parts, group, out, rows_ptr, starts_ptr, positions_ptr, tables_ptr, widths_ptr,
            block_sizes_ptr, enabled_ptr, sharded_ptr, width, block_size, capacity, cp_size, cp_rank,
            interleave, GROUPS, CP, PAD_ID, BLOCK,
        )  # fmt: skip


@triton.jit
def _inside(start, capacity):
    """A start as the engine gives it, clipped to the buffer, so that a sum with it cannot wrap."""
    return tl.minimum(tl.maximum(start, 0), capacity)


@triton.jit
def _pad(part, parts, out, pad_from, capacity, PAD_ID: tl.constexpr, BLOCK: tl.constexpr):
    first = _inside(pad_from, capacity)
    for at in range(first + part * BLOCK, capacity, parts * BLOCK):
        token = at + tl.arange(0, BLOCK)
        tl.store(out + token, tl.full([BLOCK], PAD_ID, tl.int64), mask=token < capacity)


@triton.jit
def _slots_row(
    b, part, parts, group, out, rows_ptr, starts_ptr, positions_ptr, tables_ptr, widths_ptr, block_sizes_ptr,
    enabled_ptr, sharded_ptr, width, block_size, capacity, cp_size, cp_rank, interleave,
    GROUPS: tl.constexpr, CP: tl.constexpr, PAD_ID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of a request's tokens."""
    row = b.to(tl.int64)
    real = row >= 0
    sharded = real
    if GROUPS:
        row = tl.load(rows_ptr + b).to(tl.int64)
        # one that owns no blocks, or a group that maps no tokens
        real = (row >= 0) & (tl.load(enabled_ptr + group) != 0)
        width = tl.load(widths_ptr + group).to(tl.int64)
        block_size = tl.load(block_sizes_ptr + group).to(tl.int32)
        table = _table(tables_ptr, group)
        if CP:
            sharded = tl.load(sharded_ptr + group) != 0
    else:
        table = tables_ptr
    table += tl.where(real, row, 0) * width
    first = _inside(tl.load(starts_ptr + b).to(tl.int64), capacity)
    end = tl.minimum(tl.load(starts_ptr + b + 1).to(tl.int64), capacity)
    for at in range(first + part * BLOCK, end, parts * BLOCK):
        token = at + tl.arange(0, BLOCK)
        wide = tl.load(positions_ptr + token, mask=token < end, other=0).to(tl.int64)
        known = real & (wide >= 0) & (wide <= INT32_MAX)
        position = wide.to(tl.int32)  # 64-bit divisions are slow
        column = position // block_size
        offset = position - column * block_size
        if CP:
            column = tl.where(sharded, position // (block_size * cp_size), column)
            inside = position - column * (block_size * cp_size)
            local = inside // (interleave * cp_size) * interleave + inside % interleave
            offset = tl.where(sharded, local, offset)
            known &= (inside // interleave % cp_size == cp_rank) | (sharded == 0)
        # what vLLM lacks: past its width a row is another request's (vllm #53982)
        known &= column.to(tl.int64) < width
        number = tl.load(table + column, mask=known & (token < end), other=0).to(tl.int64)
        slot = tl.where(known, number * block_size + offset, PAD_ID)
        tl.store(out + token, slot, mask=token < end)


@triton.jit(do_not_specialize=list(range(23)))
def gather_and_slots(
    rows_ptr, src_ptrs, dst_ptrs, widths_ptr, counts_ptr, computed_ptr, reach_ptr, block_sizes_ptr,
    out_ptr, starts_ptr, positions_ptr, enabled_ptr, sharded_ptr,
    num_rows: "i64", batch: "i64", gathered: "i32", row_parts: "i32", token_parts: "i32",
    out_stride: "i64", capacity: "i64", cp_size: "i32", cp_rank: "i32", interleave: "i32",
    WINDOW: tl.constexpr, CP: tl.constexpr, PAD_ID: tl.constexpr, COPIED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both of one batch, in one launch: the first ``gathered`` programs copy rows, the others make slots.

    Slots are of the tables that are copied from, so that neither waits for the other.
    """
    at, group = tl.program_id(0), tl.program_id(1)
    if at < gathered:
        _gather_row(
            at // row_parts, at % row_parts, row_parts, group, rows_ptr, src_ptrs, dst_ptrs, widths_ptr,
            counts_ptr, computed_ptr, reach_ptr, block_sizes_ptr, num_rows, batch, WINDOW, COPIED,
        )  # fmt: skip
    else:
        b, part = (at - gathered) // token_parts, (at - gathered) % token_parts
        out = out_ptr + group * out_stride
        if b == batch:
            _pad(part, token_parts, out, tl.load(starts_ptr + b).to(tl.int64), capacity, PAD_ID, BLOCK)
        else:
            _slots_row(
                b, part, token_parts, group, out, rows_ptr, starts_ptr, positions_ptr, src_ptrs, widths_ptr,
                block_sizes_ptr, enabled_ptr, sharded_ptr, num_rows, cp_size, capacity, cp_size, cp_rank,
                interleave, True, CP, PAD_ID, BLOCK,
            )  # fmt: skip
