"""The demo's decode steps by `MetadataBuilder`: extended where the batch is the last one's, and as builds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ...metadata.buffers import Metadata
from ...metadata.builder import MetadataBuilder
from ...platforms.specs import BackendSpec
from .batch import DecodeBatch
from .engine import Engine


class Extensions:
    """Two builders, one that extends and one that builds every step, their times and their check.

    Args:
        engine: whose steps they are.

    Attributes:
        mismatches: entries and lengths of the one that extends that differ from the engine's own.
    """

    def __init__(self, engine: Engine) -> None:
        spec = BackendSpec(
            "demo", "table", (engine.page_size,), engine.page_size,
            ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q"),
        )  # fmt: skip
        self._engine, self.mismatches = engine, 0
        self._extends, self._builds = (
            MetadataBuilder(
                spec, engine.req_to_token, max_batch_size=engine.max_reqs, max_context_len=engine.max_context
            )
            for _ in range(2)
        )  # fmt: skip
        for builder in (self._extends, self._builds):
            builder.warmup(ragged=False, row_deltas=False, chunks=False)
        self._steps, self._extended_ms, self._built_ms = 0, list[float](), list[float]()

    def step(self, batch: DecodeBatch) -> None:
        """Runs and checks one step."""
        self._steps += 1
        run = self._extends.extend if batch.extends else self._extends.build
        timed = [lambda: self._timed(run, batch), lambda: self._timed(self._builds.build, batch)]
        # in turn: the first after a wait takes longer
        order = (0, 1) if self._steps % 2 else (1, 0)
        found = {n: timed[n]() for n in order}
        (meta, extended_ms), (_, built_ms) = found[0], found[1]
        if batch.extends:
            self._extended_ms.append(extended_ms)
            self._built_ms.append(built_ms)
        self.mismatches += self._differences(meta, batch)

    def summary(self) -> str:
        """How many steps were extensions, and what they cost against builds."""
        count = f"{len(self._extended_ms)} of {self._steps}"
        if not self._extended_ms:
            return count
        extended, built = (statistics.median(times) for times in (self._extended_ms, self._built_ms))
        return f"{count}: median {extended:.3f} ms, builds of the same steps {built:.3f} ms"

    def _timed(self, run: Callable[..., Metadata], batch: DecodeBatch) -> tuple[Metadata, float]:
        synchronize(self._engine.device)
        begin = time.perf_counter()
        meta = run(batch.req_pool_indices, batch.seq_lens)
        synchronize(self._engine.device)
        return meta, (time.perf_counter() - begin) * 1e3

    def _differences(self, meta: Metadata, batch: DecodeBatch) -> int:
        assert meta.page_table is not None
        assert meta.cache_seqlens is not None
        size, wrong = self._engine.page_size, differences(meta.cache_seqlens, torch.tensor(batch.host_lens))
        table = meta.page_table.cpu()
        for b, (row, length) in enumerate(zip(batch.host_rows, batch.host_lens, strict=True)):
            pages = self._engine.host_req_to_token[row, :length:size] // size
            wrong += differences(table[b, : len(pages)], pages)
        return wrong


def differences(got: torch.Tensor, want: torch.Tensor) -> int:
    """Counts the entries that differ. Syncs."""
    return int(torch.count_nonzero(got.cpu() != want))


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
