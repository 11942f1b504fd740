"""A build captured in a CUDA or HIP graph for one padded batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xkv import checks
from xkv.buffers import Metadata


class CapturedBuild:
    """One `MetadataBuilder.build` in a graph, replayed with other rows and lengths.

    Made by `MetadataBuilder.capture`. An engine that captures its whole forward step calls ``build``
    inside of its own capture instead.

    Attributes:
        metadata: views of the builder's buffers for the padded batch; every replay rewrites them.
        batch_size: requests, padded ones included.
    """

    def __init__(
        self,
        build: Callable[..., Metadata],
        device: torch.device,
        batch_size: int,
        pad_seq_len: int,
        options: dict[str, Any],
    ) -> None:
        if device.type != "cuda":
            raise ValueError(f"capture needs a builder on a GPU, got one on {device}")
        self.batch_size = batch_size
        self._pad_seq_len = pad_seq_len
        self._rows = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._lens = torch.full((batch_size,), pad_seq_len, dtype=torch.int64, device=device)
        with torch.cuda.device(device):
            build(self._rows, self._lens, **options)  # compiles, outside of the capture
            self._graph = torch.cuda.CUDAGraph()
            # torch's own capture stream is on whatever GPU was captured first in this process
            side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(self._graph, stream=side):
                self.metadata: Metadata = build(self._rows, self._lens, **options)

    def replay(self, req_pool_indices: Tensor, seq_lens: Tensor) -> Metadata:
        """Copies the rows and lengths in, pads them with pool index 0, and replays the graph.

        Args:
            req_pool_indices: ``[batch]`` int32 or int64, at most ``batch_size`` of them.
            seq_lens: ``[batch]`` int32 or int64, tokens.

        Returns:
            ``metadata``. Does not sync.

        Raises:
            TypeError: another dtype.
            ValueError: a batch larger than what was captured, or another device. Nothing was written.
        """
        checks.tensor("seq_lens", seq_lens, 1, self._lens)
        batch = seq_lens.shape[0]
        if batch > self.batch_size:
            raise ValueError(
                f"seq_lens must have at most the {self.batch_size} entries that were captured,"
                f" got {batch}"
            )
        checks.per_row("req_pool_indices", req_pool_indices, self._lens, batch)
        self._rows[:batch].copy_(req_pool_indices)
        self._lens[:batch].copy_(seq_lens)
        if batch < self.batch_size:
            self._rows[batch:].zero_()
            self._lens[batch:].fill_(self._pad_seq_len)
        self._graph.replay()
        return self.metadata
