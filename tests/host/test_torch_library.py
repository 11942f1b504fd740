"""The ops inside torch.compile, torch.export and PyTorch's own checks of an op."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import INTERPRETED
from dispatcher import Recorder
from packaging.version import Version
from torch.library import opcheck

import xkv
from xkv import Reason, Status
from xkv.cli.check.memory import SENTINEL, whole

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning"),
    pytest.mark.skipif(INTERPRETED, reason="what a graph calls is the op, whatever that runs on"),
]

BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param("inductor", marks=[pytest.mark.gpu, pytest.mark.slow]),  # on a CPU: test_inductor
    pytest.param(
        "reduce-overhead",
        marks=[
            pytest.mark.gpu,
            pytest.mark.slow,
            # torch captures an empty graph of its own, to have a memory pool
            pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
        ],
    ),
]
TOKENS = 80
# sizes that are counted in a graph: inductor of torch 2.11 cannot order the dimensions of such a table
COUNTS = Version(torch.__version__) >= Version("2.13.0.dev0")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def compiled(f: Callable[..., Any], backend: str) -> Callable[..., Any]:
    how = {"mode": backend} if backend == "reduce-overhead" else {"backend": backend}
    return torch.compile(f, fullgraph=True, **how)


def tensors(device: str, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ints = lambda low, high, *shape: torch.randint(low, high, shape, generator=generator)  # noqa: E731
    wide = ints(-1, 2000, 5, TOKENS + 6).to(torch.int32).to(device)
    made = {
        "source": wide[:, :TOKENS],
        "rows": ints(0, 5, batch),
        "lens": ints(4, TOKENS, batch).to(torch.int32),
        "few": ints(0, 4, batch),
        "token_map": ints(-1, 3000, 1900),
        "page_map": ints(-1, 900, 120).to(torch.int32),
    }
    return {name: x.to(device) for name, x in made.items()}


# name -> an op as a model calls it, among other ops; `room` is None or a bound that the host knows
def table(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    return xkv.build_page_table(
        t["source"], t["rows"], t["lens"] - 3, page_size=4, max_seq_len=room,
        seq_lens_delta=t["few"], kv_start=t["few"], status=status, **out,
    )  # fmt: skip


def mapped_table(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    return xkv.build_page_table(
        t["source"], t["rows"], t["lens"] - 3, page_size=16, source_page_size=4, max_seq_len=room,
        seq_lens_delta=2, token_map=t["token_map"], page_map=t["page_map"], map_page_size=8,
        missing_id=-5, pad_value=-6, pad_to_multiple_of=64, dtype=torch.int64, status=status, **out,
    )  # fmt: skip


def csr(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    return xkv.build_kv_indices(
        t["source"], t["rows"], t["lens"] - 3, page_size=4, kv_start=t["few"], status=status,
        max_tokens=None if room is None else room * 4, **out,
    )  # fmt: skip


def slots(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    return xkv.build_slot_mapping(
        t["source"], t["rows"], t["lens"] + 0, t["few"], seq_lens_delta=-1, pad_value=-1, status=status,
        max_tokens=None if room is None else 30, **out,
    )  # fmt: skip


def slots_at_positions(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    starts = torch.nn.functional.pad(t["few"].cumsum(0), (1, 0))
    return xkv.build_slot_mapping(
        t["source"], t["rows"], t["lens"] + 0, positions=t["page_map"], query_start_loc=starts, pad_value=-1,
        max_position=60, status=status, **out,
    )  # fmt: skip


def table_of_a_rank(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    return xkv.build_page_table(
        t["source"], t["rows"], t["lens"] - 3, page_size=4, max_seq_len=room, kv_start=t["few"],
        shard=xkv.Shard(2, 1, 2, "global"), status=status, **out,
    )  # fmt: skip


def slots_of_a_rank(t: dict[str, Any], room: int | None, status: Status, **out: Any) -> Any:
    return xkv.build_slot_mapping(
        t["source"], t["rows"], t["lens"] + 0, t["few"], source_page_size=8, pad_value=-1, status=status,
        shard=xkv.Shard(2, 0, 4, "global"), max_tokens=None if room is None else 30, **out,
    )  # fmt: skip


TABLES = [table, mapped_table, table_of_a_rank]
CALLS = [table, mapped_table, csr, slots, slots_at_positions, table_of_a_rank, slots_of_a_rank]
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)


def flat(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, xkv.KVIndices) else [result]


def live(call: Any, result: Any) -> list[Any]:
    """What is promised of a result: an allocated stream may have room past its live entries."""
    if isinstance(result, xkv.KVIndices):
        n = int(result.kv_indptr[-1])
        return [result.kv_indptr.tolist(), result.kv_indices[:n].tolist(), result.kv_last_page_len.tolist()]
    return [result.tolist()]


@every_call
@pytest.mark.parametrize("room", [TOKENS, None], ids=["bounded", "counted"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_new_outputs(backend: str, room: int | None, call: Any, device: str) -> None:
    """The same as eager, at several batches, without a graph break."""
    if room is None and call in TABLES and not COUNTS and "eager" not in backend:
        pytest.skip("inductor of this torch takes no table whose width is counted in the graph")
    f = compiled(lambda t, status: call(t, room, status), backend)
    for batch in (3, 5, 1):
        t, status, want_status = tensors(device, batch), Status(device), Status(device)
        for _ in range(3 if backend == "reduce-overhead" else 1):  # it runs, records, and replays
            got = f(t, status)
        want = call(t, room, want_status)
        assert type(got) is type(want)
        assert [(x.shape, x.dtype) for x in flat(got)] == [(x.shape, x.dtype) for x in flat(want)]
        assert live(call, got) == live(call, want)
        assert status.read() == want_status.read()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.skipif(not COUNTS, reason="inductor of this torch takes no table whose width is counted")
def test_inductor(device: str) -> None:
    """All ops in one graph, whose sizes are counted in it; one row, and another batch."""
    f = compiled(lambda t, status: [call(t, None, status) for call in CALLS], "inductor")
    for batch in (1, 5):
        t, status, want_status = tensors(device, batch), Status(device), Status(device)
        got = f(t, status)
        want = [call(t, None, want_status) for call in CALLS]
        assert [live(*each) for each in zip(CALLS, got, strict=True)] == [
            live(*each) for each in zip(CALLS, want, strict=True)
        ]
        assert status.read() == want_status.read()


@every_call
@pytest.mark.parametrize("backend", BACKENDS)
def test_out_is_written_to(backend: str, call: Any, device: str) -> None:
    """Into views of a larger buffer, of which nothing else changes."""
    made = []
    t = tensors(device)
    for how in (lambda f: f, lambda f: compiled(f, backend)):
        buffers = [
            torch.full((3, x.shape[-1] + 5), SENTINEL, dtype=x.dtype, device=device)[:, 2:-3]
            if x.dim() == 2 else torch.full((len(x) + 5,), SENTINEL, dtype=x.dtype, device=device)[2:-3]
            for x in flat(call(t, TOKENS, Status(device)))
        ]  # fmt: skip
        out = xkv.KVIndices(*buffers) if len(buffers) == 3 else buffers[0]
        status = Status(device)
        got = how(lambda t, out, status: (call(t, None, status, out=out), t["lens"] * 2))(t, out, status)[0]
        assert [a is b for a, b in zip(flat(got), buffers, strict=True)] == [True] * len(buffers)
        made.append([whole(x).tolist() for x in buffers] + [status.read()])
    assert made[0] == made[1]


@every_call
def test_one_node_of_a_graph_that_serves_other_batches(call: Any, device: str) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    f = torch.compile(lambda t, s: call(t, TOKENS, s), fullgraph=True, dynamic=True, backend=count)
    for batch in (3, 4, 7):
        f(tensors(device, batch), Status(device))
    assert len(graphs) == 1
    assert [name for name in graphs[0] if name.startswith("xkv.")] == [f"xkv.{OPS[call]}.default"]


OPS = {
    table: "build_page_table", mapped_table: "build_page_table", csr: "build_kv_indices",
    slots: "build_slot_mapping", slots_at_positions: "build_slot_mapping",
    table_of_a_rank: "build_page_table", slots_of_a_rank: "build_slot_mapping",
}  # fmt: skip


@every_call
def test_eager_calls_do_not_pass_the_dispatcher(call: Any, device: str) -> None:
    with Recorder() as seen:
        call(tensors(device), TOKENS, Status(device))
    assert not seen.calls


@every_call
@pytest.mark.parametrize("room", [TOKENS, None], ids=["bounded", "counted"])
def test_opcheck(room: int | None, call: Any, device: str) -> None:
    """PyTorch's checks of a registered op: its schema, fake outputs, autograd and functionalisation."""
    calls: list[Any] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with Recorder() as seen:
                result = graph(*args)
            calls.extend(seen.calls)
            return result

        return run

    torch.compile(lambda t, s: call(t, room, s), backend=record)(tensors(device), Status(device))
    ((op, args, kwargs),) = calls
    opcheck(op, args, kwargs)


