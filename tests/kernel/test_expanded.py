"""`expand_queries` beside its definition in plain Python, on hostile data, between guard words."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from building import guarded, guarded_1d, whole
from conftest import GPUS

import xkv
from xkv.launch import expanded
from xkv.params import INT32_MAX
from xkv.platforms.detect import platform

I32, I64 = torch.int32, torch.int64
CASES = 300 if GPUS else 60
LENGTH_MAX = 1 << 28
ROW_MAX = LENGTH_MAX - 1
NAMES = xkv.ExpandedQueries._fields


class Call:
    """A random call; ``kind``: how many query tokens the requests have."""

    def __init__(self, seed: int, kind: str, *, hostile: bool, device: str) -> None:
        rng = self.rng = random.Random(f"{seed} {kind} {hostile}")
        self.hostile = hostile
        self.batch = rng.choice([0, 1, 2, rng.randint(1, 12), rng.randint(1, 30)])
        counts = {
            "decode": lambda: 1,
            "verify": lambda: 4,
            "mixed": lambda: rng.choice([0, 0, 1, 1, 3, rng.randint(0, 30)]),
        }[kind]
        queries = [counts() for _ in range(self.batch)]
        starts = [sum(queries[:b]) for b in range(self.batch + 1)]
        lens = [self.length(n) for n in queries]
        self.num_tokens = max(starts[-1] + rng.choice([0, 0, 1, 5, 17]), 0)
        if rng.random() < 0.15:
            self.num_tokens = rng.randint(0, starts[-1])
        first = rng.choice([0, 0, 0, 2])  # the tokens before it are of no request
        self.starts = self.vector([self.wild(x + first) for x in starts], device)
        self.lens = self.vector([self.wild(x) for x in lens], device)
        self.shard = None
        if rng.random() < 0.4:
            size = rng.choice([1, 2, 3, 8])
            self.shard = xkv.Shard(size, rng.randrange(size), rng.choice([1, 2, 16]))
        self.causal, self.pad_req = rng.random() < 0.8, rng.choice([0, 0, -1, INT32_MAX])
        self.explicit = rng.random() < 0.4
        room = self.num_tokens + (rng.choice([0, 3]) if self.explicit else 0)
        self.table: torch.Tensor | None = None
        made: list[torch.Tensor | None] = [
            guarded_1d(room, dtype, device) if rng.random() < 0.8 else None
            for dtype in (I32, rng.choice([I32, I64]), I32)
        ]
        out_table = None
        if rng.random() < 0.6 or made == [None] * 3:
            dtype, width = rng.choice([I32, I64]), rng.choice([1, 4, 16, 40, rng.randint(1, 70)])
            rows = self.batch + rng.choice([0, 2])
            self.table = guarded(rows, width, width + rng.choice([0, 4, 5]), dtype, device)
            ids = torch.randint(-9, 1 << 20, (rows, width), generator=torch.Generator().manual_seed(seed))
            self.table.copy_(ids.to(dtype))
            columns = rng.choice([width, width, rng.randint(0, width)])
            out_table = guarded(room, columns, columns + rng.choice([0, 4, 5]), dtype, device)
        self.out = xkv.ExpandedQueries(*made, out_table)
        self.status = xkv.Status(device) if rng.random() < 0.8 else None

    def length(self, queries: int) -> int:
        return self.rng.choice([queries, queries + self.rng.randint(0, 99), self.rng.randint(0, 30), ROW_MAX])

    def wild(self, value: int) -> int:
        if self.hostile and self.rng.random() < 0.2:
            return self.rng.choice(
                [-1, -INT32_MAX - 1, INT32_MAX, LENGTH_MAX, value + 9, value - 9, 1 << 40, -(1 << 62)]
            )
        return value

    def vector(self, values: list[int], device: str) -> torch.Tensor:
        limit = torch.iinfo(dtype := self.rng.choice([I32, I64]))
        clipped = [min(max(x, limit.min), limit.max) for x in values]
        return torch.tensor(clipped, dtype=dtype, device=device)

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
                reason = xkv.Reason.BAD_LENGTH
            elif begin < 0 or end < begin or (n > 0 and end - begin > n):
                reason = xkv.Reason.BAD_QUERY
            elif end > self.num_tokens:
                reason = xkv.Reason.TRUNCATED
            if reason:
                return b * 256 + reason
        return None

    def run(self, **more: Any) -> Any:
        options = {
            "num_tokens": self.num_tokens if self.explicit else None, "shard": self.shard,
            "causal": self.causal, "page_table": self.table, "pad_req": self.pad_req, "out": self.out,
            "status": self.status,
        }  # fmt: skip
        return xkv.expand_queries(self.starts, self.lens, **options | more)

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
            values = [None if x is None else v for x, v in zip(self.out, values, strict=False)]
            found.append((*values, copy))
        return found


def assert_as_defined(call: Call) -> None:
    around = [None if x is None else whole(x).clone() for x in call.out]
    assert call.run() is call.out
    for token, row in enumerate(call.written()):
        assert row in call.allowed(token), f"token {token} of {call.starts.tolist()} {call.lens.tolist()}"
    if call.status is not None:
        found = call.status.read()
        assert (None if found is None else found.row * 256 + found.reason) == call.word()
    for name, x, before in zip(NAMES, call.out, around, strict=True):
        if x is not None and before is not None:
            inside = torch.zeros_like(before, dtype=torch.bool)
            live = x[: call.num_tokens]
            torch.as_strided(inside, live.shape, live.stride(), live.storage_offset()).fill_(True)
            assert torch.equal(whole(x)[~inside], before[~inside]), f"written outside of {name}"


every_kind = pytest.mark.parametrize("kind", ["decode", "verify", "mixed"])
hostile_too = pytest.mark.parametrize("hostile", [False, True], ids=["", "hostile"])


@pytest.mark.kernel
@hostile_too
@every_kind
def test_as_defined(kind: str, hostile: bool, device: str) -> None:
    for seed in range(CASES // 3):
        assert_as_defined(Call(seed, kind, hostile=hostile, device=device))


@hostile_too
@every_kind
def test_the_reference_as_defined(kind: str, hostile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xkv.launch.compile, "interpreted", lambda: False)
    for seed in range(60):
        assert_as_defined(Call(seed, kind, hostile=hostile, device="cpu"))


@pytest.mark.kernel
@every_kind
def test_kernel_and_reference_choose_the_same(
    kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the definition leaves a choice: where sums decrease."""
    for seed in range(CASES // 3):
        call, other = (Call(seed, kind, hostile=True, device=where) for where in (device, "cpu"))
        call.run()
        with monkeypatch.context() as patched:
            patched.setattr(xkv.launch.compile, "interpreted", lambda: False)
            other.run()
        assert call.written() == other.written(), f"{call.starts.tolist()} {call.lens.tolist()}"


@pytest.mark.kernel
def test_a_long_prefill_among_decodes(device: str) -> None:
    """Tiles that need a search, tiles that need none, and tiles of padding alone."""
    starts = torch.tensor([*range(40), 339, *range(339, 350)], dtype=I32, device=device)
    lens = torch.full((len(starts) - 1,), 400, dtype=I32, device=device)
    got = xkv.expand_queries(starts, lens, num_tokens=700)
    counts = starts.diff().tolist()
    want = [b for b, n in enumerate(counts) for _ in range(n)]
    positions = [400 - n + i for n in counts for i in range(n)]
    padding = [0] * (700 - len(want))
    assert got.token_to_req.tolist() == want + padding
    assert got.positions.tolist() == positions + padding
    assert got.seq_lens.tolist() == [p + 1 for p in positions] + padding
    assert got.positions.dtype == I64


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [I32, I64])
def test_an_aligned_page_table(dtype: torch.dtype, device: str) -> None:
    """In accesses of 16 bytes; and one that begins 4 or 8 bytes later, not so."""
    table = torch.arange(3 * 72, dtype=dtype, device=device).view(3, 72)
    starts, lens = torch.tensor([0, 2, 3, 9], device=device), torch.tensor([9, 9, 9], device=device)
    reqs = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2, 2], device=device)
    for first, is_aligned in ((0, True), (1, False)):
        source = table[:, first : first + 68]
        out = torch.full((11, 72), -7, dtype=dtype, device=device)
        build = expanded.Expansion(
            starts, lens, 11, xkv.ExpandedQueries(None, None, None, out[:, :68]), source
        )
        settings = expanded.config(build, platform(device))
        assert settings.VEC_16B is is_aligned
        got = xkv.expand_queries(
            starts, lens, page_table=source, out=xkv.ExpandedQueries(out_page_table=out[:, :68])
        )
        assert torch.equal(got.out_page_table[:9], source[reqs])
        assert (got.out_page_table[9:] == 0).all()
        assert (out[:, 68:] == -7).all()


