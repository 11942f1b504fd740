"""A random call of `expand_queries`, its definition in plain Python, and what differs."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...expanded import ExpandedQueries
from ...params import INT32_MAX
from ...shard import Shard
from ...status import Reason, Status
from .case import MismatchError, word_of
from .families import I32, I64
from .memory import guarded, guarded_1d, outside, whole
from .values import held

KINDS = ("decode", "verify", "mixed")
"""How many query tokens the requests have."""
LENGTH_MAX = 1 << 28  # where the kernel cuts sums
ROW_MAX = LENGTH_MAX - 1
NAMES = ExpandedQueries._fields


class ExpandedCall:
    """A random call, between guard words.

    Args:
        seed: decides everything.
        kind: of `KINDS`.
        hostile: whether lengths and sums may be any.
        device: where it runs.
    """

    def __init__(self, seed: int, kind: str, *, hostile: bool, device: str) -> None:
        self.name = f"{kind}, {'hostile, ' * hostile}case {seed}"
        rng = self.rng = random.Random(f"{seed} {kind} {hostile}")
        self.hostile = hostile
        self.batch = rng.choice([0, 1, 2, rng.randint(1, 12), rng.randint(1, 30)])
        fixed = {"decode": 1, "verify": 4}.get(kind)
        queries = [
            rng.choice([0, 0, 1, 1, 3, rng.randint(0, 30)]) if fixed is None else fixed
            for _ in range(self.batch)
        ]
        starts = [sum(queries[:b]) for b in range(self.batch + 1)]
        lens = [self._length(n) for n in queries]
        self.num_tokens = max(starts[-1] + rng.choice([0, 0, 1, 5, 17]), 0)
        if rng.random() < 0.15:
            self.num_tokens = rng.randint(0, starts[-1])
        first = rng.choice([0, 0, 0, 2])  # the tokens before it are of no request
        self.starts, self.lens = (
            held([self._wild(x) for x in given], rng.choice([I32, I64])).to(device)
            for given in ([x + first for x in starts], lens)
        )
        self.shard = None
        if rng.random() < 0.4:
            size = rng.choice([1, 2, 3, 8])
            self.shard = Shard(size, rng.randrange(size), rng.choice([1, 2, 16]))
        self.causal, self.pad_req = rng.random() < 0.8, rng.choice([0, 0, -1, INT32_MAX])
        self.explicit = rng.random() < 0.4
        room = self.num_tokens + (rng.choice([0, 3]) if self.explicit else 0)
        self.table: Tensor | None = None
        requests, positions, lengths = (
            guarded_1d(room, dtype, device) if rng.random() < 0.8 else None
            for dtype in (I32, rng.choice([I32, I64]), I32)
        )
        out_table = None
        if rng.random() < 0.6 or requests is positions is lengths:
            dtype, width = rng.choice([I32, I64]), rng.choice([1, 4, 16, 40, rng.randint(1, 70)])
            rows = self.batch + rng.choice([0, 2])
            self.table = guarded(rows, width, width + rng.choice([0, 4, 5]), dtype, device)
            ids = torch.randint(-9, 1 << 20, (rows, width), generator=torch.Generator().manual_seed(seed))
            self.table.copy_(ids.to(dtype))
            columns = rng.choice([width, width, rng.randint(0, width)])
            out_table = guarded(room, columns, columns + rng.choice([0, 4, 5]), dtype, device)
        self.out = ExpandedQueries(requests, positions, lengths, out_table)
        self.status = Status(device) if rng.random() < 0.8 else None

    def _length(self, queries: int) -> int:
        return self.rng.choice([queries, queries + self.rng.randint(0, 99), self.rng.randint(0, 30), ROW_MAX])

    def _wild(self, value: int) -> int:
        if self.hostile and self.rng.random() < 0.2:
            return self.rng.choice(
                [-1, -INT32_MAX - 1, INT32_MAX, LENGTH_MAX, value + 9, value - 9, 1 << 40, -(1 << 62)]
            )
        return value

    def rows(self, token: int) -> list[tuple[int, int, int, int | None]]:
        """What a query token's row may be: (request, position, length, row of the table). Mostly one."""
        starts = [min(max(x, -LENGTH_MAX), LENGTH_MAX) for x in self.starts.tolist()]
        padding = (self.pad_req, 0, 0, None)
        found: list[tuple[int, int, int, int | None]] = []
        for b in range(self.batch):
            begin, end = starts[b : b + 2]
            if 0 <= begin <= token < end and token < starts[-1]:
                n = min(max(int(self.lens[b]), 0), ROW_MAX)
                position = n - (end - begin) + (token - begin)
                seen = max(position + 1, 0) if self.causal else n
                if self.shard is not None:
                    seen = self.shard.local_length(seen)
                found.append((b, max(position, 0), seen, b))
        # where sums decrease, a token that is claimed is of one of those requests, or of none
        return found if found and starts == sorted(starts) else [*found, padding]

    def word(self) -> int | None:
        """The status word."""
        starts = [min(max(x, -LENGTH_MAX), LENGTH_MAX) for x in self.starts.tolist()]
        for b, given in enumerate(self.lens.tolist()):
            begin, end = starts[b : b + 2]
            n = min(max(given, 0), ROW_MAX)
            reason = 0
            if given != n:
                reason = Reason.BAD_LENGTH
            elif begin < 0 or end < begin or (n > 0 and end - begin > n):
                reason = Reason.BAD_QUERY
            elif end > self.num_tokens:
                reason = Reason.TRUNCATED
            if reason:
                return b * 256 + reason
        return None

    def run(self, **more: Any) -> Any:
        """Makes the call, with these arguments in place of its own."""
        options = {
            "num_tokens": self.num_tokens if self.explicit else None, "shard": self.shard,
            "causal": self.causal, "page_table": self.table, "pad_req": self.pad_req, "out": self.out,
            "status": self.status,
        }  # fmt: skip
        return ops.expand_queries(self.starts, self.lens, **options | more)

    def written(self) -> list[Any]:
        """The row of each query token, None for what was not asked for."""
        size = self.num_tokens
        columns = [[None] * size if x is None else x[:size].tolist() for x in self.out]
        return list(zip(*columns, strict=True))

    def allowed(self, token: int) -> list[Any]:
        """The same, of each row that a query token may have."""
        table_out = self.out.out_page_table
        found = []
        for *values, row in self.rows(token):
            copy = None
            if table_out is not None and self.table is not None:
                columns = table_out.shape[1]
                copy = [0] * columns if row is None else self.table[row, :columns].tolist()
            asked = [None if x is None else v for x, v in zip(self.out, values, strict=False)]
            found.append((*asked, copy))
        return found

    def check(self) -> None:
        """Makes the call; raises a MismatchError where something is not as defined."""
        around = [None if x is None else whole(x).clone() for x in self.out]
        if self.run() is not self.out:
            self._fail("what is returned is not out")
        for token, row in enumerate(self.written()):
            allowed = self.allowed(token)
            if row not in allowed:
                self._fail(f"query token {token} has {row}, not {' or '.join(map(str, allowed))}")
        if self.status is not None and (found := word_of(self.status)) != (word := self.word()):
            self._fail(f"the status word says {found}, not {word}")
        for name, x, before in zip(NAMES, self.out, around, strict=True):
            if x is not None and before is not None:
                beside = outside(x[: self.num_tokens])
                if not torch.equal(whole(x)[beside], before[beside]):
                    self._fail(f"something was written outside of {name}")

    def _fail(self, what: str) -> None:
        asked = f"num_tokens {self.num_tokens}, causal {self.causal}, {self.shard}"
        raise MismatchError(f"{what}\n{asked}\n{self.starts.tolist()}\n{self.lens.tolist()}")
