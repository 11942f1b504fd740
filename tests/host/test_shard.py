"""`xkv.Shard`: the ranks' shards of a row are a partition of its positions, in every op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import INTERPRETED
from hypothesis import given, settings
from hypothesis import strategies as st

import xkv

POWERS = [1, 2, 4, 16, 64]


def ranks(size: int, interleave: int, source: Any) -> list[xkv.Shard]:
    return [xkv.Shard(size, rank, interleave, source) for rank in range(size)]


# In the interpreter each rank's launch is a signature of its own: an example takes seconds.
FEW = settings(max_examples=4 if INTERPRETED else 50)
SIZES = st.integers(1, 9)
RUNS = st.sampled_from([1, 2, 3, 16, 100])
LENGTHS = st.integers(0, 2000)


@given(size=SIZES, interleave=RUNS, length=LENGTHS)
def test_local_lengths_count_the_positions_of_each_rank(size: int, interleave: int, length: int) -> None:
    owners = [t // interleave % size for t in range(length)]
    found = [shard.local_length(length) for shard in ranks(size, interleave, "local")]
    assert found == [owners.count(rank) for rank in range(size)]
    assert sum(found) == length


@given(size=SIZES, interleave=RUNS, tokens=LENGTHS, rank=st.integers(0, 8))
def test_longest_is_the_longest(size: int, interleave: int, tokens: int, rank: int) -> None:
    shard = xkv.Shard(size, rank % size, interleave)
    longest = shard.longest(tokens)
    assert shard.local_length(longest) <= tokens < shard.local_length(longest + 1)


@given(size=SIZES, interleave=RUNS, lengths=st.lists(LENGTHS, max_size=9))
def test_no_rank_holds_more_than_max_tokens(size: int, interleave: int, lengths: list[int]) -> None:
    for shard in ranks(size, interleave, "local"):
        held = sum(map(shard.local_length, lengths))
        assert held <= shard.max_tokens(sum(lengths), len(lengths)) <= sum(lengths)


def batch(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(len(lengths)), torch.tensor(lengths)


@FEW
@given(
    size=SIZES, interleave=RUNS, data=st.data(), lengths=st.lists(st.integers(0, 300), min_size=1, max_size=4)
)  # fmt: skip
def test_the_ranks_of_a_global_source_show_every_token_once(
    size: int, interleave: int, data: st.DataObject, lengths: list[int]
) -> None:
    """Of slots that are positions, a rank's local slots are 0, 1, ... in turn."""
    rows, lens = batch(lengths)
    source = torch.arange(300).repeat(len(lengths), 1)
    starts = torch.tensor([data.draw(st.integers(0, n)) for n in lengths])
    seen = torch.zeros(sum(lengths), dtype=torch.int64)
    shown = 0
    for shard in ranks(size, interleave, "global"):
        slots = xkv.build_slot_mapping(source, rows, lens, lens, shard=shard).split(lengths)
        indices = xkv.build_kv_indices(source, rows, lens, kv_start=starts, shard=shard)
        for b, n in enumerate(lengths):
            mine = torch.arange(n) // interleave % size == shard.rank
            assert slots[b][mine].tolist() == list(range(shard.local_length(n)))
            assert (slots[b][~mine] == -1).all()
            begin, end = indices.kv_indptr[b : b + 2].tolist()
            first = shard.local_length(int(starts[b]))
            assert indices.kv_indices[begin:end].tolist() == list(range(first, shard.local_length(n)))
        seen += (torch.cat(slots) >= 0).long()
        shown += int(indices.kv_indptr[-1])
    assert (seen == 1).all()
    assert shown == int((lens - starts).sum())


