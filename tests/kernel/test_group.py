"""`MetadataGroup` and slots in a builder's launch: all equals what each builder and op writes alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import xkv
from xkv.metadata.group import MetadataGroup
from xkv.params import OUTPUTS

pytestmark = pytest.mark.usefixtures("device")

BACKENDS = ("flash_attention", "trtllm_mha", "flashinfer_mla", "flashinfer_decode", "aiter_unified")
I32, I64 = torch.int32, torch.int64


class Drawn:
    """A builder of a group, what it is made with, and the same without slots."""

    def __init__(self, rng: random.Random, device: str, max_batch: int) -> None:
        specs = [spec for spec in xkv.backends(device) if spec.name in BACKENDS]
        spec = rng.choice(specs)
        self.backend = spec.name
        page = rng.choice([size for size in spec.page_sizes if size <= 64])
        self.unit = rng.choice([1, 1, page, 4 * page, 3 * page])
        self.shard = rng.choice([None, None, xkv.Shard(2, 1, 1, "local")])
        if self.shard is None and self.unit == 1:
            self.shard = rng.choice([None, xkv.Shard(3, 2, 1, "global")])
        tokens = rng.choice([64, 200, 700])
        width = -(-tokens // self.unit)
        self.source = torch.randint(0, 500, (5, width), dtype=rng.choice([I32, I64]), device=device)
        # a token without an id, now and then
        self.source[torch.rand(self.source.shape, device=device) < 0.02] = -1
        is_local = self.shard is not None and self.shard.source == "local"
        room = width * self.unit * (2 if is_local else 1)
        self.page_map = torch.randperm(600, device=device) if rng.random() < 0.3 else None
        self.options: dict[str, Any] = {
            "max_batch_size": max_batch, "max_context_len": rng.randint(1, room), "page_size": page,
            "source_page_size": self.unit, "shard": self.shard, "page_map": self.page_map,
            "sliding_window": rng.choice([None, None, rng.randint(1, room)]),
        }  # fmt: skip
        self.slots: xkv.SlotMapping | None = None
        if rng.random() < 0.7:
            dtype, pad, top = (
                rng.choice(["int32", "int64"]),
                rng.choice([None, -1, 7]),
                rng.choice([None, 50]),
            )
            self.slots = xkv.SlotMapping(max_batch * 6, dtype, pad, top)
        self.with_slots = self.made(slot_mapping=self.slots)
        self.alone = self.made()

    def made(self, **more: Any) -> xkv.MetadataBuilder:
        return xkv.MetadataBuilder(self.backend, self.source, **self.options, **more)


def buffers(builder: xkv.MetadataBuilder) -> list[torch.Tensor]:
    """Everything that a build of it may write, but for slots."""
    names = ("out", *OUTPUTS)
    found = [getattr(view, name) for view in builder.member.buffers.views for name in names]
    return [x for x in found if x is not None]


@pytest.mark.parametrize("seed", range(12))
def test_a_group_equals_its_builders_alone(seed: int, device: str) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    max_batch = rng.choice([1, 5, 40])
    drawn = [Drawn(rng, device, max_batch) for _ in range(rng.randint(1, 4))]
    group = MetadataGroup([each.with_slots for each in drawn])
    for _ in range(3):
        batch = rng.randint(0, max_batch)
        rows = torch.tensor([rng.choice([0, 1, 2, 3, 4, 4, -1, 9]) for _ in range(batch)], device=device)
        lens = torch.tensor([rng.choice([0, 5, 63, 64, 200, 900]) for _ in range(batch)], device=device)
        rows, lens = rows.to(rng.choice([I32, I64])), lens.to(rng.choice([I32, I64]))
        mode = rng.choice(["decode", "verify", "ragged", "positions"])
        options: dict[str, Any] = {"seq_lens_delta": rng.choice([0, 1, torch.full_like(lens, 2)])}
        counts = torch.tensor([rng.randint(0, 5) for _ in range(batch)], dtype=I64, device=device)
        queries = torch.full((batch,), {"decode": 1, "verify": 3}.get(mode, 0), device=device)
        given: dict[str, Any] = {}
        if mode == "verify":
            options["query_lens"] = 3
        elif mode == "ragged":
            options |= {"query_lens": counts, "query_lens_sign": rng.choice([0, 1])}
            queries = counts
        elif mode == "positions" and any(each.slots for each in drawn):
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(rng.choice([I32, I64]))
            where = [rng.choice([0, 3, 63, 199, -1, 5000]) for _ in range(int(counts.sum()))]
            given = {"positions": torch.tensor(where, dtype=I64, device=device), "query_start_loc": starts}
        found = group.build(rows, lens, **options, **given)
        for each, meta in zip(drawn, found, strict=True):
            alone = options | ({"query_lens": counts, "query_lens_sign": 0} if given else {})
            each.alone.build(rows, lens, **alone)
            for got, want in zip(buffers(each.with_slots), buffers(each.alone), strict=True):
                assert torch.equal(got, want)
            word = each.alone.status.word.clone()
            if each.slots is not None:
                word = torch.minimum(word, check_slots(each, meta, rows, lens, options, queries, given))
            assert torch.equal(each.with_slots.status.word, word)
            for builder in (each.alone, each.with_slots):
                builder.status.clear()


def check_slots(
    each: Drawn, meta: xkv.Metadata, rows: torch.Tensor, lens: torch.Tensor, options: dict[str, Any],
    queries: torch.Tensor, given: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    """Compares the slots with those of the op; returns the op's status word."""
    slots, status = each.slots, xkv.Status(rows.device)
    assert slots is not None
    assert meta.slot_mapping is not None
    delta, sign = options["seq_lens_delta"], options.get("query_lens_sign", 0)
    length = lens.long() + delta + (queries * sign if sign else 0)
    top = each.options["max_context_len"]
    out = torch.full((slots.max_tokens,), -5, dtype=getattr(torch, slots.id_dtype), device=rows.device)
    whole = each.with_slots.member.buffers.slot_views[0].out
    arguments = given | {"max_position": slots.max_position} if given else {"query_lens": queries}
    # the op has no bound of a row: one beyond the builder's is compared in tests/kernel/test_hostile.py
    kept = torch.where(length > top, torch.zeros_like(length), length)
    if bool((length > top).any()) or (not given and bool(((length == 0) & (queries > 0)).any())):
        return each.with_slots.status.word.clone()
    xkv.build_slot_mapping(
        each.source, rows, kept, **arguments, source_page_size=each.unit, out=out, page_map=each.page_map,
        map_page_size=each.options["page_size"], pad_value=slots.pad_value, shard=each.shard, status=status,
    )  # fmt: skip
    count = int(given["query_start_loc"][-1]) if given else int(queries.sum())
    count = slots.max_tokens if slots.pad_value is not None else min(count, slots.max_tokens)
    assert torch.equal(whole[:count], out[:count])
    assert torch.equal(meta.slot_mapping, whole[: len(meta.slot_mapping)])
    return status.word


