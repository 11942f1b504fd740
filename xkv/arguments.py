"""Checks arguments on the host, without reading device memory, and makes an op's `Build`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .params import CAPACITY_MAX, INT32_MAX, MAX_BATCH, ROW_MAX, SOURCE_PAGE_MAX, Build
from .shard import Shard, local_source
from .status import Status

MAX_PAGE_SIZE = 1024


def power_of_two(name: str, value: int) -> int:
    """Returns ``value``, a power of two from 1 to 1024."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not 1 <= value <= MAX_PAGE_SIZE or value & (value - 1):
        raise ValueError(f"{name} must be a power of two from 1 to {MAX_PAGE_SIZE}, got {value}")
    return as_int(value)


def integer(name: str, value: int, low: int, high: int) -> int:
    """Returns ``value``, an int in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return as_int(value)


def as_int(value: int) -> int:
    """Returns a plain int: Triton and its launcher take no subclass, such as an IntEnum."""
    return value if type(value) is int else int(value)


def tensor(name: str, value: Tensor, rank: int, like: Tensor | None = None) -> Tensor:
    """Returns ``value``, an int32 or int64 tensor of this rank, inner stride 1, on the device of ``like``."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        layout = "a nested tensor" if value.is_nested else value.layout
        raise TypeError(f"{name} must be a dense tensor, got {layout}")
    if not _has_memory(value):
        raise TypeError(
            f"{name} must have memory of its own, not be fake, batched or freed, got a {type(value).__name__}"
        )
    if value.dtype is not torch.int32 and value.dtype is not torch.int64:
        raise TypeError(f"{name} must be int32 or int64, got {value.dtype}")
    if value.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimension(s), got shape {tuple(value.shape)}")
    if value.stride(-1) != 1 and value.shape[-1] > 1:
        raise ValueError(f"{name} must have an inner stride of 1, got strides {value.stride()}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like req_to_token, got {value.device}")
    return value


def _has_memory(value: Tensor) -> bool:
    """Whether the tensor has memory, or no elements."""
    if (
        torch.compiler.is_dynamo_compiling() or value.is_meta
    ):  # checked when the graph runs; refused for its device
        return True
    try:
        # of the storage: a view of freed memory has an address, its offset
        return bool(value.untyped_storage().data_ptr()) or value.numel() == 0
    except (NotImplementedError, RuntimeError):  # torch offers no other way to ask
        return False


def per_row(name: str, value: Tensor, like: Tensor, rows: int) -> Tensor:
    """Returns ``value``, a `tensor` ``[rows]``."""
    tensor(name, value, 1, like)
    if value.shape[0] != rows:
        raise ValueError(
            f"{name} must have {rows} entries, one per request as seq_lens, got {value.shape[0]}"
        )
    return value


def given_positions(positions: Any, query_start_loc: Any, like: Tensor, rows: int) -> None:
    """Checks ``positions`` ``[n]`` and ``query_start_loc`` ``[rows + 1]``, which come together."""
    tensor("positions", positions, 1, like)
    if positions.shape[0] > CAPACITY_MAX:
        raise ValueError(f"positions must have at most {CAPACITY_MAX} entries, got {positions.shape[0]}")
    if query_start_loc is None:
        raise TypeError("query_start_loc must be a torch.Tensor with positions, got None")
    tensor("query_start_loc", query_start_loc, 1, like)
    if query_start_loc.shape[0] != rows + 1:
        raise ValueError(
            f"query_start_loc must have {rows + 1} entries, one more than seq_lens, got"
            f" {query_start_loc.shape[0]}"
        )


def int_or_per_row(
    name: str, value: int | Tensor, like: Tensor, rows: int, low: int, high: int
) -> int | Tensor:
    """Returns ``value``, an int in [low, high] for all rows or a `per_row` tensor."""
    if isinstance(value, torch.Tensor):
        return per_row(name, value, like, rows)
    return integer(name, value, low, high)


def status_word(word: Tensor, like: Tensor) -> Tensor:
    """Returns ``word``, one int64 on the device of ``like``. A user may have assigned any tensor."""
    tensor("status.word", word, 1)
    if word.shape[0] != 1 or str(word.dtype) != "torch.int64":
        raise ValueError(f"status.word must be one int64, got {word.dtype} of shape {tuple(word.shape)}")
    return tensor("status", word, 1, like)


