"""`expand_queries` beside its definition in plain Python, on hostile data, between guard words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import GPUS

import xkv
from xkv.cli.check.expanded_call import KINDS, ExpandedCall
from xkv.launch import expanded
from xkv.platforms.detect import platform

I32, I64 = torch.int32, torch.int64
CASES = 300 if GPUS else 60
every_kind = pytest.mark.parametrize("kind", KINDS)
hostile_too = pytest.mark.parametrize("hostile", [False, True], ids=["", "hostile"])


@pytest.mark.kernel
@hostile_too
@every_kind
def test_as_defined(kind: str, hostile: bool, device: str) -> None:
    for seed in range(CASES // 3):
        ExpandedCall(seed, kind, hostile=hostile, device=device).check()


@hostile_too
@every_kind
def test_the_reference_as_defined(kind: str, hostile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xkv.launch.compile, "interpreted", lambda: False)
    for seed in range(60):
        ExpandedCall(seed, kind, hostile=hostile, device="cpu").check()


@pytest.mark.kernel
@every_kind
def test_kernel_and_reference_choose_the_same(
    kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the definition leaves a choice: where sums decrease."""
    for seed in range(CASES // 3):
        call, other = (ExpandedCall(seed, kind, hostile=True, device=where) for where in (device, "cpu"))
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