@pytest.mark.kernel
def test_requests_without_query_tokens_are_checked(device: str) -> None:
    """No token leads to them; nor is there any token."""
    for tokens, batch in ((0, 6), (0, 10), (1, 10), (40, 23)):
        status = xkv.Status(device)
        starts = torch.tensor([0] * batch + [-3], device=device)
        got = xkv.expand_queries(
            starts, torch.full((batch,), 5, device=device), num_tokens=tokens, status=status
        )
        assert got.token_to_req.tolist() == [0] * tokens
        assert status.read() == xkv.Violation(batch - 1, xkv.Reason.BAD_QUERY)


@pytest.mark.kernel
def test_a_request_of_length_0_is_padding(device: str) -> None:
    """As in a graph's batch, whose padding has as many query tokens as others."""
    status = xkv.Status(device)
    got = xkv.expand_queries(
        torch.tensor([0, 2, 4], device=device), torch.tensor([7, 0], device=device),
        num_tokens=4, status=status,
    )  # fmt: skip
    assert status.read() is None
    assert [x.tolist() for x in got[:3]] == [[0, 0, 1, 1], [5, 6, 0, 0], [6, 7, 0, 0]]


def test_without_num_tokens_all_are_counted(device: str) -> None:
    got = xkv.expand_queries(torch.tensor([0, 3, 4], device=device), torch.tensor([7, 5], device=device))
    assert got.token_to_req.tolist() == [0, 0, 0, 1]
    assert got.out_page_table is None
    for last, size in ((-5, 0), (1, 1)):
        got = xkv.expand_queries(torch.tensor([0, last], device=device), torch.tensor([7], device=device))
        assert [len(x) for x in got[:3]] == [size] * 3