@FEW
@given(
    size=SIZES, page_size=st.sampled_from(POWERS[:4]), interleave=st.sampled_from(POWERS),
    blocks=st.integers(1, 3), source=st.sampled_from(["local", "global", "global, of blocks"]),
    length=st.integers(0, 400), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_a_rank_writes_is_what_it_reads(
    size: int, page_size: int, interleave: int, blocks: int, source: str, length: int, seed: int
) -> None:
    """Every rank writes its tokens by the slots, and finds them, in turn, by the page table."""
    unit = max(page_size, interleave) * blocks  # of the allocation: tokens of a rank
    if unit % page_size:
        unit = page_size
    width = -(-length // (unit * size)) + 1
    ids = torch.randperm(width + 5, generator=torch.Generator().manual_seed(seed))[:width]
    if source == "local":
        table, source_page_size = ids[None], unit
    elif source == "global":
        table = (ids[:, None] * unit * size + torch.arange(unit * size)).view(1, -1)
        source_page_size = 1
    else:
        table, source_page_size = ids[None], unit * size
    rows, lens = batch([length])
    tokens = torch.arange(length)
    read = []
    for shard in ranks(size, interleave, source.split(",")[0]):
        options: dict[str, Any] = {"source_page_size": source_page_size, "shard": shard}
        slots = xkv.build_slot_mapping(table, rows, lens, lens, **options)
        cache = torch.full(((width + 5) * unit * size,), -1)
        cache[slots[slots >= 0]] = tokens[slots >= 0]
        pages = xkv.build_page_table(table, rows, lens, page_size=page_size, **options)
        held = cache.view(-1, page_size)[pages[0].long()].flatten()[: shard.local_length(length)]
        assert held.tolist() == [t for t in range(length) if t // interleave % size == shard.rank]
        read += held.tolist()
    assert sorted(read) == tokens.tolist()


def test_an_empty_shard_is_no_violation() -> None:
    status = xkv.Status("cpu")
    rows, lens = batch([1, 0, 5])
    source = torch.arange(24).view(3, 8)
    for shard in ranks(4, 1, "global"):
        indices = xkv.build_kv_indices(source, rows, lens, shard=shard, status=status)
        assert indices.kv_indptr.tolist() == [0, shard.rank < 1, shard.rank < 1, (shard.rank < 1) * 3 or 1]
        xkv.build_slot_mapping(source, rows, lens, lens, shard=shard, status=status)
        xkv.build_page_table(source, rows, lens, page_size=2, shard=shard, status=status)
    assert status.read() is None


@pytest.mark.parametrize(("source", "most"), [("global", 8), ("local", 32)])
def test_a_length_beyond_the_source_is_reported(source: Any, most: int) -> None:
    """A local source's row of 8 tokens has room for 32 on all 4 ranks; each reports the same rows."""
    table = torch.arange(8)[None]
    for shard in ranks(4, 1, source):
        for length in (most, most + 1):
            status = xkv.Status("cpu")
            indices = xkv.build_kv_indices(table, *batch([length]), shard=shard, status=status)
            assert indices.kv_indptr.tolist() == [0, shard.local_length(most)]
            reason = xkv.Violation(0, xkv.Reason.BAD_LENGTH) if length > most else None
            assert status.read() == reason


def test_one_rank_alone_has_all_of_it() -> None:
    table = torch.arange(64).view(2, 32)
    rows, lens = batch([30, 5])
    for source in ("local", "global"):
        alone = xkv.Shard(1, 0, 3, source)  # type: ignore[arg-type]
        got = xkv.build_page_table(table, rows, lens, page_size=4, shard=alone)
        assert torch.equal(got, xkv.build_page_table(table, rows, lens, page_size=4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 0), ValueError, "size must be from 1 to 1024, got 0"),
        ((2, 2), ValueError, "rank must be from 0 to 1, got 2"),
        ((2, -1), ValueError, "rank must be from 0 to 1, got -1"),
        ((2, True), TypeError, "rank must be an int, got bool"),
        ((2.0, 1), TypeError, "size must be an int, got float"),
        ((2, 1, 0), ValueError, "interleave must be from 1 to 65536, got 0"),
        ((2, 1, 1, "Local"), ValueError, "source must be 'local' or 'global', got 'Local'"),
        ((2, 1, 1, None), TypeError, "source must be a str, got NoneType"),
    ],
)
def test_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        xkv.Shard(*arguments)


def test_lengths_refused() -> None:
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        xkv.Shard(2, 0).local_length(-1)
    with pytest.raises(TypeError, match="tokens must be an int, got float"):
        xkv.Shard(2, 0).longest(1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shard": (2, 1)}, TypeError, r"shard must be an xkv\.Shard, got tuple"),
        (
            {"shard": xkv.Shard(2, 1, 4)}, ValueError,
            r"source_page_size must be a multiple of shard\.interleave=4, got 1",
        ),
        (
            {"shard": xkv.Shard(2, 1, 24, "global")}, ValueError,
            r"page_size must be a multiple or a divisor of shard\.interleave=24, got 16",
        ),
        (
            {"shard": xkv.Shard(2, 1, 4, "global"), "source_page_size": 4}, ValueError,
            r"source_page_size must be 1 or a multiple of shard\.size \* shard\.interleave = 8 .*got 4",
        ),
        (
            {"shard": xkv.Shard(2, 1, 1, "global"), "source_page_size": 48}, ValueError,
            r"must be a multiple or a divisor of page_size=16, got 48 \(24 tokens of each rank\)",
        ),
        (
            {"shard": xkv.Shard(2, 1, 1, "global"), "token_map": torch.arange(9)}, ValueError,
            r"token_map must be None with shard\.source='global'.*got a tensor of 9 ids",
        ),
    ],
)  # fmt: skip
def test_refused_by_the_ops(options: dict[str, Any], error: type[Exception], message: str) -> None:
    table = torch.arange(96)[None]
    for op in (xkv.build_page_table, xkv.build_kv_indices):
        with pytest.raises(error, match=message):
            op(table, *batch([9]), page_size=16, **options)


