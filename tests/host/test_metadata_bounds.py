"""MetadataBuilder: what bounds a row: windows over several query tokens, host bounds, starts inside a
page."""

from __future__ import annotations

import pytest
import torch
from metadata_steps import CONTEXT, LENS, NAMES, SPECS, batch, check, make, source

import xkv
from xkv.status import Reason

pytestmark = pytest.mark.usefixtures("every_backend")

WINDOW = 70
RAGGED = [3, 0, 7, 1, 2]


def begins(ends: list[int], queries: list[int], prefix: bool) -> list[int]:
    """The first token that any of a row's query tokens, the last ones before ``ends``, sees."""
    first = [
        end - 1 if prefix or not q else end - q for end, q in zip(ends, queries, strict=True)
    ]  # position of the first query token
    return [max(p + 1 - WINDOW, 0) for p in first]


@pytest.mark.parametrize("name", NAMES)
def test_window_covers_every_query_token(name: str, device: str) -> None:
    """In every mode; steps like an earlier one but for the number of query tokens among them."""
    builder = make(name, device, sliding_window=WINDOW)
    prefix = builder.spec.window_is_prefix_only
    rows, lens = batch(device)
    ragged = torch.tensor(RAGGED, device=device)
    for draft in (1, 4, 100, 2):
        meta = builder.build(rows, lens, seq_lens_delta=draft, query_lens=draft)  # verify
        ends = [n + draft for n in LENS]
        check(builder, meta.window, rows, begins(ends, [draft] * 5, prefix), ends)

    meta = builder.build(rows, lens, query_lens=ragged, query_lens_sign=1)  # ragged verify
    ends = [n + q for n, q in zip(LENS, RAGGED, strict=True)]
    check(builder, meta.window, rows, begins(ends, RAGGED, prefix), ends)

    meta = builder.build(rows, lens, query_lens=ragged)  # prefill: the query tokens are counted in
    check(builder, meta.window, rows, begins(LENS, RAGGED, prefix), LENS)

    longer = [n + 9 for n in LENS]  # draft extend: the prefix, and 8 tokens from the first query token on
    given = torch.tensor(longer, device=device)
    meta = builder.build(rows, given, query_lens=ragged, query_lens_sign=-1, seq_lens_delta=8)
    ends = [n - q + 8 for n, q in zip(longer, RAGGED, strict=True)]
    check(builder, meta.window, rows, begins(ends, [8] * 5, prefix), ends)
    builder.check()


def test_window_of_one_row(device: str) -> None:
    """A window of 8 over 40 tokens and 4 draft tokens: the first of them, token 40, sees 33 to 40."""
    table = source(device, 1)
    builder = xkv.MetadataBuilder(
        "flash_attention", table, max_batch_size=1, max_context_len=CONTEXT, page_size=1, sliding_window=8
    )
    row, length = torch.tensor([2], device=device), torch.tensor([40], device=device)
    meta = builder.build(row, length, seq_lens_delta=4, query_lens=4)
    assert meta.window.cache_seqlens.tolist() == [11]
    assert meta.window.page_table[0, :11].tolist() == table[2, 33:44].tolist()
    builder.check()


@pytest.mark.parametrize("name", NAMES)
def test_host_bound_of_the_context(name: str, device: str) -> None:
    """A row beyond ``max_context_len`` is cut to it everywhere, and reported, whatever the source holds."""
    table = source(device, 64)
    sizes = {"max_batch_size": 2, "max_context_len": 64, "sliding_window": CONTEXT}
    builder = xkv.MetadataBuilder(SPECS[name], table, **sizes)
    rows, _ = batch(device, [0, 0])
    for lens, delta in (([100, 10], 0), ([60, 6], 40)):  # the second step is like the first
        meta = builder.build(rows, torch.tensor(lens, device=device), seq_lens_delta=delta)
        ends = [min(n + delta, 64) for n in lens]
        check(builder, meta, rows, [0, 0], ends)
        check(builder, meta.window, rows, [0, 0], ends)
        assert builder.status.read() == (0, Reason.BAD_LENGTH)
        builder.status.clear()
    builder.build(rows, torch.tensor([64, 10], device=device))
    builder.check()


@pytest.mark.parametrize("name", [n for n in NAMES if SPECS[n].form == "csr"])
def test_host_bound_of_the_tokens(name: str, device: str) -> None:
    """Where ``kv_indices`` is a view of the length that the host gave, its rows do not pass its end."""
    builder = make(name, device, 1)
    rows, lens = batch(device)
    total = sum(max(n, SPECS[name].min_seq_len) for n in LENS)
    for most in (total, 500, total):
        meta = builder.build(rows, lens, max_tokens=most)
        assert meta.kv_indices.shape == (most,)
        assert meta.kv_indptr[-1] == most
        assert builder.status.read() == (None if most == total else (2, Reason.TRUNCATED))
        builder.status.clear()
    assert builder.build(rows, lens).kv_indptr[-1] == total  # a step without a bound has none


@pytest.mark.parametrize("name", NAMES)
def test_start_inside_a_page(name: str, device: str) -> None:
    builder = make(name, device)
    P, (rows, lens) = builder.page_size, batch(device)
    starts = [P + P // 2, 0, 2 * P, 5 % P, 0]
    meta = builder.build(rows, lens, kv_start=torch.tensor(starts, device=device))
    check(builder, meta, rows, starts, LENS)
    assert meta.kv_start_offset.tolist() == [P // 2, 0, 0, 5 % P, 0]
    inside = P > 1 and not builder.spec.skips_tokens
    assert builder.status.read() == ((0, Reason.UNALIGNED_START) if inside else None)
    builder.status.clear()
    assert builder.build(rows, lens).kv_start_offset is None  # nothing stale
    builder.build(rows, lens, kv_start=torch.tensor([P, 0, P, 0, 0], device=device))
    builder.check()


@pytest.mark.parametrize("name", NAMES)
def test_start_of_a_window_inside_a_page(name: str, device: str) -> None:
    """A window moves by a token at a time, and its reader masks what is before it: nothing is reported."""
    builder = make(name, device, sliding_window=WINDOW)
    P, (rows, lens) = builder.page_size, batch(device)
    meta = builder.build(rows, lens)
    assert meta.window.kv_start_offset.tolist() == [max(n - WINDOW, 0) % P for n in LENS]
    assert meta.kv_start_offset is None
    builder.check()


def test_negative_query_length_is_reported(device: str) -> None:
    builder = make("flash_attention", device)
    rows, lens = batch(device)
    meta = builder.build(rows, lens, query_lens=torch.tensor([1, 2, -3, 1, -1], device=device))
    assert meta.cu_seqlens_q.tolist() == [0, 1, 3, 3, 4, 4]
    assert builder.status.read() == (2, Reason.BAD_QUERY)


def test_last_page_lengths_of_flashinfer(device: str) -> None:
    """1 to the page size, also of an empty row."""
    builder = make("flashinfer_mla", device)
    rows, lens = batch(device)
    assert builder.build(rows, lens).kv_last_page_len.tolist() == [44, 1, 1, 64, 1]
