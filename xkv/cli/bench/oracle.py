"""Whether a provider built what it should: compared with plain torch, entry for entry."""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import Inputs, Step
from .providers import Provider

_POISON = -7  # in what a call must write, before every call: nothing that it left out passes for its result
_IDS = ("page_table", "kv_indices")


def difference(at: Inputs, provider: Provider) -> str:
    """Calls a provider once for every step, and names the first thing that is wrong. Syncs.

    Args:
        at: what it reads.
        provider: of `providers.makers`.

    Returns:
        A sentence; "" where all its results are right, in dtype, shape and value.
    """
    for number, step in enumerate(at.steps):
        for buffer in provider.writes:
            buffer.fill_(_POISON)
        found = provider.call(step)
        found = provider.results or found
        live = _Live(at, step, provider.unit)
        results = {name: _field(found, name) for name in live.wanted}
        if lacking := [name for name in provider.fields if results[name] is None]:
            return f"step {number}: there is no {lacking[0]}"
        if all(results[name] is None for name in _IDS):
            return f"step {number}: there is neither {_IDS[0]} nor {_IDS[1]}"
        for name, value in results.items():
            if value is not None and (what := live.difference(name, value)):
                return f"step {number}: {name}: {what}"
    return ""


def _field(results: object, name: str) -> Tensor | None:
    found: Tensor | None = results.get(name) if isinstance(results, dict) else getattr(results, name, None)
    return found


class _Live:
    """What the live entries of a step should be, at so many tokens an id."""

    def __init__(self, at: Inputs, step: Step, unit: int) -> None:
        lens = step.lens + at.case.delta
        entries = (lens + unit - 1) // unit
        self._row = torch.repeat_interleave(torch.arange(at.batch, device=lens.device), entries)
        every = torch.arange(len(self._row), device=lens.device)
        self._column = every - (entries.cumsum(0) - entries)[self._row]
        ids = at.source[step.rows[self._row], self._column * unit] // unit
        self._id_dtype = getattr(torch, at.case.id_dtype)
        self.wanted = {
            "page_table": ids, "kv_indices": ids, "kv_indptr": _sums(entries),
            "kv_last_page_len": (lens - 1) % at.page_size + 1, "cache_seqlens": lens,
            "cu_seqlens_k": _sums(lens), "cu_seqlens_q": at.query_starts(),
        }  # fmt: skip

    def difference(self, name: str, got: Tensor) -> str:
        """What is wrong with one of the results; "" where nothing is."""
        want = self.wanted[name]
        if name == "page_table":
            if got.shape[1] <= int(self._column.max()):
                return f"there are {got.shape[1]} columns, too few"
            got = got[self._row, self._column]
        elif name == "kv_indices":
            got = got[: len(want)]
        dtype = self._id_dtype if name in _IDS else torch.int32
        if got.dtype != dtype or got.shape != want.shape:
            return f"{tuple(got.shape)} {got.dtype}, not {tuple(want.shape)} {dtype}"
        if torch.equal(got, want.to(dtype)):
            return ""
        entry = int((got != want).nonzero()[0])
        return f"live entry {entry} is {got[entry]}, not {want[entry]}"


def _sums(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x.cumsum(0), (1, 0))
