"""One call of an op between guard words, compared with the definition: all of `xkv check`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ... import ops
from ...status import Status, Violation
from . import definition

SENTINEL = -1234567  # no id, no length: what must not be written, or was not, shows
_GUARD = 24  # elements on either side; keeps a view as aligned as its storage
_GAP = 3  # elements between two rows of a table, and past a row of the source


class MismatchError(Exception):
    """An op wrote or reported something else than the definition; the message says what."""


@dataclass
class Case:
    """One call of an op.

    Attributes:
        op: the op's name.
        call: its keyword arguments, all but ``out`` and ``status``; tensors on the CPU.
        dtype: of the ids that it writes.
        room: entries of a table's row or of a stream; None: a few more than are needed.
        violation: what it must report.
        note: what is special about it.
        shift: elements by which the outputs are moved out of alignment.
    """

    op: str
    call: dict[str, Any]
    dtype: torch.dtype = torch.int32
    room: int | None = None
    violation: Violation | None = None
    note: str = ""
    shift: int = 0

    def __str__(self) -> str:
        tensors = {k: v for k, v in self.call.items() if isinstance(v, torch.Tensor)}
        numbers = [f"{k}={v}" for k, v in self.call.items() if k not in tensors]
        ids = f"{str(tensors['req_to_token'].dtype)[6:]} -> {str(self.dtype)[6:]}"
        given = [k for k in tensors if k not in ("req_to_token", "req_pool_indices", "seq_lens")]
        batch = f"batch {len(self.call['seq_lens'])}"
        return ", ".join([self.op, *filter(None, [self.note]), batch, ids, *numbers, *given])


class _Buffer:
    """A ``[rows, width]`` view with a wide row stride, in storage of sentinels."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: str, shift: int) -> None:
        self.begin, self.stride = _GUARD + shift, width + _GAP
        size = self.begin + rows * self.stride + _GUARD
        self.storage = torch.full((size,), SENTINEL, dtype=dtype, device=device)
        inner = self.storage[self.begin : self.begin + rows * self.stride]
        self.view = inner.view(rows, self.stride)[:, :width]

    def difference(self, rows: list[list[int]]) -> str | None:
        """Where the storage first differs from these rows in sentinels."""
        got = self.storage.cpu()
        want = torch.full_like(got, SENTINEL)
        for b, ids in enumerate(rows):
            begin = self.begin + b * self.stride
            want[begin : begin + len(ids)] = torch.tensor(ids, dtype=want.dtype)
        wrong = (got != want).nonzero().flatten()
        if not len(wrong):
            return None
        i = int(wrong[0])
        row, column = divmod(i - self.begin, self.stride)
        named = [_name(int(x)) for x in (got[i], want[i])]
        return f"[{row}, {column}]: got {named[0]}, want {named[1]} ({len(wrong)} entries differ)"


def _name(value: int) -> str:
    return "what was there before" if value == SENTINEL else str(value)


