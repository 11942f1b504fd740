"""The Triton kernel of query tokens' rows: the request, position, length and page-table row of each.

A program has a tile of query tokens, of any requests, so that a decode step takes few programs and a long
prefill many. Of a page table it copies every so many columns of those tokens' rows; the programs of the first
ones write what is one value per token, and check the requests, each its part of them: a request that is wrong
may have no token that would lead to it.
"""

import triton
import triton.language as tl

from .args import BAD_LENGTH, BAD_QUERY, INT32_MAX, LENGTH_MAX, TRUNCATED
from .expanded_args import ARGUMENTS, Expanded
from .integers import clip
from .reports import report_first
from .rows import load_int
from .shards import local_length


@triton.jit
def _load_range(b, mask, q):
    """Loads where the query tokens of each request begin and end."""
    begin = load_int(q.starts_ptr, q.starts_stride, b, mask)
    return begin, load_int(q.starts_ptr, q.starts_stride, b + 1, mask)


@triton.jit
def _find_requests(t, q):
    """Returns the request of each query token, where that ends, and which tokens are of one.

    In a batch of decodes token t is request t's, which needs no search. The sums are not trusted: a request
    that is found counts only if it has the token.
    """
    mask = (t < q.num_tokens) & (q.batch > 0)
    total = load_int(q.starts_ptr, q.starts_stride, q.batch, q.batch >= 0)
    b = tl.minimum(t, q.batch - 1)
    begin, end = _load_range(b, mask, q)
    mask = mask & (t < total)  # padding is not searched for
    is_found = (begin <= t) & (t < end)
    if tl.max((mask & ~is_found).to(tl.int32), 0) > 0:
        # binary search for the last request that begins at the token or before it
        first = t * 0
        size = q.batch
        while size > 1:
            half = size // 2
            at = load_int(q.starts_ptr, q.starts_stride, first + half, mask)
            first = tl.where(at <= t, first + half, first)
            size -= half
        b = tl.where(is_found, b, first)
        begin, end = _load_range(b, mask, q)
    return b, end, mask & (begin >= 0) & (begin <= t) & (t < end)


@triton.jit
def _write_values(t, b, end, live, q, C: tl.constexpr):
    """Writes what is one value for each query token."""
    mask = t < q.num_tokens
    if q.req_out_ptr is not None:
        tl.store(q.req_out_ptr + t, tl.where(live, b, q.pad_req), mask=mask)
    if q.position_out_ptr is not None or q.lens_out_ptr is not None:
        length = clip(load_int(q.lens_ptr, q.lens_stride, b, live), 0, LENGTH_MAX - 1)
        position = tl.where(live, length - (end - t), -1)
        if q.position_out_ptr is not None:
            value = tl.maximum(position, 0).to(q.position_out_ptr.dtype.element_ty)
            tl.store(q.position_out_ptr + t, value, mask=mask)
        if q.lens_out_ptr is not None:
            if C.CAUSAL:
                length = tl.maximum(position + 1, 0)
            tl.store(q.lens_out_ptr + t, local_length(tl.where(live, length, 0), q, C), mask=mask)


@triton.jit
def _copy_rows(t, b, live, q, C: tl.constexpr):
    """Copies this program's columns of each query token's row."""
    src = q.table_ptr + b.to(tl.int64) * q.table_stride
    out = q.table_out_ptr + t.to(tl.int64) * q.table_out_stride
    width = q.width
    if C.VEC_16B:
        src, out = tl.multiple_of(src, 16), tl.multiple_of(out, 16)
        width = width // 4 * 4  # no other value, but one that each lane is seen to be all on one side of
    for at in range(tl.program_id(1) * C.COLUMNS, width, tl.num_programs(1) * C.COLUMNS):
        j = (at + tl.arange(0, C.COLUMNS))[None, :]
        entry = tl.load(src[:, None] + j, mask=live[:, None] & (j < width), other=0)
        tl.store(out[:, None] + j, entry, mask=(t < q.num_tokens)[:, None] & (j < width))


@triton.jit
def _check_requests(pid, num_programs, q, C: tl.constexpr):
    """Reports the first wrong one of every ``num_programs``-th block of requests, from block ``pid`` on."""
    first_error = tl.arange(0, C.BATCH_BLOCK) * 0 + INT32_MAX
    for at in range(pid * C.BATCH_BLOCK, q.batch, num_programs * C.BATCH_BLOCK):
        b = at + tl.arange(0, C.BATCH_BLOCK)
        mask = b < q.batch
        begin, end = _load_range(b, mask, q)
        given = load_int(q.lens_ptr, q.lens_stride, b, mask)
        length = clip(given, 0, LENGTH_MAX - 1)
        is_outside = (end - begin > length) & (length > 0)  # a row of length 0 is padding
        is_bad = (begin < 0) | (end < begin) | is_outside
        reason = tl.where(is_bad, BAD_QUERY, tl.where(end > q.num_tokens, TRUNCATED, 0))
        reason = tl.where(given != length, BAD_LENGTH, reason)
        first_error = tl.minimum(first_error, tl.where(mask & (reason > 0), b * 256 + reason, INT32_MAX))
    report_first(q, first_error)


# As in entry.py, only the last argument is specialized.
@triton.jit(do_not_specialize=ARGUMENTS)
def xkv_expand(
    num_tokens: "i32", batch: "i32", starts_ptr, starts_stride: "i32", lens_ptr, lens_stride: "i32",
    pad_req: "i32", width: "i32", table_stride: "i64", table_out_stride: "i64",
    # without an annotation, as these may be None
    req_out_ptr, position_out_ptr, lens_out_ptr, table_ptr, table_out_ptr, shard_rank, status_ptr,
    C: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of query tokens; of a table parts of its columns). `xkv.expanded.Expansion` says more."""
    if C.USE_PDL:
        tl.extra.cuda.gdc_wait()  # as in entry.py
        tl.extra.cuda.gdc_launch_dependents()
    q = Expanded(
        num_tokens, batch, starts_ptr, starts_stride, lens_ptr, lens_stride, pad_req, width, table_stride,
        table_out_stride, req_out_ptr, position_out_ptr, lens_out_ptr, table_ptr, table_out_ptr, shard_rank,
        status_ptr,
    )  # fmt: skip
    pid = tl.program_id(0)
    t = pid * C.TOKENS + tl.arange(0, C.TOKENS)
    b, end, live = _find_requests(t, q)
    if tl.program_id(1) == 0:
        _write_values(t, b, end, live, q, C)
        if q.status_ptr is not None:
            _check_requests(pid, tl.num_programs(0), q, C)
    if q.table_ptr is not None:
        _copy_rows(t, b, live, q, C)
