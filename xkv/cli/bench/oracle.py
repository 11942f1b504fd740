"""Whether a contender built what it should: compared with a gather in plain torch, entry for entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contenders import Contender
from .inputs import Inputs

_POISON = -7  # in every output before every call: nothing that a call left out passes for its result


class _Live:
    """Where the live entries are, at so many tokens an entry."""

    def __init__(self, at: Inputs, unit: int) -> None:
        entries = (at.lens + unit - 1) // unit
        self.ends = entries.cumsum(0)
        self.row = torch.repeat_interleave(torch.arange(at.batch, device=at.lens.device), entries)
        every = torch.arange(len(self.row), device=at.lens.device)
        self.column = every - (self.ends - entries)[self.row]
        self.unit = unit

    def ids(self, source: Tensor, rows: Tensor) -> Tensor:
        """What they should be."""
        return source[rows[self.row], self.column * self.unit] // self.unit


def differences(at: Inputs, contenders: Sequence[Contender]) -> dict[str, str]:
    """Calls every contender once for every set of rows, and names what is wrong. Syncs.

    Args:
        at: what they read.
        contenders: what `contenders.table` or `contenders.csr` made of it.

    Returns:
        By the name of each contender that is wrong, the first entry that is.
    """
    live = {unit: _Live(at, unit) for unit in {each.unit for each in contenders}}
    last = (at.lens - 1) % at.page_size + 1
    zero = at.lens.new_zeros(1)
    wrong: dict[str, str] = {}
    for number, rows in enumerate(at.rows):
        ids = {unit: where.ids(at.source, rows) for unit, where in live.items()}
        for each in contenders:
            if each.name in wrong:
                continue
            for buffer in each.out.values():
                buffer.fill_(_POISON)
            each.call(rows)
            where = live[each.unit]
            sums = torch.cat([zero, where.ends])
            for name, buffer in each.out.items():
                want = {
                    "page_table": ids[each.unit], "kv_indices": ids[each.unit],
                    "kv_indptr": sums[-len(buffer) :], "kv_last_page_len": last,
                }[name]  # fmt: skip
                table = name == "page_table"
                got = buffer[where.row, where.column] if table else buffer[: len(want)]
                if not torch.equal(got, want.to(got.dtype)):
                    entry = int((got != want).nonzero()[0])
                    wrong[each.name] = (
                        f"set {number}: live entry {entry} of {name} is {got[entry]}, not {want[entry]}"
                    )
                    break
    return wrong
