"""`MetadataBuilder.extend`: the same as a build, whatever came before, where the promise is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import GPUS, INTERPRETED

import xkv
from xkv import cuda, rocm
from xkv.launch import launch
from xkv.params import LAST_ENTRIES, OUTPUTS

WIDTH, ROWS, MAX_BATCH = 400, 6, 6
CONTEXT = WIDTH - 10
# every output that a table can have, padding, int64 ids, empty rows that are read
OWN = xkv.BackendSpec(
    "own", "table", (1, 4, 32), 4, ("cache_seqlens", "cu_seqlens_k", "cu_seqlens_q", "kv_last_page_len"),
    id_dtype="int64", width_tokens=64, pad_to_tokens=32, pad_id=3, min_seq_len=1,
)  # fmt: skip
NEVER = -7  # in entries that nothing writes


def specs() -> Iterator[xkv.BackendSpec]:
    yield OWN
    yield from (spec for spec in xkv.backends("cuda" if GPUS else "cpu") if spec.form == "table")


def drawn_options(rng: random.Random, page_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        options["sliding_window"] = rng.choice([1, 5, 40, 100])
        layout = rng.random()
        if layout < 0.5:
            options["window_is_absolute"] = True
        if 0.2 < layout < 0.7:
            options["sink_tokens"] = page_size * rng.choice([1, 2])
    kind = rng.random()
    if kind < 0.25 and "sink_tokens" not in options:
        options["shard"] = rng.choice(
            [xkv.Shard(2, 1), xkv.Shard(2, 0, 4, "global"), xkv.Shard(3, 1, 1, "global")]
        )
    elif kind < 0.45:
        options["draft"] = xkv.DraftTree(topk=2, num_steps=3, step=rng.randint(1, 3), page_size=page_size)
    elif kind < 0.6:
        options["slot_mapping"] = xkv.SlotMapping(64)
    elif kind < 0.7:
        options["source_page_size"] = page_size if page_size > 1 else 4
    return options


class Pair:
    """A builder that extends, and one like it that builds."""

    def __init__(self, rng: random.Random, device: str) -> None:
        self.rng, self.device = rng, device
        spec = rng.choice(list(specs()))
        page_size = rng.choice([size for size in spec.page_sizes if size <= 64] or [spec.page_size])
        self.options = drawn_options(rng, page_size)
        self.source = torch.randint(0, 5000, (ROWS, WIDTH), dtype=torch.int32, device=device)
        self.source[torch.rand(self.source.shape, device=device) < 0.02] = -1
        self.made = [
            xkv.MetadataBuilder(
                spec, self.source, max_batch_size=MAX_BATCH, max_context_len=CONTEXT, page_size=page_size,
                **self.options,
            )
            for _ in range(2)
        ]  # fmt: skip
        for builder in self.made:
            for view in builder.member.buffers.views:
                view.out.fill_(NEVER)
        self.lens = torch.zeros(MAX_BATCH, dtype=torch.int64, device=device)

    def step(self) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, Any]]:
        """Rows, lengths and options: mostly a few tokens more, sometimes anything."""
        rng, ints = self.rng, lambda low, high, n: torch.randint(low, high, (n,), device=self.device)
        batch = rng.randint(0, MAX_BATCH)
        if rng.random() < 0.7:
            self.lens = self.lens + torch.tensor(
                [rng.choice([0, 1, 1, 1, 5, 30]) for _ in range(MAX_BATCH)], device=self.device
            )
        else:
            self.lens = ints(-3, CONTEXT + 9, MAX_BATCH)
        rows = torch.arange(ROWS, device=self.device) if rng.random() < 0.7 else ints(-1, ROWS + 1, MAX_BATCH)
        if rng.random() < 0.7 or "draft" in self.options:
            more: dict[str, Any] = {"query_lens": rng.choice([1, 1, 3])}
        else:
            more = {"query_lens": ints(-1, 4, batch), "query_lens_sign": rng.choice([-1, 0, 1])}
        more["seq_lens_delta"] = rng.choice([0, 0, 1, 4])
        if rng.random() < 0.15:
            more["kv_start"] = ints(0, 60, batch)
        return (rows[:batch], self.lens[:batch]), more

    def same(self, batch: int) -> None:
        """All that a build writes of so many rows is there, and nothing was written where no step would."""
        (ours, theirs), rows = self.made, batch * self.made[0].member.topk
        for a, b in zip(ours.member.buffers.views, theirs.member.buffers.views, strict=True):
            for name, size in OUTPUTS.items():
                x, y = getattr(a, name), getattr(b, name)
                assert (x is None) == (y is None)
                assert x is None or torch.equal(x[: rows + size], y[: rows + size]), name
            # entries past a row's own are whatever a step before has left: what the other has never written
            # may differ, so that the other has all of the same steps
            assert torch.equal(a.out[:rows], b.out[:rows])
        for a, b in zip(ours.member.buffers.slot_views, theirs.member.buffers.slot_views, strict=True):
            assert torch.equal(a.out, b.out)


@pytest.mark.parametrize("seed", range(12 if INTERPRETED else 60))
def test_an_extension_equals_a_build(seed: int, device: str) -> None:
    """Of any rows and lengths: while the source does not change, no promise can be broken."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    pair = Pair(rng, device)
    for _ in range(6 if INTERPRETED else 12):
        inputs, more = pair.step()
        ours, theirs = pair.made
        (ours.build if rng.random() < 0.2 else ours.extend)(*inputs, **more)
        theirs.build(*inputs, **more)
        pair.same(len(inputs[0]))


