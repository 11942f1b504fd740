"""What the kernel of a group is compiled for, and which arguments each part has of its own."""

from collections.abc import Sequence
from typing import Any

import triton.language as tl

from .args import Config, Policy, View

# What each part of a group has of its own: one int64 word each, in this order, in device memory.
PART_FIELDS = (
    "src_ptr", "src_stride", "src_rows", "src_tokens", "shard_rank", "max_position",
    *(name for name in View._fields if not name.startswith("start_")),
    *(name for name in Policy._fields if name != "own_tiles"),
)  # fmt: skip
NUM_FIELDS = tl.constexpr(len(PART_FIELDS))


class PartKind(str):
    """What the kernel of a group is compiled for, of parts that are alike; a str, as `Config` is.

    Each of PART_FIELDS is an attribute: whether these parts have such an argument of their own.

    Attributes:
        config: their `Config`.
        types: of each of PART_FIELDS: "int32" or "int64"; of a pointer that of its elements; None: no such.
        start: whose first tokens bound their rows: "start", "window_start" or "".
        own_tiles: of its row, for each of the row's programs, if there may be leftover tiles.
    """

    config: Config
    types: tuple[str | None, ...]
    start: str
    own_tiles: int

    def __new__(cls, config: Config, types: tuple[str | None, ...], start: str, own_tiles: int) -> "PartKind":
        """Takes the attributes."""
        self = super().__new__(cls, f"{config} {' '.join(map(str, types))} {start} {own_tiles}")
        self.config, self.types, self.start, self.own_tiles = config, types, start, own_tiles
        vars(self).update({name: x is not None for name, x in zip(PART_FIELDS, types, strict=True)})
        return self

    def word(self, name: str) -> int:
        """The number of an argument among a part's words."""
        return PART_FIELDS.index(name)

    def type(self, name: str) -> Any:
        """Triton's type of an argument."""
        found = tl.int32 if self.types[self.word(name)] == "int32" else tl.int64
        return tl.pointer_type(found) if name.endswith("_ptr") else found


class Runs(str):
    """Parts that are alike, in runs of neighbours; a str, as `Config` is.

    Attributes:
        kinds: of each run.
        begins: the number of its first part.
        ends: that of the first part behind it.
    """

    kinds: tuple[PartKind, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def __new__(cls, parts: Sequence[PartKind | None]) -> "Runs":
        """Takes the kind of each part, None for none."""
        changes = [n for n in range(len(parts)) if n == 0 or parts[n] != parts[n - 1]]
        runs = [
            (kind, n, end)
            for n, end in zip(changes, [*changes[1:], len(parts)], strict=True)
            if (kind := parts[n]) is not None
        ]
        self = super().__new__(cls, "; ".join(f"{kind} {begin} {end}" for kind, begin, end in runs))
        self.kinds = tuple(kind for kind, _, _ in runs)
        self.begins, self.ends = tuple(n for _, n, _ in runs), tuple(end for _, _, end in runs)
        return self


class Parts(str):
    """What the kernel of a group is compiled for; a str, as `Config` is.

    Attributes:
        views: the parts' views.
        slots: their slots.
    """

    views: Runs
    slots: Runs

    def __new__(cls, views: Sequence[PartKind], slots: Sequence[PartKind | None]) -> "Parts":
        """Takes the kind of each part's view, and of its slots or None."""
        of_views, of_slots = Runs(views), Runs(slots)
        self = super().__new__(cls, f"{of_views} | {of_slots}")
        self.views, self.slots = of_views, of_slots
        return self