def test_exported() -> None:
    class Model(torch.nn.Module):
        def forward(self, source: torch.Tensor, rows: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
            return xkv.build_page_table(source, rows, lens, page_size=4, max_seq_len=TOKENS) + 1

    t = tensors("cpu")
    arguments = t["source"].clamp(min=0), t["rows"], t["lens"]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        Model(), arguments, dynamic_shapes=(None, {0: batch}, {0: batch}), strict=True
    )
    other = arguments[0], torch.tensor([4, 4, 0, 1]), torch.tensor([1, 0, 79, 5], dtype=torch.int32)
    assert torch.equal(program.module()(*other), Model()(*other))


# What is wrong in a compiled call: said as in an eager one, by the trace or by the op when it runs.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("page size", {"page_size": 12}, "page_size must be a power of two from 1 to 1024, got 12"),
    ("dtype", {"lens": torch.zeros(3)}, "seq_lens must be int32 or int64, got torch.float32"),
    ("rank", {"rows": torch.zeros(1, 3, dtype=torch.int64)}, "req_pool_indices must have 1 dimension"),
    ("batch", {"rows": torch.zeros(2, dtype=torch.int64)}, "req_pool_indices must have 3 entries"),
    ("meta", {"lens": torch.zeros(3, dtype=torch.int32, device="meta")}, "seq_lens must be on"),
    ("bound", {"max_seq_len": -1}, "max_seq_len must be from 0 to"),
]


