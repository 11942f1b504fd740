"""`CapturedBuild`: one build in a CUDA or HIP graph, for one padded batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .. import arguments

Built = TypeVar("Built")  # what a build returns


class CapturedBuild(Generic[Built]):
    """One build in a CUDA or HIP graph, replayed with other rows and lengths.

    `MetadataBuilder.capture` and `MetadataGroup.capture` return it. An engine that captures its whole forward
    step calls ``build`` inside its own capture instead.

    Attributes:
        metadata: what the build returned: views of the builder's buffers for the padded batch, or such views
            of each builder of a group. Every replay rewrites them.
        batch_size: requests, padded ones included.
        req_pool_indices: ``[batch_size]`` int, read by every replay: the buffer that was passed to
            `MetadataBuilder.capture`, or an int64 one allocated here.
        seq_lens: ``[batch_size]`` int, tokens; likewise.
    """

    def __init__(
        self, build: Callable[..., Built], device: torch.device, batch_size: int, pad_seq_len: int,
        req_pool_indices: Tensor | None, seq_lens: Tensor | None, options: dict[str, Any],
    ) -> None:  # fmt: skip
        if device.type != "cuda":
            raise ValueError(f"capture needs a builder on a GPU, got one on {device}")
        self.batch_size = batch_size
        self._pad_seq_len = pad_seq_len
        lens = torch.full((batch_size,), pad_seq_len, dtype=torch.int64, device=device)
        self.seq_lens = _input_buffer("seq_lens", seq_lens, lens)
        self.req_pool_indices = _input_buffer("req_pool_indices", req_pool_indices, torch.zeros_like(lens))
        inputs = self.req_pool_indices, self.seq_lens
        with torch.cuda.device(device):
            build(*inputs, **options)  # compiles and loads, before the capture
            self._graph = torch.cuda.CUDAGraph()
            # torch's default capture stream is on the GPU of this process's first capture
            stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(self._graph, stream=stream):
                self.metadata: Built = build(*inputs, **options)

    def replay(self, req_pool_indices: Tensor | None = None, seq_lens: Tensor | None = None) -> Built:
        """Replays the graph with the current contents of ``req_pool_indices`` and ``seq_lens``.

        Without arguments it is one launch, at half the host time of a build. With arguments it first copies
        them to the buffers and pads with pool index 0. Does not sync.

        Args:
            req_pool_indices: ``[batch]`` int32 or int64, ``batch`` at most ``batch_size``; or None.
            seq_lens: ``[batch]`` int32 or int64, tokens; None if ``req_pool_indices`` is None.

        Returns:
            ``metadata``.

        Raises:
            TypeError: another dtype, int64 for an int32 buffer (it might wrap), or one argument without
                the other.
            ValueError: a batch larger than the captured one, or another device. Nothing was written.
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
                f"seq_lens must have at most the captured batch_size={self.batch_size} entries, got {batch}"
            )
        arguments.per_row("req_pool_indices", req_pool_indices, self.seq_lens, batch)
        for name, value in (("seq_lens", seq_lens), ("req_pool_indices", req_pool_indices)):
            buffer = getattr(self, name)
            if value.dtype.itemsize > buffer.dtype.itemsize:
                raise TypeError(f"{name} must be {buffer.dtype}, like the captured buffer, got {value.dtype}")
        self.req_pool_indices[:batch].copy_(req_pool_indices)
        self.seq_lens[:batch].copy_(seq_lens)
        if batch < self.batch_size:
            self.req_pool_indices[batch:].zero_()
            self.seq_lens[batch:].fill_(self._pad_seq_len)


class Capturable(Generic[Built]):
    """What can be captured: the builds and extensions of a `MetadataBuilder` or a `MetadataGroup`.

    Attributes:
        build: builds a step.
        extend: writes what is new in one.
        max_batch_size: requests, at most.
        max_context_len: tokens of a row, at most.
        device: where the source is.
    """

    build: Callable[..., Built]
    extend: Callable[..., Built]
    max_batch_size: int
    max_context_len: int
    device: torch.device

    def capture(
        self, batch_size: int, *, extends: bool = False, pad_seq_len: int = 0,
        req_pool_indices: Tensor | None = None, seq_lens: Tensor | None = None, **options: Any,
    ) -> CapturedBuild[Built]:  # fmt: skip
        """Captures a build or an extension of this padded batch size in a graph of its own. Syncs.

        Args:
            batch_size: requests, padded ones included; at most ``max_batch_size``.
            extends: capture `extend` in place of `build`.
            pad_seq_len: tokens of a padded row, whose pool index is 0.
            req_pool_indices: ``[batch_size]`` int, the engine's own buffer, read at every replay. None: one
                is allocated.
            seq_lens: ``[batch_size]`` int, tokens; likewise.
            **options: as in `build`; its tensors ``[batch_size]`` are read at every replay.

        Returns:
            The captured build; its ``replay`` replays the graph.

        Raises:
            TypeError, ValueError: as in `build`, or buffers of another dtype, size or device.
        """
        arguments.integer("batch_size", batch_size, 1, self.max_batch_size)
        arguments.integer("pad_seq_len", pad_seq_len, 0, self.max_context_len)
        build = self.extend if extends else self.build
        return CapturedBuild(
            build, self.device, batch_size, pad_seq_len, req_pool_indices, seq_lens, options
        )  # fmt: skip


def _input_buffer(name: str, value: Tensor | None, default: Tensor) -> Tensor:
    """The caller's buffer, checked, or the default."""
    if value is None:
        return default
    arguments.tensor(name, value, 1, default)
    if len(value) != len(default):
        raise ValueError(f"{name} must have batch_size entries, {len(default)}, got {len(value)}")
    return value
