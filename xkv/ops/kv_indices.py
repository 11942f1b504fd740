"""`build_kv_indices`: CSR indices, their prefix sums and the last page lengths."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import arguments, torch_library
from ..launch import op_calls
from ..params import CSR, INT32_MAX, Build, View
from ..shard import Shard
from ..status import Status
from . import outputs


class KVIndices(NamedTuple):
    """CSR indices: what `build_kv_indices` returns, and takes as ``out``.

    Attributes:
        kv_indptr: ``[batch + 1]`` int32, entries: row b is ``kv_indices[kv_indptr[b] : kv_indptr[b + 1]]``.
        kv_indices: ``[capacity]`` int32 or int64, page ids (token slots at page size 1); the first
            ``kv_indptr[-1]`` are live.
        kv_last_page_len: ``[batch]`` int32, tokens in each row's last page; for an empty row 0 or
            ``min_last_page_len``.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> indices = xkv.KVIndices(
        ...     kv_indptr=torch.zeros(3, dtype=torch.int32),
        ...     kv_indices=torch.zeros(4, dtype=torch.int32),
        ...     kv_last_page_len=torch.zeros(2, dtype=torch.int32),
        ... )
        >>> rows, lens = torch.tensor([1, 0]), torch.tensor([7, 3])
        >>> xkv.build_kv_indices(req_to_token, rows, lens, page_size=4, out=indices) is indices
        True
        >>> indices.kv_indptr, indices.kv_last_page_len
        (tensor([0, 2, 3], dtype=torch.int32), tensor([3, 3], dtype=torch.int32))
    """

    kv_indptr: Tensor
    kv_indices: Tensor
    kv_last_page_len: Tensor


def build_kv_indices(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    *,
    page_size: int = 1,
    source_page_size: int = 1,
    out: KVIndices | None = None,
    max_tokens: int | None = None,
    seq_lens_delta: int | Tensor = 0,
    kv_start: Tensor | None = None,
    token_map: Tensor | None = None,
    page_map: Tensor | None = None,
    map_page_size: int | None = None,
    missing_id: int | None = None,
    pad_value: int | None = None,
    pad_to_multiple_of: int | None = None,
    kv_start_offset: Tensor | None = None,
    min_last_page_len: int = 0,
    shard: Shard | None = None,
    dtype: torch.dtype = torch.int32,
    status: Status | None = None,
) -> KVIndices:
    """Builds CSR indices: page ids, their prefix sums and the last page lengths, in one launch.

    The rows are those of `build_page_table`, concatenated in ``kv_indices``. At page size 1 row b begins at
    token ``kv_start[b]``. Entries beyond the capacity of ``kv_indices`` are cut, from ``kv_indptr`` and
    ``kv_last_page_len`` too, and reported.

    With ``out`` it makes one launch, does not sync or allocate, and is safe in a CUDA or HIP graph. Without
    ``out`` it allocates, and syncs unless ``max_tokens`` is given. CPU tensors take the torch reference.
    Follows SGLang's create_flashinfer_kv_indices_triton and the torch ops around it.

    Args:
        req_to_token: as in `build_page_table`.
        req_pool_indices: as in `build_page_table`.
        seq_lens: as in `build_page_table`.
        page_size: tokens per entry of ``kv_indices``, a power of two from 1 to 1024.
        source_page_size: as in `build_page_table`.
        out: the outputs: ``kv_indptr`` ``[>= batch + 1]`` int32, ``kv_indices`` ``[capacity]``
            int32 or int64, ``kv_last_page_len`` ``[>= batch]`` int32. None: allocated.
        max_tokens: tokens, host bound of the sum of all rows; ``kv_indices`` must hold that many, partly
            filled pages not counted.
        seq_lens_delta: as in `build_page_table`.
        kv_start: as in `build_page_table`.
        token_map: as in `build_page_table`.
        page_map: as in `build_page_table`.
        map_page_size: as in `build_page_table`.
        missing_id: as in `build_page_table`.
        pad_value: int32, written past the live entries. None: those entries are left unwritten.
        pad_to_multiple_of: entries; padding ends at the next multiple of it. None: at the capacity.
        kv_start_offset: as in `build_page_table`.
        min_last_page_len: tokens, 0 to ``page_size``: ``kv_last_page_len`` is at least this. FlashInfer
            needs 1, for empty and padded rows too.
        shard: as in `build_page_table`. ``kv_indptr`` and ``kv_last_page_len`` are the rank's own too;
            ``max_tokens`` is that of the whole rows, of which ``kv_indices`` must hold one rank's part.
        dtype: int32 or int64, of a ``kv_indices`` that is allocated.
        status: where cut rows are reported.

    Returns:
        ``out``, or new `KVIndices`; with ``max_tokens`` its ``kv_indices`` may be longer than the live
        entries.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: a rank, shape, stride, device, range or overlap that is not allowed.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> rows, lens = torch.tensor([1, 0]), torch.tensor([7, 3])
        >>> indices = xkv.build_kv_indices(req_to_token, rows, lens, page_size=4)
        >>> indices.kv_indptr
        tensor([0, 2, 3], dtype=torch.int32)
        >>> indices.kv_indices
        tensor([4, 0, 2], dtype=torch.int32)
        >>> indices.kv_last_page_len
        tensor([3, 3], dtype=torch.int32)
    """
    indptr, ids, last = out if isinstance(out, KVIndices) else (None, None, None)
    deltas, delta = arguments.tensor_and_int(seq_lens_delta)
    required_only = (
        deltas is None and kv_start is None and kv_start_offset is None and token_map is None
        and page_map is None and status is None
    )  # fmt: skip
    inputs: tuple[Any, ...] = (req_to_token, req_pool_indices, seq_lens, ids, indptr, last)
    if not required_only:
        inputs = (
            *inputs, deltas, None, kv_start, kv_start_offset, token_map, page_map,
            getattr(status, "word", status),
        )  # fmt: skip
    signature = op_calls.lookup(
        inputs, required_only, CSR, page_size, source_page_size, pad_value, shard, pad_to_multiple_of,
        map_page_size, missing_id, min_last_page_len,
    )  # fmt: skip
    if out is not None and signature.launch(inputs, delta, max_tokens):
        return out
    build = arguments.checked_build(
        req_to_token, req_pool_indices, seq_lens, CSR, page_size, source_page_size,
        seq_lens_delta, kv_start, token_map, page_map, map_page_size, missing_id, pad_value,
        pad_to_multiple_of, shard, status,
    )  # fmt: skip
    if max_tokens is not None:
        arguments.integer("max_tokens", max_tokens, 0, INT32_MAX)
    build.min_last_page_len = arguments.integer("min_last_page_len", min_last_page_len, 0, build.page_size)
    if out is None:
        out = KVIndices(*outputs.new_csr(build, kv_start, max_tokens, dtype))
    else:
        _check_out(build, out, outputs.inputs_of(build, kv_start, token_map, page_map))
        size = 1 if build.shard is None else build.shard.size
        if max_tokens is not None and out.kv_indices.shape[0] * page_size < max_tokens // size:
            of_rank = "" if size == 1 else f" over {size} ranks"
            raise ValueError(
                f"out.kv_indices must be long enough for max_tokens={max_tokens}{of_rank}, got"
                f" {out.kv_indices.shape[0]} entries of {page_size} token(s)"
            )
    outputs.check_start_offset(build, kv_start_offset, [kv_start, token_map, page_map, *out])
    build.views = (
        View(
            out.kv_indices, kv_start, None, token_map, page_map, kv_indptr=out.kv_indptr,
            kv_last_page_len=out.kv_last_page_len, kv_start_offset=kv_start_offset,
        ),
    )  # fmt: skip
    signature.run(build, inputs)
    return out


def _check_out(build: Build, out: KVIndices, reads: list[Tensor]) -> None:
    if not isinstance(out, KVIndices):
        raise TypeError(f"out must be an xkv.KVIndices, got {type(out).__name__}")
    for name, x, size in (
        ("out.kv_indptr", out[0], build.batch + 1),
        ("out.kv_indices", out[1], 0),
        ("out.kv_last_page_len", out[2], build.batch),
    ):
        arguments.output(name, x, 1, size, reads)
        if x.dtype is not torch.int32 and x is not out[1]:
            raise TypeError(f"{name} must be int32, got {x.dtype}")
        reads = [*reads, x]


torch_library.register(CSR, build_kv_indices, KVIndices)