@pytest.mark.parametrize(("change", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_what_is_wrong_is_said(fullgraph: bool, change: dict[str, Any], says: str, device: str) -> None:
    """Whole graphs fail where they are traced, in torch's error with our words; others as eager calls."""
    t = tensors(device)
    given = {**t, "page_size": 4, "max_seq_len": TOKENS} | {
        k: v.to(device) if isinstance(v, torch.Tensor) and not v.is_meta else v for k, v in change.items()
    }

    def call(g: dict[str, Any]) -> torch.Tensor:
        return xkv.build_page_table(
            g["source"], g["rows"], g["lens"], page_size=g["page_size"], max_seq_len=g["max_seq_len"]
        )

    expected = torch._dynamo.exc.Unsupported if fullgraph else (TypeError, ValueError)
    with pytest.raises(expected) as info:
        torch.compile(call, backend="eager", fullgraph=fullgraph)(given)
    assert says in str(info.value)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_overlap(backend: str, device: str) -> None:
    """Found when the op runs; where the graph gives it a copy of ``out``, there is none."""
    t, other = tensors(device), tensors(device)
    want = xkv.build_page_table(other["source"], t["rows"], t["lens"], page_size=4, max_seq_len=TOKENS)
    before = whole(t["source"]).clone()
    f = torch.compile(
        lambda source, out: xkv.build_page_table(source, t["rows"], t["lens"], page_size=4, out=out) + 0,
        backend=backend, fullgraph=True,
    )  # fmt: skip
    out = t["source"][:3, 4:24]
    if backend == "eager":
        with pytest.raises(ValueError, match="out must not share memory with an input"):
            f(t["source"], out)
        assert torch.equal(whole(t["source"]), before)
        return
    got = f(t["source"], out)
    for b, n in enumerate(t["lens"].tolist()):
        assert got[b, : -(-n // 4)].tolist() == want[b, : -(-n // 4)].tolist()


def test_a_builder_in_a_compiled_function_is_run_as_it_is(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values are right, and none of its host code is compiled."""
    from torch._dynamo import convert_frame

    compiled: list[str] = []
    compile_frame = convert_frame._compile
    monkeypatch.setattr(
        convert_frame, "_compile",
        lambda code, *args, **more: compiled.append(code.co_filename) or compile_frame(code, *args, **more),
    )  # fmt: skip
    t = tensors(device)
    source = t["source"].clamp(min=0)
    builder = xkv.MetadataBuilder("triton", source, max_batch_size=8, max_context_len=TOKENS)
    f = torch.compile(lambda rows, lens: builder.build(rows, lens).kv_indptr * 2, backend="eager")
    for seed in (3, 5):
        t = {name: x[:3] for name, x in tensors(device, seed).items()}
        assert f(t["rows"], t["lens"])[1:].tolist() == (t["lens"].cumsum(0) * 2).tolist()
    builder.check()
    assert __file__ in compiled
    assert not [name for name in compiled if name.startswith(str(Path(xkv.__file__).parent))]


# Tensors without memory: their dtypes and shapes do not show it.


def test_inference_mode(device: str) -> None:
    """In it, out of it, and with tensors of it outside."""
    t = tensors(device)
    want = flat(csr(t, TOKENS, Status(device)))
    with torch.inference_mode():
        made = tensors(device)
        out = csr(made, TOKENS, Status(device))
        status = Status(device)
        builder = xkv.MetadataBuilder("triton", made["source"], max_batch_size=3, max_context_len=TOKENS)
    assert live(csr, out) == live(csr, xkv.KVIndices(*want))
    got = csr(made, TOKENS, status, out=out)
    assert live(csr, got) == live(csr, xkv.KVIndices(*want))
    meta = builder.build(made["rows"], made["lens"])
    assert meta.kv_indptr[1:].tolist() == made["lens"].cumsum(0).tolist()
    assert isinstance(status.read(), (type(None), xkv.Violation))
    with torch.inference_mode():
        assert live(csr, compiled(lambda t, s: csr(t, TOKENS, s), "eager")(made, status)) == live(csr, got)


def test_what_requires_grad_is_no_int(device: str) -> None:
    t = tensors(device)
    for name, of in (("req_to_token", "source"), ("req_pool_indices", "rows"), ("seq_lens", "lens")):
        wrong = t | {of: t[of].float().requires_grad_()}
        with pytest.raises(TypeError, match=f"{name} must be int32 or int64, got torch.float32"):
            xkv.build_page_table(wrong["source"], wrong["rows"], wrong["lens"], page_size=4)
    with torch.enable_grad():
        assert not table(t, TOKENS, Status(device)).requires_grad


@every_call
def test_fake_tensors_are_named(call: Any, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    t = tensors(device)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(x) for name, x in t.items()}
    with pytest.raises(TypeError, match=r"req_to_token must have memory of its own.* got a FakeTensor"):
        call(fake, TOKENS, Status(device))


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "vmap": lambda f: torch.vmap(f)(torch.ones(2, 3, dtype=torch.int64)),
    "grad": lambda f: torch.func.grad(lambda x: f(x.long()).sum() * x.sum())(torch.ones(3)),
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(3, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func_are_named(name: str, device: str) -> None:
    source = tensors(device)["source"].clamp(min=0)
    rows = torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(TypeError, match=r"seq_lens must have memory of its own"):
        TRANSFORMS[name](lambda lens: xkv.build_page_table(source, rows, lens.to(device), page_size=4))


def test_freed_memory_is_named(device: str) -> None:
    t = tensors(device)
    t["lens"].untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="seq_lens must have memory of its own"):
        xkv.build_page_table(t["source"], t["rows"], t["lens"], page_size=4, max_seq_len=8)


def test_the_status_word_is_written_in_a_graph(device: str) -> None:
    t, status = tensors(device), Status(device)
    f = torch.compile(
        lambda rows: xkv.build_page_table(
            t["source"], rows, t["lens"], page_size=4, max_seq_len=TOKENS, status=status
        ),
        backend="aot_eager", fullgraph=True,
    )  # fmt: skip
    f(torch.tensor([0, 99, 1], device=device))
    assert status.read() == (1, Reason.BAD_ROW)


@pytest.mark.gpu
def test_known_calls_of_tensors_without_memory() -> None:
    """They have the signature of a cached call, but do not reach its launch."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    t = tensors("cuda")
    source, rows, lens = t["source"].clamp(min=0), t["rows"], t["lens"]
    out = torch.empty(3, 20, dtype=torch.int32, device="cuda")
    builder = xkv.MetadataBuilder("triton", source, max_batch_size=3, max_context_len=TOKENS)
    calls = (
        lambda x: xkv.build_page_table(source, rows, x, page_size=4, out=out),
        lambda x: builder.build(rows, x),
    )
    freed = lens.clone()
    freed.untyped_storage().resize_(0)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(lens)
    for call in calls:
        for good_or_bad in (lens, lens, freed, fake, lens):
            if good_or_bad is lens:
                call(lens)
                continue
            with pytest.raises(TypeError, match="seq_lens must have memory of its own"):
                call(good_or_bad)
    torch.cuda.synchronize()
    assert builder.build(rows, lens).kv_indptr[1:].tolist() == lens.cumsum(0).tolist()
