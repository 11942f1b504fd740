"""What ops remember of a call: the same checks, the same pointers, and nothing kept alive.

There is no GPU here: tensors say that they are on one, and the launch is recorded.
"""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xkv
from xkv import launch, plans, reference
from xkv.likeness import unlike


class OnGPU(torch.Tensor):
    """A CPU tensor that takes itself for a GPU's."""

    def get_device(self) -> int:
        return 0


class Recorded:
    """In the place of a `launch.Prepared`: keeps what it is asked to launch."""

    cheap, first = True, 2

    def __init__(self, build: Any) -> None:
        args = [x if x is None or type(x) is int else x.data_ptr() for x in build.arguments()]
        self.args = ["grid", "stream", *args]
        self.launched: list[list[Any]] = []

    def copy(self) -> tuple[list[Any], list[Any]]:
        call = self.args.copy()
        return call, call

    def launch(self, call: list[Any]) -> None:
        self.launched.append(call)


@pytest.fixture(params=["guards", "no guards"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What the slow path prepared, one for each call that took it; also with a torch that has no guards."""
    found: list[Recorded] = []
    if request.param == "no guards":
        monkeypatch.setattr(plans, "like", lambda _: unlike)

    def run(build: Any) -> Any:
        reference.run(build)
        found.append(Recorded(build))
        return found[-1]

    monkeypatch.setattr(launch, "run", run)
    plans.forget()
    return found


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(OnGPU) if x.layout is torch.strided else x


def inputs(batch: int = 3, dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, ...]:
    source = on_gpu(torch.arange(4 * 640, dtype=torch.int32).view(4, 640))
    rows = on_gpu(torch.arange(batch, dtype=dtype) % 4)
    lens = on_gpu(torch.full((batch,), 640, dtype=dtype))
    return source, rows, lens, on_gpu(torch.zeros(batch, 10, dtype=torch.int32))


def value(call: list[Any], name: str) -> Any:
    return call[2 + launch.positions()[name]]


def test_the_second_call_is_launched_with_its_own_pointers(made: list[Recorded]) -> None:
    source, rows, lens, out = inputs()
    calls = [[rows.clone(), lens.clone(), out.clone()] for _ in range(3)]  # each at a place of its own
    for again in calls:
        assert xkv.build_page_table(source, again[0], again[1], page_size=64, out=again[2]) is again[2]
    (first,) = made
    assert len(first.launched) == 2
    last = first.launched[-1]
    assert [value(last, name) for name in ("src_ptr", "rows_ptr", "lens_ptr", "out_ptr")] == [
        x.data_ptr() for x in (source, *again)
    ]
    same = [n for n, (a, b) in enumerate(zip(last, first.args, strict=True)) if a != b]
    assert len(same) == 3  # all else is the first call's


def test_a_call_like_the_last_is_not_looked_up(made: list[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another kind is, and is then the last."""
    looked, lookup = [], plans._slot
    monkeypatch.setattr(plans, "_slot", lambda *key: looked.append(key) or lookup(*key))
    for batch in (3, 3, 3, 2, 2, 3):
        source, rows, lens, out = inputs(batch)
        xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    guarded = (
        plans.like(plans._tensors((source, rows, lens, *[None] * 6, out, None, None, None))) is not unlike
    )
    assert len(looked) == (3 if guarded else 6)
    assert [len(each.launched) for each in made] == [3, 1]


def test_every_pointer_of_a_stream(made: list[Recorded]) -> None:
    source, rows, lens, _ = inputs()
    ints = lambda n: on_gpu(torch.zeros(n, dtype=torch.int32))  # noqa: E731
    status = xkv.Status("cpu")
    status.word = on_gpu(status.word)
    for _ in range(2):
        start, tokens, pages = ints(3), on_gpu(torch.arange(2560)), on_gpu(torch.arange(2560))
        delta = ints(3)
        out = xkv.KVIndices(ints(4), ints(1920), ints(3))
        xkv.build_kv_indices(
            source, rows, lens, page_size=1, out=out, kv_start=start, token_map=tokens, page_map=pages,
            seq_lens_delta=delta, status=status,
        )  # fmt: skip
    (first,) = made
    (call,) = first.launched
    given = {
        "start_ptr": start, "token_map_ptr": tokens, "page_map_ptr": pages, "delta_ptr": delta,
        "status_ptr": status.word, "indptr_ptr": out[0], "out_ptr": out[1], "last_ptr": out[2],
    }  # fmt: skip
    assert {name: value(call, name) for name in given} == {n: x.data_ptr() for n, x in given.items()}


def test_slots(made: list[Recorded]) -> None:
    source, rows, lens, _ = inputs()
    for _ in range(2):
        query, out = on_gpu(torch.ones(3, dtype=torch.int32)), on_gpu(torch.zeros(3, dtype=torch.int64))
        xkv.build_slot_mapping(source, rows, lens, query, out=out, max_tokens=3)
    (call,) = made[0].launched
    assert (value(call, "query_ptr"), value(call, "out_ptr")) == (query.data_ptr(), out.data_ptr())


CHANGES: dict[str, dict[str, Any]] = {
    "dtype of rows": {"rows": torch.arange(3, dtype=torch.int32)},
    "another batch": {"rows": torch.arange(2), "lens": torch.full((2,), 640)},
    "wider": {"out": torch.zeros(3, 11, dtype=torch.int32)},
    "out's stride": {"out": torch.zeros(3, 20, dtype=torch.int32)[:, :10]},
    "out's dtype": {"out": torch.zeros(3, 10, dtype=torch.int64)},
    "the source's width": {"source": torch.zeros(4, 704, dtype=torch.int32)},
    "page size": {"page_size": 128},
    "a delta": {"seq_lens_delta": -1},
    "a delta for each": {"seq_lens_delta": torch.zeros(3, dtype=torch.int32)},
    "a start": {"kv_start": torch.zeros(3, dtype=torch.int32)},
    "a fill": {"tail_fill": 0},
    "missing id": {"missing_id": 0},
    "map page size": {"map_page_size": 16},
}


def call_with(changed: dict[str, Any]) -> None:
    source, rows, lens, out = inputs()
    given = {"source": source, "rows": rows, "lens": lens, "out": out, "page_size": 64}
    given |= {n: on_gpu(x) if isinstance(x, torch.Tensor) else x for n, x in changed.items()}
    xkv.build_page_table(given.pop("source"), given.pop("rows"), given.pop("lens"), **given)


@pytest.mark.parametrize("change", CHANGES)
def test_a_call_of_another_kind_is_looked_at(change: str, made: list[Recorded]) -> None:
    call_with({})
    call_with(CHANGES[change])
    assert len(made) == 2
    assert not any(each.launched for each in made)
    call_with(CHANGES[change])  # and is then known too
    assert len(made) == 2
    assert len(made[1].launched) == 1


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a bool for 1": ({"page_size": True}, TypeError, "page_size must be an int, got bool"),
    "a float": ({"page_size": 64.0}, TypeError, "page_size must be an int, got float"),
    "a list": ({"page_size": [64]}, TypeError, "page_size must be an int, got list"),
    "a bool for a delta": ({"seq_lens_delta": True}, TypeError, "seq_lens_delta must be an int, got bool"),
    "no room": ({"max_seq_len": 641}, ValueError, "out is too narrow"),
    "a bound of another type": ({"max_seq_len": 64.0}, TypeError, "max_seq_len must be an int"),
    "rank": ({"rows": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, "req_pool_indices must have 1"),
    "stride": ({"rows": torch.zeros(6, dtype=torch.int64)[::2]}, ValueError, "inner stride of 1"),
    "dtype": ({"lens": torch.zeros(3)}, TypeError, "seq_lens must be int32 or int64"),
    "sparse": ({"rows": torch.zeros(3, dtype=torch.int64).to_sparse()}, TypeError, "must be a dense tensor"),
    "no tensor": ({"kv_start": 3.5}, TypeError, "kv_start must be a torch.Tensor, got float"),
    "status": ({"status": "word"}, TypeError, "status must be an xkv.Status, got str"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("page_size", [1, 64])
def test_what_is_wrong_is_said_also_once_a_call_like_it_is_known(
    wrong: str, page_size: int, made: list[Recorded]
) -> None:
    wide = {"out": torch.zeros(3, 640, dtype=torch.int32)} if page_size == 1 else {}
    call_with({"page_size": page_size, **wide})
    change, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message):
        call_with({"page_size": page_size, **wide, **change})
    assert not made[0].launched


def test_overlap_is_looked_for_in_every_call(made: list[Recorded]) -> None:
    source, rows, lens, out = inputs()
    buffer = on_gpu(torch.zeros(40, dtype=torch.int32))
    xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    inside = buffer[4:34].view(3, 10)
    overlapping = buffer.view(torch.int64)[16:19]  # ends within it
    with pytest.raises(ValueError, match="out must not share memory"):
        xkv.build_page_table(source, on_gpu(overlapping), lens, page_size=64, out=on_gpu(inside))
    beside = on_gpu(buffer.view(torch.int64)[17:20])
    xkv.build_page_table(source, beside, lens, page_size=64, out=on_gpu(inside))
    assert len(made) == 1
    assert len(made[0].launched) == 1


def test_outputs_may_not_overlap_one_another(made: list[Recorded]) -> None:
    source, rows, lens, _ = inputs()
    ints = lambda n: on_gpu(torch.zeros(n, dtype=torch.int32))  # noqa: E731
    xkv.build_kv_indices(source, rows, lens, page_size=64, out=xkv.KVIndices(ints(4), ints(30), ints(3)))
    shared = ints(40)
    out = xkv.KVIndices(on_gpu(shared[:4]), on_gpu(shared[3:33]), ints(3))
    with pytest.raises(ValueError, match=r"out\.kv_indices must not share memory"):
        xkv.build_kv_indices(source, rows, lens, page_size=64, out=out)


def test_a_watched_launch_takes_the_front_door(made: list[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    call_with({})
    monkeypatch.setattr(plans, "watched", lambda: True)
    call_with({})
    assert len(made) == 2
    assert not any(each.launched for each in made)


def test_no_tensor_is_kept_alive(made: list[Recorded]) -> None:
    source, rows, lens, out = inputs()
    kept = [weakref.ref(x) for x in (source, rows, lens, out)]
    xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    assert len(made[0].launched) == 1
    del source, rows, lens, out
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


def test_what_allocates_is_not_planned(made: list[Recorded]) -> None:
    source, rows, lens, _ = inputs()
    for _ in range(2):
        xkv.build_page_table(source, rows, lens, page_size=64, max_seq_len=640)
    assert len(made) == 2
    assert not any(each.launched for each in made)


def test_a_cpu_call_leaves_nothing_behind() -> None:
    plans.forget()
    source, rows, lens, out = (x.as_subclass(torch.Tensor) for x in inputs())
    for _ in range(2):
        xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    assert plans._slot.cache_info().currsize == 0


def test_what_is_kept_is_bounded() -> None:
    assert plans._slot.cache_info().maxsize == plans._MOST <= 1 << 14


def freed(x: torch.Tensor) -> torch.Tensor:
    """The same kind of tensor, whose memory was given back."""
    y = x.clone()
    y.untyped_storage().resize_(0)
    return y


def test_no_memory_is_seen_also_once_a_call_like_it_is_known(made: list[Recorded]) -> None:
    given = list(inputs())
    for _ in range(2):
        xkv.build_page_table(*given[:3], page_size=64, out=given[3])
    (known,) = made
    launched = len(known.launched)
    for n, name in enumerate(("req_to_token", "req_pool_indices", "seq_lens", "out")):
        bad = given.copy()
        bad[n] = freed(bad[n])
        with pytest.raises(TypeError, match=f"{name} must have memory of its own"):
            xkv.build_page_table(*bad[:3], page_size=64, out=bad[3])
    assert len(known.launched) == launched
    xkv.build_page_table(*given[:3], page_size=64, out=given[3])
    assert len(known.launched) == launched + 1


def test_no_memory_is_seen_by_a_builder_that_knows_the_step() -> None:
    source, rows, lens, _ = (x.as_subclass(torch.Tensor) for x in inputs())
    builder = xkv.MetadataBuilder("triton", source, max_batch_size=3, max_context_len=640)
    options = {"seq_lens_delta": lens * 0, "query_lens": lens * 0 + 1, "kv_start": lens * 0}
    builder.build(rows, lens, **options)
    ((_, step),) = builder._steps.items()
    launched: list[Any] = []
    step._at, builder._on_cpu = tuple(range(8)), False
    step._prepared = SimpleNamespace(args=[0] * 8, call=None, launch=launched.append)
    for name, value in {"req_pool_indices": rows, "seq_lens": lens, **options}.items():
        bad = {"req_pool_indices": rows, "seq_lens": lens, **options, name: freed(value)}
        with pytest.raises(TypeError, match=f"{name} must have memory of its own"):
            builder.build(**bad)
    assert not launched
    builder.build(rows, lens, **options)
    assert len(launched) == 1