def source(req_to_token: Tensor, source_page_size: int) -> int:
    """Checks the source: rank 2, on a supported device, rows not too long. Returns ``source_page_size``."""
    tensor("req_to_token", req_to_token, 2)
    # checked first: meta tensors share one data pointer, other devices fail later with an error of torch's
    if req_to_token.device.type not in ("cpu", "cuda"):
        raise ValueError(
            "req_to_token must be on a GPU (torch device 'cuda', ROCm's too) or on the CPU, got"
            f" {req_to_token.device}"
        )
    unit = integer("source_page_size", source_page_size, 1, SOURCE_PAGE_MAX)
    if req_to_token.shape[0] > INT32_MAX:
        raise ValueError(f"req_to_token must have at most {INT32_MAX} rows, got {req_to_token.shape[0]}")
    tokens = req_to_token.shape[1] * unit
    if tokens > ROW_MAX:
        raise ValueError(f"req_to_token's rows must hold at most {ROW_MAX} tokens, got {tokens}")
    return unit


def output(name: str, out: Tensor, rank: int, size: int, reads: list[Tensor]) -> Tensor:
    """Returns ``out``, a `tensor` of at least ``size`` rows or entries that overlaps none of ``reads``."""
    tensor(name, out, rank, reads[0])
    if out.shape[0] < size:
        raise ValueError(f"{name} must have at least {size} rows or entries, got {out.shape[0]}")
    if rank == 2 and out.shape[0] > 1 and out.stride(0) < out.shape[1]:
        raise ValueError(f"{name}'s rows must not overlap, got strides {out.stride()}")
    if out.shape[-1] > INT32_MAX:
        raise ValueError(f"{name} must have at most {INT32_MAX} entries a row, got {out.shape[-1]}")
    if torch.compiler.is_dynamo_compiling():
        return out  # no memory yet: the op checks again when the graph runs
    low, high = _extent(out)
    for other in reads:
        other_low, other_high = _extent(other)
        if low < other_high and other_low < high:
            raise ValueError(
                f"{name} must not share memory with an input or another output, got one of shape"
                f" {tuple(other.shape)} in it"
            )
    return out


def _extent(x: Tensor) -> tuple[int, int]:
    """Returns the address of x's first element, and that past its last."""
    size = extent(x)
    start = x.data_ptr() if size else 0
    return start, start + size


def extent(x: Tensor) -> int:
    """Returns the number of bytes from x's first element to past its last."""
    if x.numel() == 0:
        return 0
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


def tensor_and_int(value: int | Tensor) -> tuple[Tensor | None, int]:
    """Splits an argument: (tensor, 0) for one value per row, (None, int) for one value for all rows."""
    if type(value) is int:  # as in most calls; isinstance of a Tensor takes long for what is none
        return None, value
    return (value, 0) if isinstance(value, Tensor) else (None, value)


def checked_build(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    form: int,
    page_size: int,
    source_page_size: int,
    seq_lens_delta: int | Tensor,
    kv_start: Tensor | None,
    token_map: Tensor | None,
    page_map: Tensor | None,
    map_page_size: int | None,
    missing_id: int | None,
    pad_value: int | None,
    pad_to_multiple_of: int | None,
    shard: Shard | None,
    status: Status | None,
) -> Build:
    """Checks the arguments that all ops share, which `xkv.build_page_table` describes; returns a `Build`."""
    page_size = power_of_two("page_size", page_size)
    source_page_size = source(req_to_token, source_page_size)
    source_page_size, shard = local_source(page_size, source_page_size, shard, token_map, "token_map")
    tensor("seq_lens", seq_lens, 1, req_to_token)
    batch = seq_lens.shape[0]
    if batch > MAX_BATCH:
        raise ValueError(f"seq_lens must have at most {MAX_BATCH} entries, got {batch}")
    per_row("req_pool_indices", req_pool_indices, req_to_token, batch)
    build = Build(
        req_to_token, req_pool_indices, seq_lens, form, page_size, source_page_size,
        page_size if map_page_size is None else power_of_two("map_page_size", map_page_size), (), shard=shard,
    )  # fmt: skip
    delta = int_or_per_row("seq_lens_delta", seq_lens_delta, req_to_token, batch, -ROW_MAX, ROW_MAX)
    if isinstance(delta, Tensor):
        build.seq_lens_delta_rows = delta
    else:
        build.seq_lens_delta = delta
    if kv_start is not None:
        per_row("kv_start", kv_start, req_to_token, batch)
    for name, ids in (("token_map", token_map), ("page_map", page_map)):
        if ids is not None:
            tensor(name, ids, 1, req_to_token)
    if missing_id is not None:
        build.missing_id = integer("missing_id", missing_id, -INT32_MAX - 1, INT32_MAX)
        build.report_missing = False
    if pad_value is not None:
        build.pad_value = integer("pad_value", pad_value, -INT32_MAX - 1, INT32_MAX)
    if pad_to_multiple_of is not None:
        build.pad_to_multiple_of = integer("pad_to_multiple_of", pad_to_multiple_of, 1, INT32_MAX)
        if pad_value is None:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} needs pad_value, got None")
    if status is not None:
        if not isinstance(status, Status):
            raise TypeError(f"status must be an xkv.Status, got {type(status).__name__}")
        build.status = status_word(status.word, req_to_token)
    return build
