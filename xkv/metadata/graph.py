"""A build captured in a CUDA or HIP graph for one padded batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import arguments
from .buffers import Metadata


class CapturedBuild:
    """One `MetadataBuilder.build` in a graph, replayed with other rows and lengths.

    Made by `MetadataBuilder.capture`. An engine that captures its whole forward step calls ``build``
    inside of its own capture instead.

    Attributes:
        metadata: views of the builder's buffers for the padded batch; every replay rewrites them.
        batch_size: requests, padded ones included.
        req_pool_indices: ``[batch_size]`` int, what every replay reads: what `MetadataBuilder.capture` was
            given, or int64 made here.
        seq_lens: ``[batch_size]`` int, tokens; likewise.
    """

    def __init__(
        self, build: Callable[..., Metadata], device: torch.device, batch_size: int, pad_seq_len: int,
        req_pool_indices: Tensor | None, seq_lens: Tensor | None, options: dict[str, Any],
    ) -> None:  # fmt: skip
        if device.type != "cuda":
            raise ValueError(f"capture needs a builder on a GPU, got one on {device}")
        self.batch_size = batch_size
        self._pad_seq_len = pad_seq_len
        lens = torch.full((batch_size,), pad_seq_len, dtype=torch.int64, device=device)
        self.seq_lens = _given("seq_lens", seq_lens, lens)
        self.req_pool_indices = _given("req_pool_indices", req_pool_indices, torch.zeros_like(lens))
        inputs = self.req_pool_indices, self.seq_lens
        with torch.cuda.device(device):
            build(*inputs, **options)  # compiles, outside of the capture
            self._graph = torch.cuda.CUDAGraph()
            # torch's own capture stream is on whatever GPU was captured first in this process
            side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(self._graph, stream=side):
                self.metadata: Metadata = build(*inputs, **options)

    def replay(self, req_pool_indices: Tensor | None = None, seq_lens: Tensor | None = None) -> Metadata:
        """Replays the graph, with what ``req_pool_indices`` and ``seq_lens`` hold by now.

        Without arguments it is one launch, and costs the host half of a build. With them it first copies them
        in, and pads them with pool index 0.

        Args:
            req_pool_indices: ``[batch]`` int32 or int64, at most ``batch_size`` of them; or None.
            seq_lens: ``[batch]`` int32 or int64, tokens; None where ``req_pool_indices`` is.

        Returns:
            ``metadata``. Does not sync.

        Raises:
            TypeError: another dtype, int64 for a buffer of int32 (it might wrap), or one without the other.
            ValueError: a batch larger than what was captured, or another device. Nothing was written.
        """
        if req_pool_indices is not None or seq_lens is not None:
            self._fill(req_pool_indices, seq_lens)
        self._graph.replay()
        return self.metadata

    def _fill(self, req_pool_indices: Any, seq_lens: Any) -> None:
        arguments.tensor("seq_lens", seq_lens, 1, self.seq_lens)
        batch = seq_lens.shape[0]
        if batch > self.batch_size:
            raise ValueError(
                f"seq_lens must have at most the {self.batch_size} entries that were captured, got {batch}"
            )
        arguments.per_row("req_pool_indices", req_pool_indices, self.seq_lens, batch)
        for name, value in (("seq_lens", seq_lens), ("req_pool_indices", req_pool_indices)):
            buffer = getattr(self, name)
            if value.dtype.itemsize > buffer.dtype.itemsize:
                raise TypeError(f"{name} must be {buffer.dtype} as the buffer is, got {value.dtype}")
        self.req_pool_indices[:batch].copy_(req_pool_indices)
        self.seq_lens[:batch].copy_(seq_lens)
        if batch < self.batch_size:
            self.req_pool_indices[batch:].zero_()
            self.seq_lens[batch:].fill_(self._pad_seq_len)


def _given(name: str, value: Tensor | None, own: Tensor) -> Tensor:
    if value is None:
        return own
    arguments.tensor(name, value, 1, own)
    if len(value) != len(own):
        raise ValueError(f"{name} must have batch_size entries, {len(own)}, got {len(value)}")
    return value
