"""A random call of `translate_positions`, its definition in plain Python, and what differs."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...params import ID_MAX, INT32_MAX
from ...shard import Shard, source_tokens
from ...status import Reason, Status
from .case import MismatchError, word_of
from .families import I32, I64
from .memory import guarded, guarded_1d, outside, whole
from .values import held

KINDS = ("one each", "token_to_req", "query_start_loc")
"""How a query token's request is said."""
_WIDE = 1 << 31, 1 << 32, (1 << 32) + 1, -(1 << 32), 1 << 40  # whose low halves look otherwise
LENGTH_MAX = 1 << 28  # where the kernel cuts lengths


def _filled(x: Tensor, values: list[list[int]]) -> Tensor:
    return x.copy_(held(values, x.dtype).view(x.shape))


class ChosenCall:
    """A random call, between guard words.

    Args:
        seed: decides everything.
        kind: of `KINDS`.
        hostile: whether ids, rows, lengths and sums may be any.
        device: where it runs.
    """

    def __init__(self, seed: int, kind: str, *, hostile: bool, device: str) -> None:
        self.name = f"{kind}, {'hostile, ' * hostile}case {seed}"
        rng = self.rng = random.Random(f"{seed} {kind} {hostile}")
        self.device, self.hostile = device, hostile
        self.rows, self.batch = rng.randint(1, 5), rng.randint(1, 7)
        self.tokens = rng.choice([0, 1, 3, rng.randint(1, 40)])
        self.k = rng.choice([1, 4, 31, 32, 33, 64, 100])
        self.batch = self.tokens if kind == "one each" else self.batch
        self.options: dict[str, Any] = {}
        self.shard = None
        unit = rng.choice([1, 1, 4, 16])
        source = rng.choice([1, 1, 4, 16, 48])
        page = rng.choice([1, 1, unit])
        if source % page and page % source:
            page = 1
        width = rng.randint(1, 40)
        if rng.random() < 0.4:
            size = rng.choice([2, 3, 8])
            if rng.random() < 0.5:
                interleave = source if source % unit == 0 else unit
                source = interleave * rng.choice([1, 2])
                page = 1
                self.shard = Shard(size, rng.randrange(size), interleave, "local")
            else:
                source, interleave = 1, rng.choice([unit, 2 * unit])
                page = rng.choice([1, interleave]) if interleave & (interleave - 1) == 0 else 1
                if unit % page and page % unit:
                    page = 1
                self.shard = Shard(size, rng.randrange(size), interleave, "global")
        if self.shard is None and page == 1 and rng.random() < 0.3:
            self.options["block_stride"] = source + rng.randint(0, 9)
        self.source, self.unit, self.page = source, unit, page
        self.options |= {
            "unit": unit, "source_page_size": source, "page_size": page, "shard": self.shard,
            "compact": rng.random() < 0.5, "dummy": rng.choice([None, None, 0, 7]),
            "missing_id": rng.choice([-1, -1, 0, -5]),
        }  # fmt: skip
        ids = [[self._id() for _ in range(width)] for _ in range(self.rows)]
        dtype = rng.choice([I32, I64])
        stride = width + rng.choice([0, 3])
        self.table = _filled(guarded(self.rows, width, stride, dtype, device), ids)
        span = self.span = source_tokens(width * source, self.shard)
        chosen = [[self._position(span // unit + 2) for _ in range(self.k)] for _ in range(self.tokens)]
        pad = rng.choice([0, 0, 4, 5])
        wide = rng.choice([I32, I64])
        self.positions = _filled(guarded(self.tokens, self.k, self.k + pad, wide, device), chosen)
        given: dict[str, list[int] | None] = {"token_to_req": None, "query_start_loc": None}
        if kind == "token_to_req":
            given[kind] = [self._index(self.batch) for _ in range(self.tokens)]
        elif kind == "query_start_loc":
            cuts = sorted(rng.randint(0, self.tokens) for _ in range(self.batch + 1))
            given[kind] = [self._wild(cut) for cut in cuts]
        given["req_pool_indices"] = [self._index(self.rows) for _ in range(self.batch)]
        given["seq_lens"] = [self._wild(rng.randint(0, span)) for _ in range(self.batch)]
        if rng.random() < 0.2:
            given["seq_lens"] = None
        if kind != "one each" and rng.random() < 0.2:
            given["req_pool_indices"] = None
            if given["query_start_loc"] is None and given["seq_lens"] is None:
                self.batch = self.rows
        self.given = given
        self.vectors = {
            name: None if x is None else held(x, rng.choice([I32, I64])).to(device)
            for name, x in given.items()
        }
        self.out = guarded(
            self.tokens + rng.choice([0, 2]), self.k, self.k + pad, rng.choice([I32, I64]), device
        )
        self.counts = (
            guarded_1d(self.tokens + rng.choice([0, 2]), I32, device) if rng.random() < 0.6 else None
        )
        self.status = Status(device)

    def _id(self) -> int:
        if self.hostile and self.rng.random() < 0.3:
            return self.rng.choice([-1, -7, INT32_MAX, 1 << 40, ID_MAX, (1 << 62) + 5])
        return self.rng.randrange(1 << 20)

    def _position(self, count: int) -> int:
        if self.rng.random() < (0.4 if self.hostile else 0.2):
            return self.rng.choice([-1, -1, -9, count, INT32_MAX, -INT32_MAX - 1, 1 << 40, -(1 << 50)])
        return self.rng.randrange(count)

    def _index(self, count: int) -> int:
        if self.hostile and self.rng.random() < 0.3:
            return self.rng.choice([-1, -5, count, INT32_MAX, *_WIDE])
        return self.rng.randrange(max(count, 1))

    def _wild(self, value: int) -> int:
        if self.hostile and self.rng.random() < 0.2:
            return self.rng.choice([-1, -INT32_MAX, INT32_MAX, value + 1000, *_WIDE])
        return value

    def request(self, token: int) -> int:
        """A query token's request, by the definition; -1: none."""
        found: int = token
        if self.given["token_to_req"] is not None:
            return int(self.vectors["token_to_req"][token])  # type: ignore[index]
        if self.given["query_start_loc"] is not None:
            starts = [min(max(x, -LENGTH_MAX), LENGTH_MAX) for x in self.vectors["query_start_loc"].tolist()]  # type: ignore[union-attr]
            found = sum(end <= token for end in starts[1:])
            found = -1 if found >= self.batch or starts[found] > token else found
        return found

    def bounds(self, token: int) -> tuple[int, int, int]:
        """A query token's source row, its length, and the reason why it was cut."""
        req = self.request(token)
        if req < 0:
            return 0, 0, 0
        if req >= self.batch:
            return 0, 0, Reason.BAD_ROW
        pool = self.vectors["req_pool_indices"]
        row = req if pool is None else int(pool[req])
        if row < 0:
            return 0, 0, 0
        if row >= self.rows:
            return 0, 0, Reason.BAD_ROW
        lens = self.vectors["seq_lens"]
        if lens is None:
            return row, self.span, 0
        given = min(max(int(lens[req]), -LENGTH_MAX), LENGTH_MAX)
        length = min(max(given, 0), self.span)
        return row, length, 0 if given == length else Reason.BAD_LENGTH

    def expected_id(self, row: int, length: int, position: int) -> tuple[int | None, bool]:
        """The id of a position, None for none, and whether a token without an id was met."""
        token = position * self.unit
        if position < 0 or position > INT32_MAX or token >= length:
            return None, False
        unit, stride = self.source, self.options.get("block_stride") or self.source
        shard = self.shard
        if shard is not None:
            if token // shard.interleave % shard.size != shard.rank:
                return None, False
            if shard.source == "local":
                turn = shard.size * shard.interleave
                token = token // turn * shard.interleave + token % shard.interleave
        entry = int(self.table[row, token // unit])
        if not 0 <= entry < ID_MAX:
            return None, True
        slot = entry * stride + token % unit
        if shard is not None and shard.source == "global":
            turn = shard.size * shard.interleave
            slot = slot // turn * shard.interleave + slot % shard.interleave
        page = slot // self.page
        return (None, True) if self.out.dtype == I32 and page > INT32_MAX else (page, False)

    def expected(self) -> tuple[Tensor, Tensor | None, int | None]:
        """The whole memory of ``out`` and ``counts``, and the status word."""
        out, counts = self.out.clone().cpu(), None if self.counts is None else self.counts.clone().cpu()
        words, missing = [], self.options["missing_id"]
        for token in range(self.tokens):
            row, length, reason = self.bounds(token)
            found = [self.expected_id(row, length, int(p)) for p in self.positions[token]]
            if not reason and any(lost for _, lost in found):
                reason = Reason.BAD_ID
            if reason:
                words.append(token * 256 + reason)
            ids = [page for page, _ in found]
            count = sum(page is not None for page in ids)
            if self.options["compact"]:
                ids = [page for page in ids if page is not None] + [None] * (self.k - count)
            values = [missing if page is None else page for page in ids]
            if count == 0 and self.options["dummy"] is not None:
                values[0], count = self.options["dummy"], 1
            out[token] = torch.tensor(values, dtype=out.dtype)
            if counts is not None:
                counts[token] = count
        return out, counts, min(words, default=None)

    def run(self, **more: Any) -> Tensor:
        """Makes the call, with these arguments in place of its own."""
        options = {**self.options, **self.vectors, "counts": self.counts, "status": self.status} | more
        return ops.translate_positions(self.table, self.positions, out=self.out, **options)

    def check(self) -> None:
        """Makes the call; raises a MismatchError where something is not as defined."""
        want, counts, word = self.expected()
        around = whole(self.out).clone()
        if self.run() is not self.out:
            self._fail("what is returned is not out")
        pairs: list[tuple[str, Any, Any]] = [("out", self.out, want)]
        pairs += [] if self.counts is None or counts is None else [("counts", self.counts, counts)]
        for name, x, wanted in pairs:
            if not torch.equal(x.cpu(), wanted):
                at = tuple((x.cpu() != wanted).nonzero()[0].tolist())
                self._fail(f"{name}{list(at)} is {int(x[at])}, not {int(wanted[at])}")
        if (found := word_of(self.status)) != word:
            self._fail(f"the status word says {found}, not {word}")
        beside = outside(self.out)
        if not torch.equal(whole(self.out)[beside], around[beside]):
            self._fail("something was written outside of out")

    def _fail(self, what: str) -> None:
        shown = {name: None if x is None else x.tolist() for name, x in self.vectors.items()}
        raise MismatchError(f"{what}\n{self.options}\n{shown}")