@pytest.mark.kernel
@pytest.mark.parametrize("arch", ["sm90", "sm100", "gfx942", "gfx950"])
def test_every_tuning_row(arch: str, device: str) -> None:
    """The tables' own rows, with their real block sizes; warps do not change the meaning."""
    for row in {**cuda.TUNING, **rocm.TUNING}[arch]:
        if row.access_pattern != "extension":
            continue
        (ours, _), (theirs, _) = builder_of(device), builder_of(device)
        lens = [300, 5, 0, 64, 200]
        for builder in (ours, theirs):
            builder.build(*vectors(device, [0, 1, 2, 3, 4], lens))
        for rows, more in (([0, 1, 2, 3, 4], 1), ([4, 1, 2, 0, 3], 40)):
            lens = [n + more for n in lens]
            inputs = (*vectors(device, rows, lens), 0, 1, 0, None, None)
            launch.launch(ours._steps.make(inputs, True).fill(inputs), row, xkv.platform(device))
            theirs.build(*inputs[:2])
            assert torch.equal(ours._views[0].out, theirs._views[0].out)
            assert torch.equal(ours._views[0].cu_seqlens_k, theirs._views[0].cu_seqlens_k)


def builder_of(device: str, page_size: int = 4, **options: Any) -> tuple[xkv.MetadataBuilder, torch.Tensor]:
    source = torch.arange(ROWS * WIDTH, dtype=torch.int32, device=device).view(ROWS, WIDTH)
    made = xkv.MetadataBuilder(
        "flash_attention", source, max_batch_size=MAX_BATCH, max_context_len=WIDTH, page_size=page_size,
        **options,
    )  # fmt: skip
    return made, source


