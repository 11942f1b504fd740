"""`MetadataGroup`: the metadata of several builders that share a batch, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import arguments
from ..launch.group import GroupInputs
from ..launch.guards import run_untraced
from .buffers import Metadata
from .builder import MetadataBuilder
from .graph import Capturable
from .parts import GroupLaunches

_MAX_BUILDERS = 64


class MetadataGroup(Capturable[tuple[Metadata, ...]]):
    """Builds the metadata of several `MetadataBuilder`s that share a batch, in one launch per step.

    A hybrid model's layers have one of several KV caches, each with its own table of where the requests'
    tokens are: other block sizes, a sliding window, slots or none. Each is a builder. Their buffers, and what
    they write, are as if each built alone; they may be built alone too.

    Args:
        builders: 1 to 64 builders on one device. Everything that a builder takes may differ among them.

    Attributes:
        builders: they.
        max_batch_size: the least of theirs; ``max_context_len`` likewise.

    Raises:
        TypeError: something else than builders.
        ValueError: none or too many of them, or on several devices.

    Examples:
        Layers of full attention, whose blocks have 4 tokens, beside layers with a window of 4 tokens, whose
        blocks have 8, with slots for both:

        >>> import torch
        >>> import xkv
        >>> full, local = torch.arange(32).view(2, 16), torch.arange(16).view(2, 8)
        >>> sizes = {"max_batch_size": 8, "max_context_len": 64, "slot_mapping": xkv.SlotMapping(8)}
        >>> group = xkv.MetadataGroup([
        ...     xkv.MetadataBuilder("flash_attention", full, page_size=4, source_page_size=4, **sizes),
        ...     xkv.MetadataBuilder(
        ...         "flash_attention", local, page_size=8, source_page_size=8, sliding_window=4, **sizes
        ...     ),
        ... ])
        >>> first, second = group.build(torch.tensor([1, 0]), torch.tensor([7, 3]))
        >>> first.page_table[:, :2], first.slot_mapping
        (tensor([[16, 17],
                [ 0,  0]], dtype=torch.int32), tensor([70,  2]))
        >>> second.window.page_table[:, :1], second.slot_mapping
        (tensor([[8],
                [0]], dtype=torch.int32), tensor([70,  2]))
        >>> group.check()  # raises StatusError if a row was cut
    """

    def __init__(self, builders: Sequence[MetadataBuilder]) -> None:
        self.builders = tuple(builders)
        for builder in self.builders:
            if not isinstance(builder, MetadataBuilder):
                raise TypeError(
                    f"builders must be xkv.MetadataBuilder objects, got a {type(builder).__name__}"
                )
        arguments.integer("number of builders", len(self.builders), 1, _MAX_BUILDERS)
        devices = {builder.req_to_token.device for builder in self.builders}
        if len(devices) > 1:
            raise ValueError(f"builders must be on one device, got {', '.join(sorted(map(str, devices)))}")
        self.max_batch_size = min(builder.max_batch_size for builder in self.builders)
        self.max_context_len = min(builder.max_context_len for builder in self.builders)
        self.device = self.builders[0].device
        self._launches = GroupLaunches([builder.member for builder in self.builders])

    def build(
        self, req_pool_indices: Tensor, seq_lens: Tensor, *, seq_lens_delta: int | Tensor = 0,
        query_lens: int | Tensor = 1, query_lens_sign: int = 0, kv_start: Tensor | None = None,
        window_kv_start: Tensor | None = None, positions: Tensor | None = None,
        query_start_loc: Tensor | None = None,
    ) -> tuple[Metadata, ...]:  # fmt: skip
        """Writes one step's metadata of every builder. One launch, no sync, no allocation; safe in a graph.

        Args:
            req_pool_indices: as in `MetadataBuilder.build`, as are all others: the same for every builder.
            seq_lens: likewise.
            seq_lens_delta: likewise.
            query_lens: likewise.
            query_lens_sign: likewise.
            kv_start: likewise.
            window_kv_start: likewise; of the builders that have a window.
            positions: likewise; of the builders that have a slot mapping.
            query_start_loc: likewise.

        Returns:
            The metadata of each builder, in their order. The next build of a builder, or of a group with it,
            overwrites it.

        Raises:
            TypeError, ValueError: as in `MetadataBuilder.build`. Nothing was written.
            StatusError: with XKV_CHECK=1, a row was cut.
        """
        inputs: Any = (
            req_pool_indices, seq_lens, seq_lens_delta, query_lens, query_lens_sign, kv_start,
            window_kv_start, positions, query_start_loc,
        )  # fmt: skip
        return tuple(self._launches.build(GroupInputs(*inputs), False))

    def extend(
        self, req_pool_indices: Tensor, seq_lens: Tensor, *, seq_lens_delta: int | Tensor = 0,
        query_lens: int | Tensor = 1, query_lens_sign: int = 0, kv_start: Tensor | None = None,
        window_kv_start: Tensor | None = None, positions: Tensor | None = None,
        query_start_loc: Tensor | None = None,
    ) -> tuple[Metadata, ...]:  # fmt: skip
        """Writes what new tokens add to the last build's metadata of every builder, in one launch.

        As `MetadataBuilder.extend`, with the same promise of the caller. Streams of CSR builders are built.

        Args:
            req_pool_indices: as in `build`, as are all others.
            seq_lens: likewise.
            seq_lens_delta: likewise.
            query_lens: likewise.
            query_lens_sign: likewise.
            kv_start: likewise.
            window_kv_start: likewise.
            positions: likewise.
            query_start_loc: likewise.

        Returns:
            As `build`, which it is like: no sync, no allocation, safe in a graph.

        Raises:
            TypeError, ValueError, StatusError: as in `build`.
            StaleTableError: as in `MetadataBuilder.extend`.
        """
        inputs: Any = (
            req_pool_indices, seq_lens, seq_lens_delta, query_lens, query_lens_sign, kv_start,
            window_kv_start, positions, query_start_loc,
        )  # fmt: skip
        return tuple(self._launches.build(GroupInputs(*inputs), True))

    def warmup(
        self, *, ragged: bool = True, row_deltas: bool = True, chunks: bool = True, extends: bool = True
    ) -> int:
        """As `MetadataBuilder.warmup`, for the builds and extensions of the group. Syncs.

        Args:
            ragged: also with ``query_lens`` as a tensor, and ``positions`` if a builder has a slot mapping.
            row_deltas: as in `MetadataBuilder.warmup`.
            chunks: likewise.
            extends: likewise.

        Returns:
            The number of kernels that were newly loaded.
        """
        extends = extends and any(builder.extends for builder in self.builders)
        return self._launches.warmup(ragged=ragged, row_deltas=row_deltas, chunks=chunks, extends=extends)

    def check(self) -> None:
        """Raises if a build since the last check cut a row, and clears that status. Syncs; not for capture.

        Raises:
            StatusError: names the first such row and the reason, of the first builder that has one.
        """
        for builder in self.builders:
            builder.check()


run_untraced(MetadataGroup.build)
run_untraced(MetadataGroup.extend)
