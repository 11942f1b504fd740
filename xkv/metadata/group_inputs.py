"""The inputs of a group's launch: what selects it, their quick check, and the kernel's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..launch.group import GroupInputs
from ..launch.guards import have_memory
from ..params import INT32_MAX, ROW_MAX

WORDS, SLOT_ROWS = 6, 7  # the indices among the kernel's arguments of words_ptr and slot_rows


def kernel_arguments(inputs: GroupInputs) -> list[Any]:
    """The kernel's arguments in order, pointers as integers, without the parts' own and the constexpr."""
    rows, lens, delta, query, sign, start, window_start, positions, sums = inputs
    delta_is_tensor, query_is_tensor = isinstance(delta, Tensor), isinstance(query, Tensor)
    return [
        lens.numel(), _stride(rows), rows.data_ptr(), lens.data_ptr(), _stride(lens),
        0 if delta_is_tensor else delta, 0, 0,
        *(_pointer(delta) if delta_is_tensor else (None, None)),
        *((*_pointer(query), sign, None) if query_is_tensor
          else (None, None, None, None if sums is not None else query)),
        *((None, None, None) if positions is None else (*_pointer(positions), positions.numel())),
        None if sums is None else sums.data_ptr(), *_pointer(start), *_pointer(window_start),
    ]  # fmt: skip


def key_of(inputs: GroupInputs) -> Any:
    """What of the inputs selects the launch."""
    return tuple([x.dtype if isinstance(x, Tensor) else x is None for x in inputs])


def num_tokens(inputs: GroupInputs) -> int | None:
    """Query tokens of a batch; None if only the device knows."""
    if inputs.positions is not None:
        return inputs.positions.shape[0]
    query = inputs.query_lens
    return None if isinstance(query, Tensor) else query * inputs.seq_lens.shape[0]


def _pointer(x: Any) -> tuple[Any, Any]:
    return (None, None) if x is None else (x.data_ptr(), _stride(x))


def _stride(x: Tensor) -> int:
    return 1 if x.dtype is torch.int32 else 2  # in int32 words


def sizes_fit(inputs: GroupInputs, limits: tuple[int, int]) -> bool:
    """Whether the checks would pass, of inputs that a guard has passed."""
    rows, lens, delta, query, sign, *starts, _, sums = inputs
    max_batch, max_tokens = limits
    batch, tokens = lens.numel(), num_tokens(inputs)
    if isinstance(query, Tensor):
        query_fits = query.numel() == batch and type(sign) is int and sign in (-1, 0, 1)
    else:
        query_fits = type(query) is int and 0 <= query <= INT32_MAX // (batch + 1) and not sign
    if isinstance(delta, Tensor):
        delta_fits = delta.numel() == batch
    else:
        delta_fits = type(delta) is int and -ROW_MAX <= delta <= ROW_MAX
    given = [x for x in inputs if isinstance(x, Tensor) and x.numel()]
    return bool(
        rows.numel() == batch
        and 0 < batch <= max_batch
        and (tokens is None or tokens <= max_tokens)
        and delta_fits
        and query_fits
        and all(x is None or x.numel() == batch for x in starts)
        and (sums is None or (sums.numel() == batch + 1 and query == 1))
        # a tensor whose memory was freed has the signature that it had
        and have_memory([x.data_ptr() for x in given], given)
    )