CONTEXT = 40
NAMES = [spec.name for spec in xkv.backends("cpu")]


def builder(name: str, shard: xkv.Shard, **options: Any) -> xkv.MetadataBuilder:
    """Of requests on rows of 64 tokens, in pages of all ranks of 8 tokens and more."""
    source = torch.arange(4 * 64, dtype=torch.int32).view(4, 64)
    return xkv.MetadataBuilder(
        name, source, max_batch_size=4, max_context_len=CONTEXT, shard=shard, **options
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_builder_writes_local_lengths(name: str) -> None:
    lens = [0, 1, 3, 33]
    verify = {"seq_lens_delta": 4, "query_lens": 4}
    for shard in ranks(4, 1, "global"):
        made = builder(name, shard)
        for options in ({}, verify):
            meta = made.build(*batch(lens), **options)
            whole = [n + options.get("seq_lens_delta", 0) for n in lens]
            own = [shard.local_length(n) for n in whole]
            local = [max(n, made.spec.min_seq_len) for n in own]  # what is written
            sums = torch.tensor([0, *local]).cumsum(0).tolist()
            assert meta.max_seq_len == shard.local_length(CONTEXT) == 10
            assert meta.empty_rows is not None
            assert meta.empty_rows.dtype == torch.bool
            assert meta.empty_rows.tolist() == [n == 0 for n in own]
            if meta.cu_seqlens_q is not None:
                assert meta.cu_seqlens_q.tolist() == [n * options.get("query_lens", 1) for n in range(5)]
            if meta.cache_seqlens is not None:
                assert meta.cache_seqlens.tolist() == local
            if meta.cu_seqlens_k is not None:
                assert meta.cu_seqlens_k.tolist() == sums
            if meta.kv_indptr is not None:
                pages = torch.tensor([0, *(-(-n // made.page_size) for n in local)]).cumsum(0)
                assert meta.kv_indptr.tolist() == pages.tolist()
        made.check()


def test_a_builder_of_one_rank_has_no_mask() -> None:
    assert builder("flash_attention", xkv.Shard(1, 0)).build(*batch([3])).empty_rows is None


def test_a_mask_of_the_window() -> None:
    """A window of 2 tokens has tokens of 2 of 4 ranks."""
    shown = []
    for shard in ranks(4, 1, "global"):
        meta = builder("flash_attention", shard, sliding_window=2).build(*batch([5, 1]))
        assert meta.window is not None
        shown.append(meta.window.empty_rows.tolist())
        assert meta.window.cache_seqlens.tolist() == [
            int(not empty) + int(offset)
            for empty, offset in zip(shown[-1], meta.window.kv_start_offset.tolist(), strict=True)
        ]
    assert shown == [[False, False], [True, True], [True, True], [False, True]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shard": 3}, TypeError, r"shard must be an xkv\.Shard, got int"),
        (
            {"shard": xkv.Shard(2, 1, 3)}, ValueError,
            r"source_page_size must be a multiple of shard\.interleave=3, got 1",
        ),
        (
            {"shard": xkv.Shard(2, 1, 1, "global"), "window_token_map": torch.arange(9)}, ValueError,
            r"window_token_map must be None with shard\.source='global'",
        ),
    ],
)  # fmt: skip
def test_refused_by_the_builder(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        builder("flash_attention", **options)


def test_a_builder_with_a_shard_takes_no_max_tokens() -> None:
    made = builder("triton", xkv.Shard(2, 1))
    with pytest.raises(ValueError, match="max_tokens must be None for a builder with a shard, got 9"):
        made.build(*batch([3]), max_tokens=9)
