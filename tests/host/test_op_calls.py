"""The ops' launch cache: the same checks, this call's pointers and sizes, and no tensor kept alive.

Without a GPU: tensors report one, and launches are recorded.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded import Recorded, arguments, on_gpu, value

import xkv
from xkv import reference
from xkv.launch import cache, launch, op_calls
from xkv.launch.guards import refuse


class Made(list[Recorded]):
    """What the slow path compiled, for each call that took it; ``launched``: calls that took the fast one."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[list[Any]] = []


@pytest.fixture(params=["guards", "no guards"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Also with a torch that has no guards."""
    found = Made()
    if request.param == "no guards":
        monkeypatch.setattr(op_calls, "make_guard", lambda *_, **__: refuse)

    def run(build: Any) -> Any:
        reference.run(build)
        found.append(Recorded(build, found.launched))
        return found[-1]

    monkeypatch.setattr(launch, "run", run)
    op_calls.forget()
    return found


def inputs(batch: int = 3, dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, ...]:
    source = on_gpu(torch.arange(4 * 640, dtype=torch.int32).view(4, 640))
    rows = on_gpu(torch.arange(batch, dtype=dtype) % 4)
    lens = on_gpu(torch.full((batch,), 640, dtype=dtype))
    return source, rows, lens, on_gpu(torch.zeros(batch, 10, dtype=torch.int32))


def test_the_second_call_is_launched_with_its_own_pointers(made: Made) -> None:
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


def fully_checked(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The build of an op's call that the cache does not know."""
    builds: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", builds.append)
        patch.setattr(op_calls.Signature, "launch", lambda *_: False)
        call()
    return builds[0]


def random_call(rng: random.Random, op: str, **options: Any) -> dict[str, Any]:
    """A call of any sizes and row strides."""
    batch, width, stride = rng.randint(1, 40), rng.randint(64, 700), rng.randint(0, 9)
    ints = lambda *shape: on_gpu(torch.zeros(*shape, dtype=torch.int32))  # noqa: E731
    call = {
        "req_to_token": on_gpu(torch.zeros(rng.randint(1, 9), width + stride, dtype=torch.int32)[:, :width]),
        "req_pool_indices": on_gpu(torch.zeros(batch, dtype=torch.int64)),
        "seq_lens": on_gpu(torch.zeros(batch, dtype=torch.int64)),
        "seq_lens_delta": rng.randint(-3, 9),
    }  # fmt: skip
    if "kv_start" in options:
        call["kv_start"], call["kv_start_offset"] = ints(batch), ints(batch + rng.randint(0, 2))
    if "token_map" in options:
        call["token_map"], call["page_map"] = ints(rng.randint(1, 99)), ints(rng.randint(1, 99))
    if "shard" in options:
        call["shard"] = options["shard"]
    more, room = rng.randint(0, 3), rng.randint(1, 50)
    if op == "build_page_table":
        out = ints(batch + more, room + stride)[:, :room]
        if rng.random() < 0.3:
            call["max_seq_len"] = rng.randint(0, room * 16)
        return call | {"page_size": 16, "out": out}
    if op == "build_kv_indices":
        out = xkv.KVIndices(ints(batch + 1 + more), ints(room * batch), ints(batch + more))
        return call | {"page_size": 16, "out": out}
    if "positions" in options:
        given = {"positions": ints(rng.randint(1, 90)), "query_start_loc": ints(batch + 1)}
        return call | given | {"max_position": 99, "out": ints(room * batch)}
    return call | {"query_lens": ints(batch), "out": ints(room * batch)}


@pytest.mark.parametrize(
    "options",
    [
        {}, {"kv_start": 1}, {"token_map": 1}, {"positions": 1},
        {"shard": xkv.Shard(2, 1)}, {"shard": xkv.Shard(3, 1, 8, "global")},
    ],
    ids=lambda o: "".join(o) or "plain",
)  # fmt: skip
@pytest.mark.parametrize("op", ["build_page_table", "build_kv_indices", "build_slot_mapping"])
def test_a_call_of_other_sizes_is_a_call_like_it(
    op: str, options: dict[str, Any], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launch is the same as without the cache: every argument, and the grid."""
    without = "kv_start" if op == "build_slot_mapping" else "positions"
    options = {name: value for name, value in options.items() if name != without}
    rng = random.Random(op)
    fast = 0
    for _ in range(60):
        call = random_call(rng, op, **options)
        count, known = len(made.launched), len(made)
        getattr(xkv, op)(**call)
        if len(made) > known:
            continue  # the first that deals its work out in this way
        assert len(made.launched) == count + 1
        build = fully_checked(partial(getattr(xkv, op), **call), monkeypatch)
        assert made.launched[-1] == arguments(build)
        fast += 1
    assert fast > 40
    assert len(made) <= 4


@pytest.mark.parametrize("options", [{}, {"kv_start": 1}], ids=lambda o: "".join(o) or "plain")
@pytest.mark.parametrize("op", ["build_page_table", "build_kv_indices", "build_slot_mapping"])
def test_a_call_of_sizes_that_came_before(
    op: str, options: dict[str, Any], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn, with new tensors, deltas and bounds: nothing of another call of these sizes is left in it."""
    if op == "build_slot_mapping":
        options = {}
    rng = random.Random(op)
    bound = "max_seq_len" if op == "build_page_table" else "max_tokens"
    shapes = [random_call(rng, op, **options) for _ in range(3)]
    for call in shapes * 3:
        getattr(xkv, op)(**call)
    known = len(made)
    for _ in range(40):
        call = copied(rng.choice(shapes)) | {"seq_lens_delta": rng.randint(-3, 9)}
        call.pop("max_seq_len", None)
        if rng.random() < 0.5:
            call[bound] = rng.randint(0, 40)
        count = len(made.launched)
        getattr(xkv, op)(**call)
        assert (len(made), len(made.launched)) == (known, count + 1)
        build = fully_checked(partial(getattr(xkv, op), **call), monkeypatch)
        assert made.launched[-1] == arguments(build)


SHARDS = [
    None, xkv.Shard(1, 0), xkv.Shard(2, 0), xkv.Shard(2, 1), xkv.Shard(4, 1), xkv.Shard(2, 1, 1, "global"),
    xkv.Shard(4, 1, 1, "global"), xkv.Shard(2, 1, 16, "global"),
]  # fmt: skip


@pytest.mark.parametrize("op", ["build_page_table", "build_kv_indices", "build_slot_mapping"])
def test_a_call_with_another_shard(op: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes neither another's compiled launch nor its rank and sizes, in whatever order they come."""
    rng = random.Random(op)
    call = random_call(rng, op)
    call.pop("max_seq_len", None)
    for shard in SHARDS * 2:  # the second time around each is launched by its own entry
        count = len(made.launched)
        getattr(xkv, op)(**call, shard=shard)
        if len(made.launched) == count:
            continue
        build = fully_checked(partial(getattr(xkv, op), **call, shard=shard), monkeypatch)
        assert made.launched[-1] == arguments(build)
        assert value(made.launched[-1], "shard_rank") == (None if build.shard is None else shard.rank)
    assert (len(made), len(made.launched)) == (len(SHARDS), len(SHARDS))


@pytest.mark.parametrize("op", ["build_page_table", "build_kv_indices"])
def test_a_bound_of_the_whole_rows(op: str, made: Made) -> None:
    """The output must hold this rank's part of it alone; one more is refused, by the cached call too."""
    shard, call = xkv.Shard(2, 1), random_call(random.Random(0), op)
    room = (call["out"] if op == "build_page_table" else call["out"].kv_indices).shape[-1] * 16
    name = "max_seq_len" if op == "build_page_table" else "max_tokens"
    call.pop("max_seq_len", None)
    most = shard.longest(room) if op == "build_page_table" else 2 * room + 1
    for _ in range(3):
        getattr(xkv, op)(**call, shard=shard, **{name: most})
        with pytest.raises(ValueError, match=f"for {name}={most + 1}"):
            getattr(xkv, op)(**call, shard=shard, **{name: most + 1})
    assert (len(made), len(made.launched)) == (1, 2)


def copied(call: dict[str, Any]) -> dict[str, Any]:
    """The same call with tensors of their own, of the same sizes and strides."""

    def copy(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return xkv.KVIndices(*map(copy, x)) if isinstance(x, xkv.KVIndices) else x
        whole = torch.zeros(max(1, x.shape[0]) * x.stride(0), dtype=x.dtype)
        return on_gpu(whole.as_strided(x.shape, x.stride()))

    return {name: copy(x) for name, x in call.items()}


def test_every_pointer_of_a_stream(made: Made) -> None:
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


def test_slots(made: Made) -> None:
    source, rows, lens, _ = inputs()
    for _ in range(2):
        query, out = on_gpu(torch.ones(3, dtype=torch.int32)), on_gpu(torch.zeros(3, dtype=torch.int64))
        xkv.build_slot_mapping(source, rows, lens, query, out=out, max_tokens=3)
    (call,) = made[0].launched
    assert (value(call, "query_ptr"), value(call, "out_ptr")) == (query.data_ptr(), out.data_ptr())


def test_slots_at_positions(made: Made) -> None:
    source, rows, lens, _ = inputs()
    for _ in range(2):
        at, starts = on_gpu(torch.ones(5, dtype=torch.int64)), on_gpu(torch.zeros(4, dtype=torch.int32))
        out = on_gpu(torch.zeros(7, dtype=torch.int64))
        xkv.build_slot_mapping(
            source, rows, lens, positions=at, query_start_loc=starts, max_position=9, out=out
        )
    (call,) = made[0].launched
    given = {"positions_ptr": at, "indptr_ptr": starts, "out_ptr": out}
    assert {name: value(call, name) for name in given} == {n: x.data_ptr() for n, x in given.items()}
    assert [value(call, name) for name in ("positions_len", "positions_stride", "max_position")] == [5, 2, 9]
    two = on_gpu(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="query_start_loc must have 4 entries"):
        xkv.build_slot_mapping(source, rows, lens, positions=at, query_start_loc=two, max_position=9, out=out)
    with pytest.raises(ValueError, match="out must not share memory"):
        xkv.build_slot_mapping(
            source, rows, lens, positions=at, query_start_loc=starts, max_position=9, out=at
        )


CHANGES: dict[str, dict[str, Any]] = {
    "dtype of rows": {"rows": torch.arange(3, dtype=torch.int32)},
    "out's dtype": {"out": torch.zeros(3, 10, dtype=torch.int64)},
    "page size": {"page_size": 128},
    "a delta for each": {"seq_lens_delta": torch.zeros(3, dtype=torch.int32)},
    "a start": {"kv_start": torch.zeros(3, dtype=torch.int32)},
    "a fill": {"pad_value": 0},
    "missing id": {"missing_id": 0},
    "map page size": {"map_page_size": 16},
}


SAME: dict[str, dict[str, Any]] = {
    "another batch": {
        "rows": torch.arange(4),
        "lens": torch.full((4,), 640),
        "out": torch.zeros(4, 10, dtype=torch.int32),
    },
    "wider": {"out": torch.zeros(3, 11, dtype=torch.int32)},
    "out's stride": {"out": torch.zeros(3, 20, dtype=torch.int32)[:, :10]},
    "the source's width": {"source": torch.zeros(4, 704, dtype=torch.int32)},
    "a delta": {"seq_lens_delta": -1},
    "a bound": {"max_seq_len": 77},
}


def call_with(changed: dict[str, Any]) -> None:
    source, rows, lens, out = inputs()
    given = {"source": source, "rows": rows, "lens": lens, "out": out, "page_size": 64}
    given |= {n: on_gpu(x) if isinstance(x, torch.Tensor) else x for n, x in changed.items()}
    xkv.build_page_table(given.pop("source"), given.pop("rows"), given.pop("lens"), **given)


@pytest.mark.parametrize("change", SAME)
def test_a_call_of_other_sizes_is_known(change: str, made: Made) -> None:
    call_with({})
    call_with(SAME[change])
    call_with({})
    assert (len(made), len(made.launched)) == (1, 2)


@pytest.mark.parametrize("change", CHANGES)
def test_a_call_of_another_kind_is_looked_at(change: str, made: Made) -> None:
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
    "no room": ({"max_seq_len": 641}, ValueError, "out must be wide enough"),
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
    wrong: str, page_size: int, made: Made
) -> None:
    wide = {"out": torch.zeros(3, 640, dtype=torch.int32)} if page_size == 1 else {}
    call_with({"page_size": page_size, **wide})
    change, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message):
        call_with({"page_size": page_size, **wide, **change})
    assert not made[0].launched


def test_overlap_is_looked_for_in_every_call(made: Made) -> None:
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
    for other in ([overlapping, lens], [rows, overlapping]):  # sizes that came before
        with pytest.raises(ValueError, match="out must not share memory"):
            xkv.build_page_table(source, *map(on_gpu, other), page_size=64, out=on_gpu(inside))
    whole = on_gpu(torch.zeros(4 * 640, dtype=torch.int32))
    for _ in range(3):
        xkv.build_page_table(whole.view(4, 640), rows, lens, page_size=64, out=out)
    with pytest.raises(ValueError, match="out must not share memory"):
        xkv.build_page_table(whole.view(4, 640), rows, lens, page_size=64, out=whole[-30:].view(3, 10))
    assert len(made) == 1


def test_outputs_may_not_overlap_one_another(made: Made) -> None:
    source, rows, lens, _ = inputs()
    ints = lambda n: on_gpu(torch.zeros(n, dtype=torch.int32))  # noqa: E731
    xkv.build_kv_indices(source, rows, lens, page_size=64, out=xkv.KVIndices(ints(4), ints(30), ints(3)))
    shared = ints(40)
    out = xkv.KVIndices(on_gpu(shared[:4]), on_gpu(shared[3:33]), ints(3))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"out\.kv_indices must not share memory"):
            xkv.build_kv_indices(source, rows, lens, page_size=64, out=out)
        for _ in range(3):  # then of sizes that came before
            apart = xkv.KVIndices(ints(4), ints(30), ints(3))
            xkv.build_kv_indices(source, rows, lens, page_size=64, out=apart)


def test_launch_hooks_see_every_launch(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    call_with({})
    monkeypatch.setattr(op_calls, "launch_hooks_active", lambda: True)
    call_with({})
    assert len(made) == 2
    assert not any(each.launched for each in made)


def test_a_launch_that_fails_leaves_the_next_as_good(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        call_with({})

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(Recorded, "launch", fail)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="planted"):
                call_with({"seq_lens_delta": 5})
    out = on_gpu(torch.zeros(3, 10, dtype=torch.int32))
    call_with({"out": out})
    assert (value(made.launched[-1], "out_ptr"), value(made.launched[-1], "delta")) == (out.data_ptr(), 0)
    assert len(made) == 1


def test_no_tensor_is_kept_alive(made: Made) -> None:
    source, rows, lens, out = inputs()
    kept = [weakref.ref(x) for x in (source, rows, lens, out)]
    xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    assert len(made[0].launched) == 2
    del source, rows, lens, out
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


def test_what_allocates_is_not_planned(made: Made) -> None:
    source, rows, lens, _ = inputs()
    for _ in range(2):
        xkv.build_page_table(source, rows, lens, page_size=64, max_seq_len=640)
    assert len(made) == 2
    assert not any(each.launched for each in made)


def test_a_cpu_call_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    op_calls.forget()
    signatures, lookup = [], op_calls.lookup
    monkeypatch.setattr(
        op_calls, "lookup", lambda *given: signatures.append(lookup(*given)) or signatures[-1]
    )
    source, rows, lens, out = (x.as_subclass(torch.Tensor) for x in inputs())
    for _ in range(2):
        xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    assert all(len(signature._entries) == 0 for signature in signatures)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.memory, "inputs_on_host", lambda _: False)
    assert op_calls._signature.cache_info().maxsize == op_calls._MAX_SIGNATURES <= 1 << 14
    entries = cache.LaunchCache()
    build = SimpleNamespace(
        access_pattern="strided_near",
        writes_sums=True,
        views=(1,),
        req_to_token=torch.zeros(1, 1),
    )
    recorded = SimpleNamespace(
        fast_path=True, schedule=SimpleNamespace(balance=False, int64_tiles=False), tuning=None, first=0
    )
    for n in range(3 * cache.MAX_ENTRIES):
        assert entries.add(n, build, recorded, (), ()) is not None
        assert len(entries) <= cache.MAX_ENTRIES


def freed(x: torch.Tensor) -> torch.Tensor:
    """A tensor of the same signature, whose memory was freed."""
    y = x.clone()
    y.untyped_storage().resize_(0)
    return y


def test_no_memory_is_seen_also_once_a_call_like_it_is_known(made: Made) -> None:
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
    (step,) = builder._steps._by_signature.values()
    launched: list[Any] = []
    step._positions, builder._steps._on_cpu = tuple(range(8)), False
    compiled = SimpleNamespace(launch=launched.append)
    step._entry = SimpleNamespace(prepared=lambda *_: (None, [0] * 8, compiled))
    for name, x in {"req_pool_indices": rows, "seq_lens": lens, **options}.items():
        bad = {"req_pool_indices": rows, "seq_lens": lens, **options, name: freed(x)}
        with pytest.raises(TypeError, match=f"{name} must have memory of its own"):
            builder.build(**bad)
    assert not launched
    builder.build(rows, lens, **options)
    assert len(launched) == 1


@pytest.mark.parametrize("few_batches", [False, True])
@pytest.mark.parametrize("name", ["flashmla", "flash_attention", "flashinfer_mla", "triton"])
@pytest.mark.parametrize("window", [None, 100])
def test_a_step_of_another_batch_is_a_step_like_it(
    name: str, window: int | None, few_batches: bool, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder's launch is the same as without its caches: every argument, and the grid."""
    rng, ints = random.Random(name), lambda *shape: on_gpu(torch.zeros(*shape, dtype=torch.int32))
    source = torch.zeros(9, 640, dtype=torch.int32)
    builder = xkv.MetadataBuilder(name, source, max_batch_size=64, max_context_len=640, sliding_window=window)
    builder._on_cpu = False
    fast = 0
    for _ in range(120):
        batch = rng.choice([3, 17, 64]) if few_batches else rng.randint(1, 64)
        inputs: dict[str, Any] = {"req_pool_indices": ints(batch), "seq_lens": ints(batch)}
        inputs["seq_lens_delta"] = rng.choice([0, rng.randint(0, 9), ints(batch)])
        inputs["query_lens"] = rng.choice([1, rng.randint(1, 9), ints(batch)])
        if isinstance(inputs["query_lens"], torch.Tensor):
            inputs["query_lens_sign"] = rng.choice([-1, 0, 1])
        if rng.random() < 0.3:
            inputs["kv_start"] = ints(batch)
        if rng.random() < 0.3:
            inputs["max_tokens"] = rng.randint(1, 1000)
        count, known = len(made.launched), len(made)
        builder.build(**inputs)
        if len(made) > known:
            continue
        assert len(made.launched) == count + 1
        builds: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(launch, "run", builds.append)
            patch.setattr(builder._steps, "_by_signature", {})
            patch.setitem(builder._recent, False, None)
            builder.build(**inputs)
        assert made.launched[-1] == arguments(builds[0])
        fast += 1
    assert fast > 60
