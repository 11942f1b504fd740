"""The Triton backend's own methods beside what is called in their place, on stand-ins of its object."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_triton import (
    DECODE,
    GUARD,
    TEXTS,
    VERSIONS,
    Engine,
    batch_of,
    buffers,
    extending,
    make,
    run_decode,
    run_fill,
)  # fmt: skip

from xkv.integrations.sglang import recorded_launches, triton_steps
from xkv.launch.triton_launcher import Call

pytestmark = pytest.mark.kernel


def both(version: str) -> tuple[Engine, Engine]:
    return Engine(version, False), Engine(version, True)


@pytest.mark.parametrize("version", TEXTS)
def test_decode_in_a_graph(version: str, device: str) -> None:
    theirs, ours = both(version)
    for seed in range(2):
        batch, rows, lens = batch_of(seed, device, torch.int64)
        lens = lens.clamp(min=1)
        # what is longer than the batch is a graph's padding, which is not read
        padded = torch.cat([rows, rows[:1]]), torch.cat([lens, lens[:1]])
        found = []
        for engine in (theirs, ours):
            self = make(engine, seed, device)
            run_decode(self, batch, *padded)
            found.append(buffers(self))
        for want, got in zip(*found, strict=True):
            assert torch.equal(got, want), seed
    assert theirs.indices.launches == 2
    assert ours.indices.launches == 0
    assert 1 <= ours.splits.launches <= theirs.splits.launches == 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("version", TEXTS)
def test_sums_and_indices(version: str, dtype: torch.dtype, device: str) -> None:
    theirs, ours = both(version)
    for seed in range(2):
        batch, rows, lens = batch_of(seed, device, dtype)
        found = []
        for engine in (theirs, ours):
            self = make(engine, seed, device)
            out = torch.full((int(lens.sum()) + seed,), GUARD, dtype=torch.int64, device=device)
            indptr = run_fill(self, batch, rows, lens, out)
            assert indptr.data_ptr() == self.kv_indptr.data_ptr()
            found.append([indptr, out, *buffers(self)])
        for want, got in zip(*found, strict=True):
            assert torch.equal(got, want), seed
            assert got.dtype is want.dtype
    assert ours.indices.launches == 0


@pytest.mark.parametrize("mode", ["EXTEND", "MIXED"])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_eager_step_that_extends(version: str, mode: str, device: str) -> None:
    theirs, ours = both(version)
    name = "_dense_one_shot_kv_indptr"  # 0.5.23 keeps it of a step, and forgets it in the next
    others = {name: 1} if name in theirs.backend.init_forward_metadata.__code__.co_names else {}
    for seed in range(3):
        batch, rows, lens = batch_of(seed, device, torch.int32)
        lens = lens * (seed < 2)  # at last, nothing is cached
        queries, found = [(7 * b + seed) % 11 + 1 for b in range(batch)], []
        for engine in (theirs, ours):
            self = make(engine, seed, device, **others)
            self.init_forward_metadata(extending(rows, lens, queries, mode))
            made = self.forward_metadata
            assert set(made.others.values()) <= {None}
            assert getattr(self, name, None) is None
            found.append([*made.fields, *buffers(self), self.qo_indptr])
        for want, got in zip(*found, strict=True):
            if not isinstance(want, torch.Tensor):
                assert got == want
                continue
            assert (got.dtype, got.device) == (want.dtype, want.device)
            assert torch.equal(got, want), seed
    assert ours.indices.launches == 0
    assert theirs.indices.launches >= 2


@pytest.mark.parametrize(
    ("of_backend", "of_batch"),
    [
        ({"sliding_window_size": 5}, {}),
        ({"use_sliding_window_kv_pool": True}, {}),
        ({"dcp_size": 2}, {}),
        ({"_translate_kv_loc": print}, {}),
        ({"dllm_attention": object()}, {}),
        ({}, {"mode": "DRAFT_EXTEND_V2"}),
        ({}, {"mode": "TARGET_VERIFY"}),
        ({}, {"mode": "DECODE"}),
        ({}, {"extend_prefix_lens_cpu": None}),
        ({}, {"extend_seq_lens_cpu": None}),
        ({}, {"batch_size": 0}),
        ({"qo_indptr": torch.zeros(9, dtype=torch.int16)}, {}),
    ],
)
def test_eager_steps_that_are_left_to_theirs(
    of_backend: dict[str, Any], of_batch: dict[str, Any], device: str
) -> None:
    asked = []

    def original(self, forward_batch):
        asked.append(forward_batch)

    self = make(Engine(VERSIONS[0], True), 1, device, **of_backend)
    _, rows, lens = batch_of(1, device, torch.int32)
    forward = extending(rows, lens, [3] * len(lens), **of_batch)
    triton_steps.init_forward_metadata(original, self, forward)
    assert asked == [forward]
    assert not hasattr(self, "forward_metadata")


@pytest.mark.parametrize("version", VERSIONS[-1:])
def test_nothing_cached(version: str, device: str) -> None:
    theirs, ours = both(version)
    for batch in (0, 3):
        found = []
        for engine in (theirs, ours):
            self = make(engine, 1, device)
            lens = torch.zeros(batch, dtype=torch.int32, device=device)
            rows, out = lens.long(), torch.empty(0, dtype=torch.int64, device=device)
            if (
                batch or engine is ours
            ):  # theirs launches a grid of nothing, which an interpreter need not take
                run_fill(self, batch, rows, lens, out)
            found.append(self.kv_indptr)
        assert torch.equal(*found)
    assert ours.indices.launches == 0


@pytest.mark.parametrize(
    ("others", "indices", "splits"),
    [
        ({"sliding_window_size": 5}, 0, 2),
        ({"static_kv_splits": True}, 0, 0),
        ({"enable_deterministic": True, "split_tile_size": 16}, 0, 0),
        ({"device_core_count": 0}, 0, 0),
    ],
)
@pytest.mark.parametrize("version", TEXTS[::2])
def test_other_configurations(
    version: str, others: dict[str, Any], indices: int, splits: int, device: str
) -> None:
    theirs, ours = both(version)
    batch, rows, lens = batch_of(3, device, torch.int64)
    found = []
    for engine in (theirs, ours):
        self = make(engine, 3, device, **others)
        run_decode(self, batch, rows, lens.clamp(min=1))
        found.append(buffers(self))
    assert all(torch.equal(got, want) for want, got in zip(*found, strict=True))
    assert (ours.indices.launches, ours.splits.launches) == (indices, splits)
    assert len(ours.windows) == len(theirs.windows) == int("sliding_window_size" in others)


def test_what_is_left_to_theirs(device: str) -> None:
    asked: list[str] = []

    def apply(self, bs, req_pool_indices, seq_lens, forward_mode, spec_info):
        asked.append("apply")

    def fill(self, bs, seq_lens, req_pool_indices, kv_indices):
        asked.append("fill")

    theirs = Engine(VERSIONS[0], True)
    batch, rows, lens = batch_of(1, device, torch.int64)
    verify = SimpleNamespace(is_decode_or_idle=lambda: False)
    tried = [
        (make(theirs, 1, device), verify, None), (make(theirs, 1, device), DECODE, object()),
        (make(theirs, 1, device, dcp_size=2), DECODE, None),
        (make(theirs, 1, device, sliding_window_size=4), DECODE, None),
    ]  # fmt: skip
    for self, mode, spec in tried:
        triton_steps.apply_cuda_graph_metadata(apply, self, batch, rows, lens, mode, spec)
    translated = make(theirs, 1, device)
    translated.kv_index_translator.reads_are_translated = True
    triton_steps.apply_cuda_graph_metadata(apply, translated, batch, rows, lens, DECODE, None)
    out = translated.cuda_graph_kv_indices
    triton_steps.fill_kv_indptr_and_indices(fill, translated, batch, lens, rows, out)
    plain = make(theirs, 1, device)
    triton_steps.fill_kv_indptr_and_indices(fill, plain, batch + 1, lens, rows, out)
    triton_steps.fill_kv_indptr_and_indices(fill, plain, batch, lens, rows, out[::2])
    assert asked == ["apply"] * 5 + ["fill"] * 3
    # a method that is not replaced has a text that is not known
    unknown = type("Other", (theirs.backend,), {"get_num_kv_splits": lambda *args: None})
    self = make(theirs, 1, device)
    self.__class__ = unknown
    triton_steps.apply_cuda_graph_metadata(apply, self, batch, rows, lens, DECODE, None)
    assert asked[-1] == "apply"
    assert len(asked) == 9


@pytest.mark.parametrize("version", TEXTS[-2:])
def test_a_repeated_step(version: str, device: str) -> None:
    theirs, ours = both(version)
    backends = [make(engine, 1, device) for engine in (theirs, ours)]
    rows = torch.tensor([2, 0, 1], device=device)
    for add in range(3):
        lens = torch.tensor([1, 7, 30], device=device) + add
        for self in backends:
            run_decode(self, 3, rows, lens)
        want, got = (buffers(self) for self in backends)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert ours.splits.launches == (1 if device == "cuda" else 3)


class Pointer:
    dtype = torch.int32

    def __init__(self, at: int) -> None:
        self.at = at

    def data_ptr(self) -> int:
        return self.at

    def get_device(self) -> int:
        return 0


@pytest.mark.parametrize("nested", [True, False])
def test_what_is_launched_again(nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    raw: list[tuple[Any, ...]] = []
    call = Call(lambda *x: raw.append(x), ("x", "y", "z", "stream", "more"), nested, (0, 1, 2), 3)
    monkeypatch.setattr(recorded_launches, "record", lambda kernel, count: call if count == 5 else None)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    kernel, own = SimpleNamespace(pre_run_hooks=[]), []
    launch = recorded_launches.RecordedLaunches()

    def ask(values: tuple[int, ...], *at: int | None) -> None:
        launch(kernel, lambda: own.append(at), tuple(None if x is None else Pointer(x) for x in at), values)  # type: ignore[arg-type]

    ask((5, 6), 16, 32, None)
    ask((5, 6), 48, 64, None)  # alike
    ask((5, 6), 48, 68, None)  # aligned otherwise
    ask((5, 7), 48, 64, None)
    assert own == [(16, 32, None), (48, 68, None), (48, 64, None)]
    arguments = (48, 64, 5, 6, None)
    assert raw == [(1, 1, 1, 77, "more", *([arguments] if nested else arguments))]
    ask((5,), 16, 32)  # what cannot be recorded
    ask((5,), 16, 32)
    kernel.pre_run_hooks = [print]
    ask((5, 6), 16, 32, None)
    assert len(own) == 6
    assert len(raw) == 1