def test_a_builder_with_slots_is_captured(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs a GPU")
    source = torch.arange(4096, dtype=I32, device=device).view(4, 1024)
    builder = xkv.MetadataBuilder(
        "flash_attention", source, max_batch_size=4, max_context_len=1024, slot_mapping=xkv.SlotMapping(8)
    )
    group = MetadataGroup([builder])
    rows, lens = torch.tensor([1, 2, 0, 0], device=device), torch.tensor([7, 70, 0, 0], device=device)
    for captured in (builder.capture(4), group.capture(4)):
        meta = captured.replay(rows[:2], lens[:2])
        first = meta[0] if isinstance(meta, tuple) else meta
        assert first.slot_mapping is not None
        assert first.slot_mapping.tolist() == [1024 + 6, 2048 + 69, -1, -1]
        builder.check()


@pytest.mark.parametrize("source_page_size", [1, 16])
def test_slots_of_several_query_tokens_in_every_row(source_page_size: int, device: str) -> None:
    """The last tokens of each row, and none of a row of padding, which is no violation."""
    table = torch.randperm(4 * 64, generator=torch.Generator().manual_seed(1)).view(4, 64).to(device)
    builder = xkv.MetadataBuilder(
        "flash_attention", table, max_batch_size=40, max_context_len=64, page_size=16,
        source_page_size=source_page_size, slot_mapping=xkv.SlotMapping(160),
    )  # fmt: skip
    lens = [7, 60, 0, 3, 0, *(n + 3 for n in range(30))]
    rows = [n % 4 for n in range(len(lens))]
    meta = builder.build(torch.tensor(rows, device=device), torch.tensor(lens, device=device), query_lens=3)
    want = []
    for row, n in zip(rows, lens, strict=True):
        for t in range(n - 3, n):
            entry = int(table[row, t // source_page_size]) if n else 0
            want.append(entry * source_page_size + t % source_page_size if n else -1)
    assert meta.slot_mapping is not None
    assert meta.slot_mapping.tolist() == want
    builder.check()


@pytest.mark.parametrize("longest", [12, 24])
@pytest.mark.parametrize("batch", [1, 20, 90])
def test_branches_begin_where_those_before_them_end(batch: int, longest: int, device: str) -> None:
    """More rows than a program reads at a time, with room for all draft tokens or not for some."""
    if batch == 90 and device == "cpu":
        pytest.skip("half a minute in the interpreter, where a program reads fewer rows at a time")
    topk, num_steps, width = 3, 4, 24
    table = torch.randperm(4 * width, generator=torch.Generator().manual_seed(1)).view(4, width).to(device)
    trees = [xkv.DraftTree(topk, num_steps, step) for step in (1, 4)]
    group = MetadataGroup([
        xkv.MetadataBuilder(
            "flashinfer_mla", table, page_size=1, max_batch_size=batch, max_context_len=width, draft=tree
        )
        for tree in trees
    ])  # fmt: skip
    rng = random.Random(batch)
    rows, lens = [rng.randrange(4) for _ in range(batch)], [rng.randint(0, longest) for _ in range(batch)]
    found = group.build(torch.tensor(rows, device=device), torch.tensor(lens, device=device))
    for tree, meta in zip(trees, found, strict=True):
        ids, sums = [], [0]
        for row, n in zip(rows, lens, strict=True):
            for branch in range(topk):
                own = n + branch * num_steps
                fits = own + tree.step <= width
                ids += [
                    *table[row, :n].tolist(),
                    *(table[row, own : own + tree.step].tolist() if fits else ()),
                ]
                sums.append(len(ids))
        assert meta.kv_indptr is not None
        assert meta.kv_indices is not None
        assert meta.kv_indptr.tolist() == sums
        assert meta.kv_indices[: len(ids)].tolist() == ids
