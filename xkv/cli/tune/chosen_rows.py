"""The classes of the rows that divide translations of chosen positions; as data."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from ...platforms.tuning import ChosenTuning

PATTERN = "chosen"
"""What stands for them beside the access patterns."""
SWEPT = [
    field.name
    for field in dataclasses.fields(ChosenTuning)
    if field.name not in ("max_tokens", "whole_rows", "provenance")
]


class ChosenClass(NamedTuple):
    """One class of these rows.

    Attributes:
        max_tokens: as in `xkv.platforms.tuning.ChosenTuning`.
        whole_rows: as there.
        tokens: query tokens that it is timed for; the coarse stage uses all of them.
        chosen: positions of each; the coarse stage uses the first.
        pages: page sizes of the source in tokens; likewise.
        grid: values to try for each field of a row.
    """

    max_tokens: int | None
    whole_rows: bool
    tokens: tuple[int, ...]
    grid: dict[str, tuple[Any, ...]]
    chosen: tuple[int, ...] = (2048, 512)
    pages: tuple[int, ...] = (64, 1)

    @property
    def access_pattern(self) -> str:
        """As other classes have one."""
        return PATTERN

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of `xkv.cli.bench.sparse`; engines pack what a rank has. The coarse stage uses the first."""
        return ("shard", "compact") if self.whole_rows else ("",)

    @property
    def name(self) -> str:
        """The name that is printed."""
        most = f"<= {self.max_tokens}" if self.max_tokens else "any"
        return f"{PATTERN}{', whole rows' * self.whole_rows}, query tokens {most}"


_TILES: dict[str, tuple[Any, ...]] = {
    "block": (128, 256, 512, 1024, 2048), "num_warps": (2, 4, 8), "min_warps": (2, 4, 8),
    "vectors_from": (1,), "evict_first": (False, True), "batch_block": (256,),
}  # fmt: skip
_WHOLE: dict[str, tuple[Any, ...]] = {
    "block": (2048, 4096), "num_warps": (4, 8, 16), "min_warps": (4, 8), "vectors_from": (1, 4),
    "evict_first": (False, True), "batch_block": (256,),
}  # fmt: skip
CHOSEN_CLASSES = (
    ChosenClass(16, False, (1, 16), _TILES),
    ChosenClass(256, False, (64, 256), _TILES),
    ChosenClass(None, False, (4096, 16384), _TILES),
    ChosenClass(16, True, (1, 16), _WHOLE),
    ChosenClass(256, True, (64, 256), _WHOLE),
    ChosenClass(None, True, (4096, 16384), _WHOLE),
)
