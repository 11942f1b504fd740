"""The calls that `xkv check` makes, topic by topic; the same ones every time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch

from ...status import Reason, Violation
from .trial import Case

TABLE, CSR, SLOTS = "build_page_table", "build_kv_indices", "build_slot_mapping"
ROWS = 5  # of every source

_INTS = (torch.int32, torch.int64)
_MAP = 8192  # token ids below this fit in every map
_ROW = 4  # where a violation is planted, and another one behind it


def call_of(
    op: str, page_size: int, unit: int, *, ids: torch.dtype = torch.int32, top: int = 1 << 31,
    batch: int = 9, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Returns an op's arguments, with lengths of every kind.

    Args:
        op: the op's name.
        page_size: tokens of an output page; 1 for slots.
        unit: tokens of a source entry.
        ids: dtype of the ids; that of the lengths is the other one.
        top: token ids are below it.
        batch: requests.
        seed: other rows and lengths of the same shapes.
    """
    rng = random.Random(f"{op} {page_size} {unit} {ids} {batch} {seed}")
    tokens = tokens_of(page_size, unit)
    lens = [0, 1, page_size, page_size + 1, 3 * page_size - 1, tokens, tokens - 1]
    lens += [rng.randint(0, tokens) for _ in range(batch)]
    rng.shuffle(lens)
    lens = lens[:batch]
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    source = torch.randint(top // unit, (ROWS, tokens // unit), dtype=ids, generator=generator)
    call: dict[str, Any] = {
        "req_to_token": source,
        "req_pool_indices": torch.tensor([rng.randrange(ROWS) for _ in lens], dtype=ids),
        "seq_lens": torch.tensor(lens, dtype=_INTS[ids is torch.int32]),
        "source_page_size": unit,
    }
    if op == SLOTS:
        queries = [rng.choice([0, min(n, 1), n, rng.randint(0, n)]) for n in lens]
        return call | {"query_lens": torch.tensor(queries, dtype=ids)}
    return call | {"page_size": page_size}


def tokens_of(page_size: int, unit: int) -> int:
    """Tokens of a source row of `call_of`: a few pages, no whole number of them."""
    return ((4 * page_size + 70) // unit + 1) * unit


def all_sizes(op: str, page_sizes: list[int], units: list[int]) -> Iterator[Case]:
    """Every page size, source page size and dtype of a table or CSR.

    On a GPU each is a compile, so the dtype that is written takes turns (all four pairs come up);
    so do batches on either side of 16, where tuning rows differ.
    """
    for n, (page_size, unit, ids) in enumerate(itertools.product(page_sizes, units, _INTS)):
        dtype = _INTS[n // 2 % 2]
        top = 1 << (40 if ids is dtype is torch.int64 else 31)
        call = call_of(op, page_size, unit, ids=ids, top=top, batch=9 if n % 2 else 20)
        yield Case(op, call, dtype)


def all_slots(page_sizes: list[int], units: list[int]) -> Iterator[Case]:
    """Every source page size and pair of dtypes of slots; every page size of a map, in turn."""
    pairs = list(itertools.product(units, _INTS, _INTS))
    for n, size in zip(range(max(len(pairs), len(page_sizes))), itertools.cycle(page_sizes)):
        unit, ids, dtype = pairs[n % len(pairs)]
        call = call_of(SLOTS, 1, unit, ids=ids, top=_MAP, batch=9 if n % 2 else 20)
        yield Case(SLOTS, call, dtype)
        pages = torch.arange(_MAP // size, dtype=ids).flip(0)
        yield Case(SLOTS, call | {"page_map": pages, "map_page_size": size}, dtype)


def starts(op: str, page_size: int, unit: int) -> Iterator[Case]:
    """First tokens, those of a sliding window among them, and lengths with something added."""
    call = call_of(op, page_size, unit)
    ends = call["seq_lens"].clamp(min=3)
    added = torch.arange(len(ends)) % 4
    yield Case(op, call | {"seq_lens": ends - added, "seq_lens_delta": added})
    call |= {"seq_lens": ends - 3, "seq_lens_delta": 3}
    yield Case(op, call)
    if op == SLOTS:
        return
    any_start = torch.arange(len(ends)) * 7919 % (ends + 1)
    for note, start in (
        ("any start", any_start),
        ("start at a page", any_start // page_size * page_size),
        ("start at the end", ends),
        ("window of 1", ends - 1),
        ("window of 100", (ends - 100).clamp(min=0)),
    ):
        yield Case(op, call | {"kv_start": start}, torch.int64, note=note)


def maps(op: str, page_size: int, unit: int) -> Iterator[Case]:
    """Token maps, page maps and both, with holes."""
    generator = torch.Generator().manual_seed(page_size)
    call = call_of(op, page_size, unit, top=_MAP) | {"missing_id": -2}
    tokens = torch.randint(_MAP, (_MAP,), generator=generator)
    tokens[::9] = -1
    yield Case(op, call | {"token_map": tokens.int()})
    for size, more in ((page_size, {}), (16, {"token_map": tokens})):
        pages = torch.randint(_MAP, (_MAP // size,), dtype=torch.int32, generator=generator)
        pages[1::5] = -3
        yield Case(op, call | more | {"page_map": pages, "map_page_size": size}, torch.int64)


def tails(op: str, page_size: int, unit: int) -> Iterator[Case]:
    """Tails, tiles of them, ids that are missing, and batches with nothing in them."""
    call = call_of(op, page_size, unit)
    yield Case(op, call | {"pad_value": -5})
    for tile in (1, 4, 64):
        yield Case(op, call | {"pad_value": 0, "pad_to_multiple_of": tile}, room=1500)
    source = call["req_to_token"]
    holes = torch.where(source % 3 == 0, -1 - source, source)
    for missing in (-1, 77):
        yield Case(op, call | {"req_to_token": holes, "missing_id": missing, "pad_value": 0})
    for batch in (0, 1):
        few = call_of(op, page_size, unit, batch=batch)
        yield Case(op, few)
        yield Case(op, few | {"pad_value": 3, "pad_to_multiple_of": 2})
    nothing = {k: call[k] * 0 for k in ("seq_lens", "query_lens") if k in call}
    yield Case(op, call | nothing | {"req_pool_indices": call["seq_lens"] - 7}, note="all empty")


def violations(op: str, page_size: int, unit: int) -> Iterator[Case]:
    """One violation of every kind that an op can meet, none of which may reach past a buffer."""
    base = call_of(op, page_size, unit, ids=torch.int64, top=_MAP)
    tokens = tokens_of(page_size, unit)
    # a source row, and in it a token, that no other request has
    base["req_pool_indices"] %= _ROW
    base["req_pool_indices"][_ROW] = _ROW
    base["req_to_token"].clamp_(min=1)[_ROW, 0] = 0
    base["seq_lens"][_ROW:] = tokens
    if op == SLOTS:
        base["query_lens"][_ROW] = tokens
    else:
        base["kv_start"] = torch.zeros_like(base["seq_lens"])

    def planted(reason: Reason, name: str, value: int, at: int | tuple[int, int] = _ROW) -> Case:
        call = base | {name: base[name].clone()}
        call[name][at] = value
        return Case(op, call, violation=Violation(_ROW, reason), note=f"{name}[{at}]={value}")

    for row in (ROWS, -1, 1 << 40):
        yield planted(Reason.BAD_ROW, "req_pool_indices", row)
    for length in (tokens + 1, -2, (1 << 31) - 1):
        yield planted(Reason.BAD_LENGTH, "seq_lens", length)
    for entry in (-1, 1 << 45):
        yield planted(Reason.BAD_ID, "req_to_token", entry, (_ROW, 0))
    name, reason = ("query_lens", Reason.BAD_QUERY) if op == SLOTS else ("kv_start", Reason.BAD_START)
    for value in (tokens + 1, -1):
        yield planted(reason, name, value)
    two = planted(Reason.BAD_LENGTH, "seq_lens", tokens + 1)
    two.call["req_pool_indices"][_ROW + 1] = -1
    two.note += " and a bad row behind it"
    yield two

    short = base["seq_lens"].clamp(max=1)
    short[_ROW] = tokens
    call = base | {"seq_lens": short} | ({"query_lens": short} if op == SLOTS else {})
    room = -(-tokens // page_size) - 1  # one entry short
    room += 0 if op == TABLE else int(short[:_ROW].sum())
    yield Case(op, call, room=room, violation=Violation(_ROW, Reason.TRUNCATED), note="no room")

    base["token_map"] = torch.arange(_MAP)
    base["page_map"] = torch.arange(_MAP // page_size)
    yield planted(Reason.BAD_MAP, "req_to_token", _MAP // unit, (_ROW, 0))
    yield planted(Reason.BAD_MAP, "token_map", _MAP, 0)


def skewed(op: str, page_size: int, batch: int, longest: int) -> Iterator[Case]:
    """One long row among short ones, and outputs out of alignment."""
    generator = torch.Generator().manual_seed(page_size)
    source = torch.randint(1 << 31, (ROWS, longest), dtype=torch.int32, generator=generator)
    lens = torch.arange(batch) * 37 % 50
    lens[batch // 3] = longest
    call: dict[str, Any] = {
        "req_to_token": source,
        "req_pool_indices": torch.arange(batch) % ROWS,
        "seq_lens": lens,
    }
    call |= {"query_lens": lens} if op == SLOTS else {"page_size": page_size}
    yield Case(op, call, shift=1, note=f"one of {longest} tokens")