def vectors(device: str, rows: list[int], lens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(rows, device=device), torch.tensor(lens, device=device)


def changed(builder: xkv.MetadataBuilder) -> list[list[int]]:
    """The entries of each row that were written since the last call."""
    (view,) = builder.member.buffers.views
    found = [row.nonzero().flatten().tolist() for row in view.out != NEVER]
    view.out.fill_(NEVER)
    return found


@pytest.mark.parametrize("page_size", [1, 4, 64])
def test_a_step_writes_its_last_entries_alone(page_size: int, device: str) -> None:
    builder, _ = builder_of(device, page_size)
    lens = [3 * page_size + 30, page_size, 0, 300]
    builder.build(*vectors(device, [0, 2, 3, 5], lens))
    changed(builder)
    for _ in range(5):
        lens = [n + 1 for n in lens]
        builder.extend(*vectors(device, [0, 2, 3, 5], lens))
        for entries, length in zip(changed(builder), lens, strict=False):
            pages = -(-length // page_size)
            assert len(entries) <= LAST_ENTRIES
            assert entries == list(range(pages - len(entries), pages))  # the last
            assert entries or length % page_size != 1  # a token on a new page


@pytest.mark.parametrize(
    ("rows", "lens"),
    [
        ([1, 0, 2], [300, 300, 300]), ([0, 1, 2], [300, 250, 200]), ([0, 4, 2], [301, 301, 301]),
        ([0, 1, 2, 3], [301, 301, 301, 40]), ([0, 1, 9], [301, 301, 301]),
    ],
    ids=["swapped", "shorter", "another row", "one row more", "no such row"],
)  # fmt: skip
def test_what_does_not_fit_is_written_whole(rows: list[int], lens: list[int], device: str) -> None:
    builder, _ = builder_of(device)
    builder.build(*vectors(device, [0, 1, 2], [300, 300, 300]))
    changed(builder)
    builder.extend(*vectors(device, rows, lens))
    for b, entries in enumerate(changed(builder)[: len(rows)]):
        is_like_before = b < 3 and rows[b] == b and lens[b] >= 299
        pages = -(-lens[b] // 4) if rows[b] < ROWS else 0
        assert (len(entries) <= LAST_ENTRIES) if is_like_before else (entries == list(range(pages)))


def test_rows_of_an_older_build_are_written_whole(device: str) -> None:
    """A request that a smaller build does not have may have finished, and another have its row."""
    builder, source = builder_of(device)
    builder.build(*vectors(device, [0, 1, 2], [300, 300, 300]))
    builder.build(*vectors(device, [0, 1], [301, 301]))
    source[2] += 4000
    table = builder.extend(*vectors(device, [0, 1, 2], [302, 302, 302])).page_table
    assert torch.equal(table[2, :76], source[2, :302:4] // 4)
    # nor does an extension make it known what the last build did not have
    source[2] += 4000
    table = builder.extend(*vectors(device, [0, 1, 2], [303, 303, 303])).page_table
    assert torch.equal(table[2, :76], source[2, :303:4] // 4)


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (0, {"seq_lens_delta": 40, "query_lens": 40}),
        (0, {"seq_lens_delta": 40}),
        (40, {"query_lens": 40}),
    ],
    ids=["verify", "one query token", "lengths with drafts"],
)
def test_drafts_that_were_rejected(more: int, options: dict[str, int], device: str) -> None:
    """Slots of drafts may be others in the next step: of more of them than an extension always writes."""
    builder, source = builder_of(device, page_size=1)
    rows, lens = vectors(device, [3, 1], [200, 100])
    rng = random.Random(0)
    for n in range(5):
        for b, row in enumerate(rows.tolist()):
            begin = int(lens[b])
            source[row, begin : begin + 40] = torch.randint(0, 9000, (40,), dtype=torch.int32, device=device)
        step = builder.extend if n else builder.build
        table = step(rows, lens + more, **options).page_table
        for b, row in enumerate(rows.tolist()):
            end = int(lens[b]) + 40
            assert torch.equal(table[b, :end], source[row, :end])
        lens = lens + torch.tensor([rng.randint(1, 5), rng.randint(1, 5)], device=device)


def test_a_drafts_own_pages_move(device: str) -> None:
    """A branch that needs a page more has all of its pages elsewhere, the one that it began on too."""
    builder, source = builder_of(device, 32, draft=xkv.DraftTree(topk=3, num_steps=8, step=8, page_size=32))
    builder.build(*vectors(device, [2], [32 + 20]))  # 20 + 8 tokens: one page
    table = builder.extend(*vectors(device, [2], [32 + 26])).page_table  # 26 + 8: two
    for branch in range(3):
        assert table[branch, :3].tolist() == [int(source[2, x]) // 32 for x in own_pages(branch)]


def own_pages(branch: int) -> tuple[int, int, int]:
    """Where the prefix's whole page and the two of a branch begin."""
    return 0, 32 + branch * 64, 64 + branch * 64


def test_sinks_stay(device: str) -> None:
    """Of a window shorter than the tokens that an extension always writes."""
    builder, source = builder_of(device, sliding_window=5, sink_tokens=8)
    for length in range(100, 110):
        view = (builder.extend if length > 100 else builder.build)(*vectors(device, [1], [length])).window
        begins = [0, 4, *range((length - 5) // 4 * 4, length, 4)]
        assert view.page_table[0, : len(begins)].tolist() == [int(source[1, x]) // 4 for x in begins]


@pytest.mark.parametrize(
    ("before", "after"),
    [((31, 1), (33, 1)), ((90, 40), (51, 1)), ((60, 1), (40, 1))],
    ids=["a token past its padding", "drafts that were rejected", "shorter"],
)
def test_padding_is_a_builds(before: tuple[int, int], after: tuple[int, int], device: str) -> None:
    """Up to the next multiple of 32 entries, which are more than an extension always writes."""
    source = torch.arange(1, 1 + WIDTH, dtype=torch.int32, device=device).view(1, WIDTH)
    builder = xkv.MetadataBuilder(OWN, source, max_batch_size=1, max_context_len=WIDTH, page_size=1)
    builder._views[0].out.fill_(NEVER)  # as ids of a longer request may lie there
    for step, (length, queries) in ((builder.build, before), (builder.extend, after)):
        table = step(*vectors(device, [0], [length]), query_lens=queries).page_table
    end = -(-after[0] // 32) * 32
    assert table[0, :end].tolist() == [*range(1, 1 + after[0]), *[OWN.pad_id] * (end - after[0])]


def test_a_row_that_was_empty(device: str) -> None:
    """And has one entry all the same, for a backend of no empty rows; it is right once the row has grown."""
    source = torch.arange(ROWS * WIDTH, dtype=torch.int32, device=device).view(ROWS, WIDTH)
    builder = xkv.MetadataBuilder(OWN, source, max_batch_size=1, max_context_len=WIDTH, page_size=4)
    start = torch.tensor([50], device=device)
    builder.build(*vectors(device, [2], [50]), kv_start=start)
    table = builder.extend(*vectors(device, [2], [130]), kv_start=start).page_table
    assert torch.equal(table[0, :21], (source[2, 48:130:4] // 4).to(torch.int64))


def test_a_stream_is_built(device: str) -> None:
    source = torch.arange(64, dtype=torch.int32, device=device).view(2, 32)
    sizes = {"max_batch_size": 2, "max_context_len": 32, "page_size": 4}
    builder = xkv.MetadataBuilder("flashinfer_mla" if not torch.version.hip else "aiter_mla", source, **sizes)
    assert not builder.extends
    builder.build(*vectors(device, [1, 0], [7, 3]))
    meta = builder.extend(*vectors(device, [1, 0], [9, 3]))
    assert meta.kv_indices[:4].tolist() == [8, 9, 10, 0]


def test_a_group_of_both(device: str) -> None:
    tables, source = builder_of(device, slot_mapping=xkv.SlotMapping(8))
    stream = xkv.MetadataBuilder(
        "aiter_mla" if torch.version.hip else "flashinfer_mla", source, max_batch_size=4,
        max_context_len=WIDTH, page_size=1,
    )  # fmt: skip
    group = xkv.MetadataGroup([tables, stream])
    group.build(*vectors(device, [3, 1], [100, 50]))
    changed(tables)
    first, second = group.extend(*vectors(device, [3, 1], [101, 51]))
    assert max(map(len, changed(tables))) <= LAST_ENTRIES
    assert first.slot_mapping[:2].tolist() == [3 * WIDTH + 100, WIDTH + 50]
    assert second.kv_indptr.tolist() == [0, 101, 152]
    assert torch.equal(second.kv_indices[101:152], source[1, :51])


@pytest.mark.parametrize("in_group", [False, True])
def test_a_broken_promise_is_reported(in_group: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XKV_CHECK", "1")
    builder, source = builder_of(device, **({"slot_mapping": xkv.SlotMapping(8)} if in_group else {}))
    builder.build(*vectors(device, [0, 1, 2], [300, 200, 100]))
    builder.extend(*vectors(device, [0, 1, 2], [301, 201, 101]))
    source[1] += 4000  # the row was given to another request
    with pytest.raises(
        xkv.launch.verify.StaleTableError,
        match=r"row 1 of the batch is stale: entry 0 of its table is 100, and a build writes 1100\. .*build",
    ):
        builder.extend(*vectors(device, [0, 1, 2], [302, 202, 102]))
    builder.build(*vectors(device, [0, 1, 2], [302, 202, 102]))
    builder.extend(*vectors(device, [0, 1, 2], [303, 203, 103]))


@pytest.mark.gpu
def test_in_graphs(device: str) -> None:
    """A build and extensions, each in a graph, in any order."""
    builder, source = builder_of(device, page_size=1)
    rows, lens = vectors(device, [0, 1, 2, 3], [30, 50, 10, 300])
    build = builder.capture(4, req_pool_indices=rows, seq_lens=lens)
    extend = builder.capture(4, extends=True, req_pool_indices=rows, seq_lens=lens)
    rng = random.Random(0)
    for _ in range(50):
        if rng.random() < 0.3:
            source.copy_(torch.randint(0, 9000, source.shape, dtype=torch.int32, device=device))
            lens.copy_(torch.randint(1, 300, (4,), device=device))
            rows.copy_(torch.randperm(ROWS, device=device)[:4])
            meta = build.replay()
        else:
            lens.add_(1)
            meta = extend.replay()
        for b, (row, length) in enumerate(zip(rows.tolist(), lens.tolist(), strict=True)):
            assert torch.equal(meta.page_table[b, :length], source[row, :length])
    builder.check()
