"""The cases of `xkv check`, topic by topic: generated ones with sizes and values of their own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...shard import Shard, source_tokens
from ...status import Reason, Violation
from . import values
from .families import I32, I64, Family, op_family
from .op_case import OpCase
from .sizes import Sizes

PAGE_TABLE, INDICES, MAPPING = "build_page_table", "build_kv_indices", "build_slot_mapping"
ROWS = 5  # of every source
BATCH = 9
_TOP = 1 << 14  # token ids below it are in every map
_ROW = 4  # where a violation is planted, and another one behind it

Tensors = dict[str, Tensor]
Change = Callable[[Tensors], object]


class Curated(NamedTuple):
    """A case of an op with explicit sizes and values.

    Attributes:
        family: what it calls.
        sizes: attributes of `Sizes`.
        change: changes the values, on the host.
        violation: what must be reported.
    """

    family: Family
    sizes: dict[str, Any]
    change: Change | None = None
    violation: Violation | None = None

    def __str__(self) -> str:
        return f"{self.family}, batch {self.sizes['batch']}"

    def case(self, device: str) -> OpCase:
        """Returns the case on a device; it holds no values yet."""
        sizes = Sizes(self.family, random.Random(str(self)), small=True)
        numbers = sizes.numbers | self.sizes.get("numbers", {})
        vars(sizes).update(self.sizes, numbers=numbers)
        return OpCase(str(self), self.family, sizes, device)

    def load(self, case: OpCase, seed: int = 0) -> None:
        """Puts right values, with lengths and starts of every kind, in the case's image."""
        rng, sizes, page_size = random.Random(f"{self} {seed}"), case.sizes, self.family.page_size
        values.fill(case, rng, sane=True)
        t, most = case.memory.host, sizes.tokens
        lens = [0, 1, page_size, page_size + 1, 3 * page_size - 1, most, most - 1]
        lens = [min(n, most) for n in lens] + [rng.randint(0, most) for _ in range(sizes.batch)]
        rng.shuffle(lens)
        ends = torch.tensor(lens[: sizes.batch]).clamp(min=sizes.delta)
        added = torch.arange(sizes.batch) % 4 if "seq_lens_delta" in t else torch.tensor(sizes.delta)
        ends = torch.maximum(ends, added)
        t["seq_lens"].copy_(ends - added)
        rows = ends.tolist()
        sane = {
            "seq_lens_delta": added,
            "query_lens": [rng.choice([0, min(n, 1), n, rng.randint(0, n)]) for n in rows],
            "kv_start": [
                rng.choice(
                    [0, n, max(n - 1, 0), max(n - 100, 0), n // page_size * page_size, rng.randint(0, n)]
                )
                for n in rows
            ],
        }
        for name in sane.keys() & t.keys():
            t[name].copy_(torch.as_tensor(sane[name]))
        if "missing_id" in self.family.options:
            for name in {"token_map", "page_map"} & t.keys() or {"req_to_token"}:
                t[name][..., ::5] = -3
        if self.change is not None:
            self.change(t)


def curated(
    op: str, page_size: int, unit: int, options: str = "", note: str = "", *, ids: torch.dtype = I32,
    dtype: torch.dtype = I32, batch: int = BATCH, tokens: int = 0, change: Change | None = None,
    violation: Violation | None = None, shard: Shard | None = None, **sizes: Any,
) -> Curated:  # fmt: skip
    """A case of an op.

    ``options`` come beside a status, ``note`` into the name. A source row has ``tokens``, or a few pages and
    no whole number of them; ``sizes`` are other attributes of `Sizes`, and its numbers.
    """
    family = op_family(
        op, page_size, unit, ids, dtype, f"status {options}", *filter(None, [note]), shard=shard
    )
    width = (tokens or 4 * page_size + 70) // unit + 1
    tokens = source_tokens(width * unit, shard)
    room = tokens // page_size + 2
    numbers = {name: sizes.pop(name) for name in options.split() if name in sizes and name != "map_page_size"}
    found = {
        "rows": ROWS, "width": width, "tokens": tokens, "batch": batch, "max_batch_size": batch + 1,
        "top": _TOP, "delta": 0, "map_page_size": page_size, "room": room, "stream": batch * room + 5,
        "numbers": numbers,
    }  # fmt: skip
    return Curated(family, found | sizes, change, violation)


def all_sizes(op: str, page_sizes: list[int], units: list[int]) -> Iterator[Curated]:
    """Every page size, source page size and dtype of a table or CSR.

    On a GPU each is a compile, so the dtype that is written takes turns (all four pairs come up);
    so do batches on either side of 16, where tuning rows differ.
    """
    for n, (page_size, unit, ids) in enumerate(itertools.product(page_sizes, units, (I32, I64))):
        dtype, batch = (I32, I64)[n // 2 % 2], BATCH if n % 2 else 20
        yield curated(op, page_size, unit, ids=ids, dtype=dtype, batch=batch)


def all_slots(page_sizes: list[int], units: list[int]) -> Iterator[Curated]:
    """Every source page size and pair of dtypes of slots; every page size of a map, in turn."""
    pairs = list(itertools.product(units, (I32, I64), (I32, I64)))
    for n, size in zip(range(max(len(pairs), len(page_sizes))), itertools.cycle(page_sizes)):
        unit, ids, dtype = pairs[n % len(pairs)]
        batch = BATCH if n % 2 else 20
        yield curated(MAPPING, 1, unit, ids=ids, dtype=dtype, batch=batch)
        yield curated(
            MAPPING, 1, unit, "page_map map_page_size", f"map_page_size={size}", ids=ids, dtype=dtype,
            batch=batch, map_page_size=size,
        )  # fmt: skip


def _few(t: Tensors) -> None:
    """Rows so short that most ranks have none of their tokens."""
    t["seq_lens"].clamp_(max=2)
    for name in {"query_lens", "kv_start"} & t.keys():
        t[name].copy_(torch.minimum(t[name], t["seq_lens"]))


def _empty(t: Tensors) -> None:
    for name in {"seq_lens", "query_lens"} & t.keys():
        t[name].zero_()


_TILE = "pad_value pad_to_multiple_of"
# what need not be tried with every page size: (options, note, more of `curated`)
TOPICS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "starts and windows": [
        ("seq_lens_delta", "", {}),
        ("", "delta 3", {"delta": 3}),
        *(("kv_start", f"{n}", {"dtype": dtype}) for n, dtype in enumerate((I32, I64, I64))),
    ],
    "maps": [
        ("token_map missing_id", "", {"missing_id": -2}),
        ("page_map missing_id", "", {"missing_id": -2, "dtype": I64}),
        (
            "token_map page_map map_page_size missing_id", "",
            {"missing_id": -2, "dtype": I64, "map_page_size": 16},
        ),
    ],
    "tails and missing ids": [
        ("pad_value", "", {"pad_value": -5}),
        *(
            (_TILE, f"tile {n}", {"pad_value": 0, "pad_to_multiple_of": n, "room": 1500, "stream": 1500})
            for n in (1, 4, 64)
        ),
        *(("missing_id pad_value", f"{n}", {"missing_id": n, "pad_value": 0}) for n in (-1, 77)),
        *(("", "", {"batch": n}) for n in (0, 1)),
        *((_TILE, "", {"batch": n, "pad_value": 3, "pad_to_multiple_of": 2}) for n in (0, 1)),
        ("", "all empty", {"change": _empty}),
    ],
    "shards": [
        *(("kv_start", "", {"shard": Shard(2, rank, 1, "global")}) for rank in range(2)),
        *(("kv_start", "", {"shard": Shard(3, rank), "dtype": I64}) for rank in range(3)),
        ("page_map missing_id", "", {"shard": Shard(4, 3, 1, "global"), "missing_id": -2}),
        ("token_map page_map pad_value", "", {"shard": Shard(3, 1), "pad_value": 0}),
        ("", "empty shards", {"shard": Shard(4, 2, 1, "global"), "change": _few}),
        ("", "empty shards", {"shard": Shard(4, 3), "change": _few}),
    ],
}  # fmt: skip


def topic(title: str, op: str, page_size: int, unit: int) -> Iterator[Curated]:
    """The cases of one of TOPICS."""
    for options, note, more in TOPICS[title]:
        if op == MAPPING:
            options = options.replace("kv_start", "") if title == "shards" else options
        if op != MAPPING or options != "kv_start":
            yield curated(op, page_size, unit, options, note, **more)


def violations(op: str, page_size: int, unit: int) -> Iterator[Curated]:
    """One violation of every kind that an op can meet, none of which may reach past a buffer."""
    tokens = curated(op, page_size, unit).sizes["tokens"]
    vector, misplaced = ("query_lens", Reason.BAD_QUERY) if op == MAPPING else ("kv_start", Reason.BAD_START)

    def planted(
        reason: Reason, name: str, *values: int, column: int | None = None, options: str = "", **more: Any
    ) -> Curated:
        def change(t: Tensors) -> None:
            # a source row, and in it a token, that no other request has
            t["req_pool_indices"].remainder_(_ROW)[_ROW] = _ROW
            t["req_to_token"].clamp_(min=1)[_ROW, 0] = 0
            t["seq_lens"][_ROW:] = tokens
            t[vector].clamp_(max=1 if op == MAPPING else 0)[_ROW] = tokens if op == MAPPING else 0
            if reason is Reason.TRUNCATED:  # of a stream the rows before have an entry at most
                t["seq_lens"].clamp_(max=1)[_ROW] = tokens
            elif column is None:
                t[name][_ROW : _ROW + len(values)] = torch.tensor(values)
            else:
                (t[name][_ROW] if name == "req_to_token" else t[name])[column] = values[0]

        options = f"{vector if op != MAPPING else ''} {options}"
        found = Violation(_ROW, reason)
        return curated(
            op, page_size, unit, options, f"{name} {values}", ids=I64, change=change, violation=found, **more
        )

    for row in (ROWS, -1, 1 << 30):
        yield planted(Reason.BAD_ROW, "req_pool_indices", row)
    for length in ((tokens + 1,), (-2,), ((1 << 31) - 1,), (tokens + 1, -1)):
        yield planted(Reason.BAD_LENGTH, "seq_lens", *length)
    for entry in (-1, 1 << 45):
        yield planted(Reason.BAD_ID, "req_to_token", entry, column=0)
    for value in (tokens + 1, -1):
        yield planted(misplaced, vector, value)
    short = -(-tokens // page_size) - 1  # one entry too few
    yield planted(Reason.TRUNCATED, "room", short, room=short, stream=short)
    for name, entry in (("req_to_token", _TOP // unit), ("token_map", _TOP)):
        yield planted(Reason.BAD_MAP, name, entry, column=0, options="token_map page_map")


def skewed(op: str, page_size: int, batch: int, longest: int) -> Curated:
    """One long row among short ones, and outputs out of alignment."""

    def change(t: Tensors) -> None:
        lens = torch.arange(batch) * 37 % 50
        lens[batch // 3] = longest
        for name in {"seq_lens", "query_lens"} & t.keys():
            t[name].copy_(lens)

    room = longest // page_size + 1
    return curated(
        op, page_size, 1, "", f"one of {longest} tokens", batch=batch, tokens=longest, change=change,
        room=room, stream=room + 50 * batch, shifts=(1,),
    )  # fmt: skip