class Trial:
    """A case on a device: arguments and outputs that stay where they are, as in a captured graph.

    Args:
        case: the call.
        device: where it runs.
    """

    def __init__(self, case: Case, device: str) -> None:
        self.case = case
        self.want, self.room = definition.expected(case.op, case.call, case.dtype, case.room)
        self.status = Status(device)
        self.call = {
            k: _placed(v, device) if isinstance(v, torch.Tensor) else v for k, v in case.call.items()
        }
        batch = len(case.call["seq_lens"])
        # each has room for more requests than there are: that room is not to be touched
        sizes = {
            "build_page_table": {"out": (batch + 1, self.room, case.dtype)},
            "build_slot_mapping": {"out": (1, self.room, case.dtype)},
            "build_kv_indices": {
                "kv_indptr": (1, batch + 2, torch.int32),
                "kv_indices": (1, self.room, case.dtype),
                "kv_last_page_len": (1, batch + 1, torch.int32),
            },
        }[case.op]
        self.buffers = {k: _Buffer(*size, device, case.shift) for k, size in sizes.items()}

    def build(self) -> None:
        """The call under test."""
        views = [buffer.view for buffer in self.buffers.values()]
        out: Any = views[0]
        if self.case.op == "build_slot_mapping":
            out = views[0][0]
        elif self.case.op == "build_kv_indices":
            out = ops.KVIndices(*(view[0] for view in views))
        getattr(ops, self.case.op)(**self.call, out=out, status=self.status)

    def load(self, case: Case) -> None:
        """Puts another case's values in the arguments, sentinels in the outputs."""
        self.case = case
        self.want, _ = definition.expected(case.op, case.call, case.dtype, self.room)
        for name, value in case.call.items():
            if isinstance(value, torch.Tensor):
                self.call[name].copy_(value)
        for buffer in self.buffers.values():
            buffer.storage.fill_(SENTINEL)
        self.status.clear()

    def compare(self) -> None:
        """Compares what was written, and what was to be left alone, with the definition.

        Raises:
            MismatchError: where they first differ.
        """
        for name, buffer in self.buffers.items():
            difference = buffer.difference(self.want[name])
            if difference is not None:
                raise MismatchError(f"{name}{difference}")
        violation = self.status.read()
        if violation != self.case.violation:
            raise MismatchError(f"status: got {violation}, want {self.case.violation}")


def _placed(x: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on the device; a table in the middle of a wider one."""
    if x.dim() == 1:
        return x.to(device)
    wide = torch.full((x.shape[0], x.shape[1] + _GAP), SENTINEL, dtype=x.dtype, device=device)
    view = wide[:, : x.shape[1]]
    view.copy_(x)
    return view


def once(case: Case, device: str) -> None:
    """One call, compared.

    Args:
        case: the call.
        device: where it runs.

    Raises:
        MismatchError: it did not do what the definition says.
    """
    trial = Trial(case, device)
    trial.build()
    trial.compare()


def new(case: Case, device: str, bound: int | None) -> None:
    """One call without ``out``: what it returns, its size included.

    Args:
        case: the call.
        device: where it runs.
        bound: its ``max_seq_len`` or ``max_tokens``.

    Raises:
        MismatchError: it did not do what the definition says.
    """
    bounds = {"max_seq_len" if case.op == "build_page_table" else "max_tokens": bound}
    call = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.call.items()}
    result: Any = getattr(ops, case.op)(**call, **bounds, dtype=case.dtype)
    if case.op == "build_page_table":
        longest = int(case.call["seq_lens"].max()) if bound is None else bound
        width = -(-longest // case.call["page_size"])
        want, _ = definition.expected(case.op, case.call | {"pad_value": 0}, case.dtype, width)
        got = {"out": result.tolist()}
    else:
        want, _ = definition.expected(case.op, case.call, case.dtype, None)
        got = {k: [v.tolist()] for k, v in _named(result).items()}
        if bound is not None:  # on a bound, what is past the live entries is anything
            got = {k: [ids[: len(want[k][0])] for ids in rows] for k, rows in got.items()}
    for name, rows in want.items():
        for b, (ids, right) in enumerate(zip(got[name], rows, strict=True)):
            if len(ids) != len(right):
                raise MismatchError(f"{name}: got {len(ids)} entries, want {len(right)}")
            for j, pair in enumerate(zip(ids, right, strict=True)):
                if pair[0] != pair[1]:
                    raise MismatchError(f"{name}[{b}, {j}]: got {pair[0]}, want {pair[1]}")


def _named(result: Any) -> dict[str, torch.Tensor]:
    return result._asdict() if isinstance(result, ops.KVIndices) else {"out": result}


def captured(call: Callable[[], None]) -> Callable[[], None]:
    """Captures a call in a CUDA or HIP graph.

    Args:
        call: what to capture; run once before, as it compiles and loads what a capture must not.

    Returns:
        What replays it.
    """
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # as it is of a batch of no requests
        with torch.cuda.graph(graph, stream=side):  # torch's own is on the GPU that was captured first
            call()
    return graph.replay