@pytest.mark.gpu
def test_captured_and_repeated(device: str) -> None:
    """A graph's replays read what is in its inputs then; so do calls whose launch is kept."""
    starts, lens = torch.zeros(9, dtype=I32, device=device), torch.zeros(8, dtype=I64, device=device)
    table = torch.arange(8 * 64, dtype=I32, device=device).view(8, 64)
    make = lambda: xkv.ExpandedQueries(  # noqa: E731
        *(torch.empty(32, dtype=I32, device=device) for _ in range(3)),
        torch.empty(32, 64, dtype=I32, device=device),
    )
    out, again = make(), make()
    status = xkv.Status(device)
    options: dict[str, Any] = {"page_table": table, "status": status}
    assert xkv.warmup(xkv.expand_queries, starts, lens, out=out, **options) >= 0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        xkv.expand_queries(starts, lens, out=out, **options)
    for counts in ([4] * 8, [1] * 8, [0, 9, 0, 1, 1, 0, 0, 7]):
        starts[1:] = torch.tensor(counts).cumsum(0)
        lens.copy_(torch.tensor(counts) + 50)
        graph.replay()
        for _ in range(3):
            xkv.expand_queries(starts, lens, out=again, **options)
        want = xkv.expand_queries(starts.cpu(), lens.cpu(), num_tokens=32, page_table=table.cpu())
        for x, y, z in zip(out, again, want, strict=True):
            assert x.tolist() == y.tolist() == z.tolist()
    assert status.read() is None
