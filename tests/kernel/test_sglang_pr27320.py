"""What SGLang's kernel of PR #27320 means, entry for entry: create_flashmla_kv_indices_triton.

Its serial version, before PR #27320: one program a request copies ``cdiv(len, PAGED_SIZE)`` entries,
``req_to_token[row, start + i * PAGED_SIZE] // PAGED_SIZE``, and touches nothing else.
"""

from __future__ import annotations

import building
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xkv
from xkv.cli.check import memory

WIDTH = 200  # tokens of a row


def serial(
    req_to_token: list[list[int]], rows: list[int], lens: list[int], starts: list[int],
    out: torch.Tensor, page_size: int,
) -> None:  # fmt: skip
    for pid, (row, length, start) in enumerate(zip(rows, lens, starts, strict=True)):
        ids = req_to_token[row][start : start + length : page_size]
        out[pid, : len(ids)] = torch.tensor([x // page_size for x in ids], dtype=out.dtype)


@settings(max_examples=60)
@given(data=st.data(), page_size=st.sampled_from([1, 2, 8, 16, 32, 64, 128]))
def test_equals_the_serial_kernel(data: st.DataObject, page_size: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = data.draw(st.integers(0, 9))
    each = lambda element: data.draw(st.lists(element, min_size=batch, max_size=batch))  # noqa: E731
    rows = each(st.integers(0, 5))
    pages = each(st.integers(0, WIDTH // page_size // 2))
    starts = [n * page_size for n in pages]  # SGLang's callers start at pages
    lens = [data.draw(st.integers(0, WIDTH - start)) for start in starts]
    source = building.paged_source(
        data.draw(st.randoms(use_true_random=False)), 6, WIDTH, page_size, 1, torch.int32, device
    )
    want = memory.guarded(batch, WIDTH, WIDTH + 5, torch.int32, "cpu")
    serial(source.tolist(), rows, lens, starts, want, page_size)
    got = memory.guarded(batch, WIDTH, WIDTH + 5, torch.int32, device)
    start = torch.tensor(starts, dtype=torch.int64, device=device)
    xkv.build_page_table(
        source, torch.tensor(rows, dtype=torch.int64, device=device),
        torch.tensor(lens, dtype=torch.int64, device=device), page_size=page_size, out=got,
        kv_start=start, seq_lens_delta=start,  # its lengths count from the start
    )  # fmt: skip
    assert torch.equal(memory.whole(got).cpu(), memory.whole(want))


@pytest.mark.parametrize("page_size", [1, 32, 64])
def test_every_length(page_size: int, device: str) -> None:
    """All lengths of a row at once: one request each."""
    generator = torch.Generator().manual_seed(0)
    pages = torch.randperm(WIDTH + 1, generator=generator)[: WIDTH // page_size + 1]
    row = (pages[:, None] * page_size + torch.arange(page_size)).flatten()[:WIDTH].to(torch.int32)
    lens = torch.arange(WIDTH + 1)
    want = memory.guarded(WIDTH + 1, WIDTH, WIDTH, torch.int32, "cpu")
    serial([row.tolist()], [0] * (WIDTH + 1), lens.tolist(), [0] * (WIDTH + 1), want, page_size)
    got = memory.guarded(WIDTH + 1, WIDTH, WIDTH, torch.int32, device)
    xkv.build_page_table(
        row[None].to(device), (lens * 0).to(device), lens.to(device), page_size=page_size, out=got
    )
    assert torch.equal(memory.whole(got).cpu(), memory.whole(want))
