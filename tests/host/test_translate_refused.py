"""What `translate_positions` refuses, in words; and what it takes: torch.compile, views, inference mode."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import INTERPRETED
from dispatcher import Recorder
from op_arguments import contents, status_with, tensors_in
from torch.library import opcheck

import xkv
from xkv import Reason, Shard, Status
from xkv.cli.check.memory import SENTINEL, guarded, guarded_1d, whole

I32, I64 = torch.int32, torch.int64
TOKENS, K, BATCH, ROWS, WIDTH = 3, 4, 2, 5, 8

# Every case: what replaces good arguments (or a function of the good arguments that gives it), the error,
# what its message begins with, and what else it says.
REFUSED: list[Any] = []


def refuse(error: type[Exception], begins: str, *says: str, name: str = "", **change: Any) -> None:
    """Adds a case; a function among the changes gets the good arguments."""
    values = "-".join(str(v)[:20] for v in change.values() if not callable(v))
    REFUSED.append(pytest.param(change, error, begins, says, id=f"{'-'.join(change)}-{name or values}"))


def good(device: str) -> dict[str, Any]:
    """Arguments that all is well with."""
    given = {
        "req_to_token": guarded(ROWS, WIDTH, WIDTH + 2, I32, device),
        "positions": guarded(TOKENS, K, K + 2, I32, device),
        "token_to_req": guarded_1d(TOKENS, I32, device),
        "req_pool_indices": guarded_1d(BATCH, I64, device),
        "seq_lens": guarded_1d(BATCH, I32, device),
        "out": guarded(TOKENS, K, K + 3, I32, device),
        "counts": guarded_1d(TOKENS, I32, device),
        "status": Status(device),
    }
    given["req_to_token"].copy_(torch.arange(ROWS * WIDTH).view(ROWS, WIDTH))
    given["positions"].copy_(torch.tensor([[0, 2, -1, 7], [1, 1, 0, 5], [-1, -1, -1, 3]]))
    given["token_to_req"].copy_(torch.tensor([1, 0, 1]))
    given["req_pool_indices"].copy_(torch.tensor([3, 1]))
    given["seq_lens"].copy_(torch.tensor([6, 8]))
    return given


WANT = [[8, 10, -1, 15], [25, 25, 24, 29], [-1, -1, -1, 11]]


def swap(name: str, how: Callable[[torch.Tensor], Any], **more: Any) -> dict[str, Any]:
    return more | {name: lambda given: how(given[name])}


def starts(given: dict[str, Any]) -> torch.Tensor:
    """A query_start_loc of the good batch."""
    x = guarded_1d(BATCH + 1, I32, str(given["req_to_token"].device))
    return x.copy_(torch.tensor([0, 2, 3]))


def starts_as(how: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    return {"token_to_req": None, "query_start_loc": lambda given: how(starts(given))}


AXES = {"req_to_token": 2, "positions": 2, "out": 2}
EACH: list[tuple[str, Callable[[Callable[[torch.Tensor], Any]], dict[str, Any]]]] = [
    (name, lambda how, name=name: swap(name, how))
    for name in (*AXES, "token_to_req", "req_pool_indices", "seq_lens", "counts")
]
EACH.append(("query_start_loc", starts_as))
for name, with_it in EACH:
    for label, how in {
        "a list": lambda x: x.tolist(),
        "numpy": lambda x: x.cpu().numpy(),
        "an int": lambda x: 3,
    }.items():
        refuse(TypeError, f"{name} must be a torch.Tensor", "got ", name=label, **with_it(how))
    for dtype in (torch.int16, torch.uint8, torch.bool, torch.float32, torch.complex64):
        refuse(
            TypeError, f"{name} must be int32", f"got {dtype}", name=str(dtype),
            **with_it(lambda x, dtype=dtype: x.to(dtype)),
        )  # fmt: skip
    refuse(
        TypeError, f"{name} must be a dense tensor", "got torch.sparse_coo", name="sparse",
        **with_it(lambda x: x.to_sparse()),
    )  # fmt: skip
    refuse(
        TypeError, f"{name} must be a dense tensor", "got a nested tensor", name="nested",
        **with_it(lambda x: torch.nested.nested_tensor([x[0].flatten()] * 2)),
    )  # fmt: skip
    expected = f"{name} must have {AXES.get(name, 1)} dimension(s), got shape "
    refuse(ValueError, f"{expected}()", name="0-d", **with_it(lambda x: x.flatten()[0]))
    refuse(ValueError, f"{expected}(1, ", name="one more", **with_it(lambda x: x[None]))
    refuse(
        ValueError, f"{name} must have an inner stride of 1", "got strides", name="strided",
        **with_it(lambda x: x.repeat_interleave(2, -1)[..., ::2]),
    )  # fmt: skip
    refuse(
        ValueError, f"{name} must have an inner stride of 1", "got strides", name="expanded",
        **with_it(lambda x: x[..., :1].expand(x.shape)),
    )  # fmt: skip
    if name == "req_to_token":
        begins, says = "req_to_token must be on a GPU", "CPU, got meta"
    else:
        begins, says = f"{name} must be on ", "like req_to_token, got meta"
    refuse(ValueError, begins, says, name="meta", **with_it(lambda x: x.to("meta")))
refuse(TypeError, "req_to_token must be a torch.Tensor", "got NoneType", req_to_token=None)
refuse(TypeError, "positions must be a torch.Tensor", "got NoneType", positions=None)
refuse(
    TypeError, "positions must be a dense tensor", "got torch.sparse_csr", name="csr",
    **swap("positions", lambda x: x.to_sparse_csr()),
)  # fmt: skip
refuse(
    ValueError, "req_to_token must be on a GPU", "CPU, got meta", name="all meta",
    **{name: lambda g, name=name: g[name].to("meta") for name in ("req_to_token", "positions")},
    token_to_req=None, req_pool_indices=None, seq_lens=None, out=None, counts=None, status=None,
)  # fmt: skip
refuse(TypeError, "counts must be int32", "got torch.int64", name="long", **swap("counts", torch.Tensor.long))

# Sizes.
refuse(
    ValueError, "req_to_token's rows must hold at most 268435455 tokens", "got 268435456", name="too wide",
    req_to_token=lambda g: g["req_to_token"].new_empty(1, 2**18), source_page_size=1024,
)  # fmt: skip
for k in (0, 8193):
    refuse(
        ValueError, f"number of columns of positions must be from 1 to 8192, got {k}", name=f"k = {k}",
        positions=lambda g, k=k: g["positions"].new_zeros(TOKENS, k), out=None,
    )  # fmt: skip
refuse(
    ValueError, "number of rows of positions must be from 0 to 16777216, got 16777217",
    name="2**24 + 1 of them",
    positions=lambda g: g["positions"][:1].expand(2**24 + 1, K), out=None,
)  # fmt: skip
for n in (0, 2, 4):
    refuse(
        ValueError, "token_to_req must have 3 entries, one for each query token", f"got {n}", name=f"{n}",
        token_to_req=lambda g, n=n: g["token_to_req"].new_zeros(n),
    )  # fmt: skip
for n in (0, 65_538):
    refuse(
        ValueError, f"number of entries of query_start_loc must be from 1 to 65537, got {n}", name=f"{n}",
        **starts_as(lambda x, n=n: x.new_zeros(n)),
    )  # fmt: skip
for n in (0, 1, 3):
    zeros = lambda g, n=n: g["seq_lens"].new_zeros(n)  # noqa: E731
    refuse(ValueError, f"seq_lens must have 2 entries, got {n}", name=f"{n} beside 2 rows", seq_lens=zeros)
    refuse(
        ValueError, f"req_pool_indices must have 2 entries, got {n}", name=f"{n} beside 3 starts",
        **starts_as(lambda x: x), req_pool_indices=zeros,
    )  # fmt: skip
    refuse(
        ValueError, f"seq_lens must have 2 entries, got {n}", name=f"{n} beside 3 starts",
        **starts_as(lambda x: x), req_pool_indices=None, seq_lens=zeros,
    )  # fmt: skip
for n in (0, 2, 4):
    zeros = lambda g, n=n: g["seq_lens"].new_zeros(n)  # noqa: E731
    more = {"token_to_req": None, "req_pool_indices": None, "seq_lens": None}
    for name in ("req_pool_indices", "seq_lens"):
        refuse(
            ValueError, f"{name} must have 3 entries, got {n}", name=f"{n}, one each", **more | {name: zeros}
        )
refuse(
    ValueError, "query_start_loc must be None with token_to_req, got ", name="both", query_start_loc=starts
)
refuse(
    ValueError, "query_start_loc must be None with token_to_req, got ", query_start_loc=[0, 2, 3], name="list"
)

# Numbers.
BOUNDS = {
    "unit": (1, 4096), "source_page_size": (1, 65_536), "dummy": (-(2**31), 2**31 - 1),
    "missing_id": (-(2**31), 2**31 - 1),
}  # fmt: skip
for name, (low, high) in BOUNDS.items():
    for value in (low - 1, high + 1, -(10**30), 10**30):
        refuse(ValueError, f"{name} must be from {low} to {high}, got {value}", **{name: value})
for value in (0, -16, 3, 48, 2048, 2**40):
    refuse(ValueError, "page_size must be a power of two from 1 to 1024", f"got {value}", page_size=value)
for name in (*BOUNDS, "page_size", "block_stride"):
    for value in (True, 16.0, "16", np.int64(16), torch.tensor(16), [16]):
        refuse(TypeError, f"{name} must be an int", f"got {type(value).__name__}", **{name: value})
for name in ("unit", "page_size", "source_page_size", "missing_id"):
    refuse(TypeError, f"{name} must be an int", "got NoneType", **{name: None})
for value in (0, 1, None, "yes", np.bool_(True), torch.tensor(True), []):
    refuse(TypeError, "compact must be a bool", f"got {type(value).__name__}", compact=value)

# Numbers that do not go together.
for unit, page in ((3, 2), (6, 4), (24, 16), (4095, 1024)):
    refuse(
        ValueError, f"unit must be a multiple or a divisor of page_size={page}, got {unit}",
        unit=unit, page_size=page,
    )  # fmt: skip
for value in (3, 24, 40, 2056, 65_535):
    refuse(
        ValueError, "source_page_size must be a multiple or a divisor of page_size=16", f"got {value}",
        page_size=16, source_page_size=value,
    )  # fmt: skip
for source, value in ((1, 0), (1, -1), (16, 15), (1, 65_537), (48, 10**30)):
    refuse(
        ValueError, f"block_stride must be from {source} to 65536, got {value}",
        source_page_size=source, block_stride=value,
    )  # fmt: skip
for page, source in ((2, 1), (16, 16), (16, 48)):
    refuse(
        ValueError, f"block_stride must be {source} but with page_size=1 and ", f"got {source + 1}",
        page_size=page, source_page_size=source, block_stride=source + 1,
    )  # fmt: skip
refuse(
    ValueError, "block_stride must be 1 but with page_size=1 and a table of this rank's own blocks, got 2",
    shard=Shard(2, 0, 1, "global"), block_stride=2, name="global",
)  # fmt: skip
for value in (2, (2, 0), "local", [2, 0]):
    refuse(TypeError, "shard must be an xkv.Shard", f"got {type(value).__name__}", shard=value)
refuse(
    ValueError, "source_page_size must be a multiple of shard.interleave=2, got 1",
    shard=Shard(2, 0, 2, "local"), name="local",
)  # fmt: skip
refuse(
    ValueError, "source_page_size must be 1 or a multiple of shard.size * shard.interleave = 8", "got 4",
    shard=Shard(2, 0, 4, "global"), source_page_size=4, name="global",
)  # fmt: skip
refuse(
    ValueError, "page_size must be a multiple or a divisor of shard.interleave=3, got 2",
    shard=Shard(2, 0, 3, "global"), page_size=2, name="global",
)  # fmt: skip
refuse(
    ValueError, "source_page_size must be a multiple or a divisor of page_size=16", "got 48",
    "24 tokens of each rank", shard=Shard(2, 0, 8, "global"), page_size=16, source_page_size=48,
    name="global blocks",
)  # fmt: skip
for run, unit in ((1, 2), (2, 4), (4, 3), (4, 8)):
    for whose, source in (("local", run), ("global", 1), ("global", 2 * run)):
        refuse(
            ValueError, f"unit must divide shard.interleave={run}, got {unit}", unit=unit,
            shard=Shard(2, 1, run, whose), source_page_size=source, name=f"{run} {unit} {whose} {source}",
        )  # fmt: skip

# The outputs, and the status word.
refuse(
    ValueError, "out must have at least 3 rows", "got 2", name="a row short", **swap("out", lambda x: x[:2])
)
for k in (K - 1, K + 1):
    refuse(
        ValueError, f"out must have {K} columns, as positions, got {k}", name=f"{k} columns",
        out=lambda g, k=k: g["out"].new_empty(TOKENS, k),
    )  # fmt: skip
refuse(
    ValueError, "out's rows must not overlap", "got strides (0, 1)", name="one row",
    **swap("out", lambda x: x[:1].expand(TOKENS, K)),
)  # fmt: skip
refuse(
    ValueError, "out's rows must not overlap", "got strides (3, 1)", name="sheared",
    **swap("out", lambda x: x.as_strided((TOKENS, K), (3, 1), x.storage_offset())),
)  # fmt: skip
refuse(ValueError, "counts must have at least 3 ", "got 2", name="short", **swap("counts", lambda x: x[:2]))
for value in (torch.int16, torch.float32, torch.bool, "int32", None, int):
    refuse(TypeError, "dtype must be torch.int32 or torch.int64", f"got {value}", dtype=value, out=None)
refuse(
    TypeError, "dtype must be torch.int32 or torch.int64", "got a tensor", name="a tensor", out=None,
    dtype=lambda g: g["seq_lens"],
)  # fmt: skip
for value in (0, "ok", object(), torch.zeros(1, dtype=I64)):
    refuse(TypeError, "status must be an xkv.Status", f"got {type(value).__name__}", status=value)

refuse(
    TypeError, "status must be an xkv.Status", "got Tensor", status=lambda g: g["status"].word, name="a word"
)


for label, how in {
    "int32": lambda x: x.int(), "none": lambda x: x[:0], "two": lambda x: x.expand(2).clone()
}.items():  # fmt: skip
    refuse(ValueError, "status.word must be one int64", "got torch.int", name=label, status=status_with(how))
refuse(
    TypeError, "status.word must be a torch.Tensor", "got int", status=status_with(lambda x: 3), name="int"
)
refuse(
    ValueError, "status must be on ", "like req_to_token, got meta", name="meta",
    status=lambda g: Status("meta"),
)  # fmt: skip


def assert_refused(
    given: dict[str, Any], error: type[Exception], begins: str, says: tuple[str, ...] = ()
) -> None:
    """The op raises just that error with that message, and writes nothing at all."""
    before = [contents(x) for x in tensors_in(given)]
    with pytest.raises(error) as info:
        xkv.translate_positions(**given)
    message = str(info.value)
    assert type(info.value) is error, message
    assert message.startswith(begins), message
    for part in says:
        assert part in message
    assert [contents(x) for x in tensors_in(given)] == before


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse).*:UserWarning")
@pytest.mark.parametrize(("change", "error", "begins", "says"), REFUSED)
def test_refused(
    change: dict[str, Any], error: type[Exception], begins: str, says: tuple[str, ...], device: str
) -> None:
    given = good(device)
    xkv.translate_positions(**given)  # what is refused is also refused behind a good call
    changed = {k: v(given) if callable(v) and not isinstance(v, type) else v for k, v in change.items()}
    assert_refused(given | changed, error, begins, says)


STARTS = starts_as(lambda x: x)


@pytest.mark.parametrize("change", [{}, STARTS, {"out": None, "dtype": I64}], ids=["", "starts", "new"])
def test_what_the_refusals_start_from_is_good(change: dict[str, Any], device: str) -> None:
    given = good(device)
    given |= {k: v(given) if callable(v) and not isinstance(v, type) else v for k, v in change.items()}
    out = xkv.translate_positions(**given)
    if given["token_to_req"] is None:  # the first two query tokens are the first request's
        assert out.tolist() == [[24, 26, -1, -1], [25, 25, 24, 29], [-1, -1, -1, 11]]
        assert given["counts"].tolist() == [2, 4, 1]
    else:
        assert out.tolist() == WANT
        assert given["counts"].tolist() == [3, 4, 1]
    assert given["status"].read() is None


def over(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A view shaped like ``like`` whose first element is x's last."""
    end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    at = end * x.element_size() // like.element_size()
    return whole(x).view(like.dtype).as_strided(like.shape, like.stride(), at)


SHARED = [
    "req_to_token", "positions", "token_to_req", "query_start_loc", "req_pool_indices", "seq_lens", "status"
]  # fmt: skip


@pytest.mark.parametrize("written", ["out", "counts"])
@pytest.mark.parametrize("name", SHARED)
def test_an_output_over_an_input(name: str, written: str, device: str) -> None:
    """Also where a call of the same sizes and options was good."""
    given = good(device)
    # of a storage that has room behind its end, and with int64, in whose last entry an int32 output can begin
    shape = (40, 8) if name in AXES else (40,)
    large = torch.zeros(shape, dtype=I64, device=device)
    if name == "status":
        target = large[:1].fill_(2**63 - 1)
        given[name].word = target
    elif name == "query_start_loc":
        given |= {"token_to_req": None, name: large[: BATCH + 1].copy_(torch.tensor([0, 2, 3]))}
        target = given[name]
    else:
        old = given[name]
        target = large[: len(old), : old.shape[1]] if old.dim() == 2 else large[: len(old)]
        given[name] = target.copy_(old)
    xkv.translate_positions(**given)
    bad = over(target, given[written])
    assert_refused(given | {written: bad}, ValueError, f"{written} must not share memory")


def test_counts_over_out(device: str) -> None:
    given = good(device)
    xkv.translate_positions(**given)
    bad = over(given["out"][:2], given["counts"])
    assert_refused(given | {"counts": bad}, ValueError, "counts must not share memory")


def test_neighbours_in_one_buffer_do_not_overlap(device: str) -> None:
    given = good(device)
    buffer = torch.full((80,), SENTINEL, dtype=I32, device=device)
    lens, token_to_req, counts = buffer[:2], buffer[2:5], buffer[29:32]
    positions, out = buffer[5:17].view(TOKENS, K), buffer[17:29].view(TOKENS, K)
    lens.copy_(given["seq_lens"]), token_to_req.copy_(given["token_to_req"])
    positions.copy_(given["positions"])
    given |= {"seq_lens": lens, "token_to_req": token_to_req, "positions": positions}
    xkv.translate_positions(**given | {"counts": counts, "out": out})
    assert out.tolist() == WANT
    assert counts.tolist() == [3, 4, 1]
    assert buffer[32:].unique().tolist() == [SENTINEL]


# What has no memory: dtypes and shapes do not show it.


TENSORS = ["req_to_token", "positions", "token_to_req", "req_pool_indices", "seq_lens", "out", "counts"]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.parametrize("name", TENSORS)
def test_fake_tensors_are_named(name: str, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    given = good(device)
    xkv.translate_positions(**given)
    real = given[name].clone()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(real)
    with pytest.raises(TypeError, match=rf"{name} must have memory of its own.* got a FakeTensor"):
        xkv.translate_positions(**given | {name: fake})


def test_transforms_of_torch_func_are_named(device: str) -> None:
    given = good(device)
    call = lambda lens: xkv.translate_positions(**given | {"seq_lens": lens.to(device), "out": None})  # noqa: E731
    with pytest.raises(TypeError, match="seq_lens must have memory of its own"):
        torch.vmap(call)(torch.ones(3, BATCH, dtype=I64))
    with pytest.raises(TypeError, match="seq_lens must have memory of its own"):
        torch.func.functionalize(call)(torch.ones(BATCH, dtype=I64))


@pytest.mark.parametrize("name", TENSORS)
def test_freed_memory_is_named(name: str, device: str) -> None:
    given = good(device)
    xkv.translate_positions(**given)
    given[name] = given[name].clone()
    given[name].untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=f"{name} must have memory of its own"):
        xkv.translate_positions(**given)


# What it takes.


def tensors(device: str, tokens: int = 3) -> dict[str, torch.Tensor]:
    """Of calls as a model makes them: two query tokens a request, the last has one or two."""
    generator = torch.Generator().manual_seed(tokens)
    ints = lambda low, high, *shape: torch.randint(low, high, shape, generator=generator)  # noqa: E731
    batch = -(-tokens // 2)
    made = {
        "source": ints(-1, 2000, 7, 46).to(I32)[:, :40],
        "positions": ints(-3, 90, tokens, 16).to(I32),
        "rows": ints(0, 7, batch),
        "lens": ints(4, 41, batch).to(I32),
        "to_req": ints(-1, batch, tokens),
        "starts": torch.arange(batch + 1, dtype=I32).mul(2).clamp(max=tokens),
        "one_each": ints(-1, 8, tokens).to(I32),  # row 7 does not exist
    }
    return {name: x.to(device) for name, x in made.items()}


# name -> a call among other ops
def by_request(t: dict[str, Any], status: Status | None, **out: Any) -> torch.Tensor:
    return xkv.translate_positions(
        t["source"], t["positions"] - 1, token_to_req=t["to_req"], req_pool_indices=t["rows"],
        seq_lens=t["lens"] - 1, compact=True, dummy=0, missing_id=-7, status=status, **out,
    )  # fmt: skip


def by_starts(t: dict[str, Any], status: Status | None, **out: Any) -> torch.Tensor:
    return xkv.translate_positions(
        t["source"], t["positions"], query_start_loc=t["starts"], req_pool_indices=t["rows"], unit=4,
        page_size=2, source_page_size=6, dtype=I64, status=status, **out,
    )  # fmt: skip


def one_each(t: dict[str, Any], status: Status | None, **out: Any) -> torch.Tensor:
    return xkv.translate_positions(
        t["source"], t["positions"] + 0, req_pool_indices=t["one_each"], source_page_size=2, block_stride=5,
        status=status, **out,
    )  # fmt: skip


def of_a_rank(t: dict[str, Any], status: Status | None, **out: Any) -> torch.Tensor:
    return xkv.translate_positions(
        t["source"], t["positions"], query_start_loc=t["starts"], seq_lens=t["lens"] + 0, unit=2,
        shard=Shard(2, 1, 2, "global"), status=status, **out,
    )  # fmt: skip


def of_a_rank_in_blocks(t: dict[str, Any], status: Status | None, **out: Any) -> torch.Tensor:
    return xkv.translate_positions(
        t["source"], t["positions"] + 1, token_to_req=t["to_req"], seq_lens=t["lens"] * 2, source_page_size=8,
        shard=Shard(2, 0, 4, "global"), compact=True, status=status, **out,
    )  # fmt: skip


CALLS = [by_request, by_starts, one_each, of_a_rank, of_a_rank_in_blocks]
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)
BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param("inductor", marks=[pytest.mark.gpu, pytest.mark.slow]),  # on a CPU: test_inductor
]
in_graphs = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning"),
    pytest.mark.skipif(INTERPRETED, reason="what a graph calls is the op, whatever that runs on"),
]


def graphs(test: Any) -> Any:
    """Marks a test of torch.compile."""
    for mark in in_graphs:
        test = mark(test)
    return test


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def compiled(f: Callable[..., Any], backend: Any, **more: Any) -> Callable[..., Any]:
    return torch.compile(f, fullgraph=True, backend=backend, **more)


@graphs
@every_call
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(backend: str, call: Any, device: str) -> None:
    """The same as eager, with several numbers of query tokens, without a graph break."""
    f = compiled(lambda t, status: call(t, status) * 2, backend)
    for tokens in (3, 6, 1):
        t, status, want_status = tensors(device, tokens), Status(device), Status(device)
        got, want = f(t, status), call(t, want_status) * 2
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert torch.equal(got, want)
        assert status.read() == want_status.read()


@graphs
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_inductor(device: str) -> None:
    """Two calls in one graph, with one query token and with several."""
    calls = by_request, by_starts
    f = compiled(lambda t, status: [call(t, status) + 1 for call in calls], "inductor")
    for tokens in (1, 5):
        t, status, want_status = tensors(device, tokens), Status(device), Status(device)
        got, want = f(t, status), [call(t, want_status) + 1 for call in calls]
        assert [x.tolist() for x in got] == [x.tolist() for x in want]
        assert status.read() == want_status.read()


@graphs
@every_call
def test_one_node_of_a_graph(call: Any, device: str) -> None:
    """It serves other numbers of query tokens, too."""
    found = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    f = compiled(lambda t, status: call(t, status), count, dynamic=True)
    for tokens in (4, 6, 9):
        f(tensors(device, tokens), Status(device))
    assert len(found) == 1
    assert [name for name in found[0] if name.startswith("xkv.")] == ["xkv.translate_positions.default"]


@graphs
@every_call
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_call_writes_out_and_counts(backend: str, call: Any, device: str) -> None:
    """Into views of larger buffers, of which nothing else changes."""
    made, t = [], tensors(device)
    dtype = call(t, None).dtype
    for how in (lambda f: f, lambda f: compiled(f, backend)):
        large = torch.full((5, 24), SENTINEL, dtype=dtype, device=device)
        counts = torch.full((9,), SENTINEL, dtype=I32, device=device)
        status, out = Status(device), large[1:4, 4:20]
        f = how(lambda t, out, counts, status: (call(t, status, out=out, counts=counts), counts * 2))
        got, twice = f(t, out, counts[2:6], status)
        assert got is out
        made.append([large.tolist(), counts.tolist(), twice[:3].tolist(), status.read()])
    assert made[0] == made[1]
    assert made[0][1][:2] == made[0][1][5:7] == [SENTINEL] * 2


@every_call
def test_eager_calls_do_not_pass_the_dispatcher(call: Any, device: str) -> None:
    with Recorder() as seen:
        call(tensors(device), Status(device))
    assert not seen.calls


@graphs
@every_call
def test_opcheck(call: Any, device: str) -> None:
    """PyTorch's checks of a registered op: its schema, fake outputs, autograd and functionalisation."""
    calls: list[Any] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with Recorder() as seen:
                result = graph(*args)
            calls.extend(seen.calls)
            return result

        return run

    counts = torch.zeros(3, dtype=I32, device=device)
    torch.compile(lambda t, s, n: call(t, s, counts=n), backend=record)(
        tensors(device), Status(device), counts
    )
    ((op, args, kwargs),) = calls
    opcheck(op, args, kwargs)


# What is wrong in a compiled call: said as in an eager one, by the trace or by the op when it runs.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("page size", {"page_size": 12}, "page_size must be a power of two from 1 to 1024, got 12"),
    ("unit", {"unit": 3, "page_size": 2}, "unit must be a multiple or a divisor of page_size=2, got 3"),
    ("dtype", {"positions": torch.zeros(3, 4)}, "positions must be int32 or int64, got torch.float32"),
    ("rank", {"token_to_req": torch.zeros(1, 3, dtype=I64)}, "token_to_req must have 1 dimension"),
    ("tokens", {"token_to_req": torch.zeros(4, dtype=I64)}, "token_to_req must have 3 entries"),
    ("meta", {"seq_lens": torch.zeros(2, dtype=I32, device="meta")}, "seq_lens must be on"),
    ("compact", {"compact": 1}, "compact must be a bool, got int"),
]


@graphs
@pytest.mark.parametrize(("change", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_what_is_wrong_in_a_compiled_call(
    fullgraph: bool, change: dict[str, Any], says: str, device: str
) -> None:
    """Whole graphs fail where they are traced, in torch's error with our words; others as eager calls."""
    given = good(device) | {"out": None, "page_size": 1} | {
        k: v.to(device) if isinstance(v, torch.Tensor) and not v.is_meta else v for k, v in change.items()
    }  # fmt: skip
    expected = torch._dynamo.exc.Unsupported if fullgraph else (TypeError, ValueError)
    with pytest.raises(expected) as info:
        torch.compile(lambda g: xkv.translate_positions(**g), backend="eager", fullgraph=fullgraph)(given)
    assert says in str(info.value)


@graphs
def test_an_overlap_in_a_compiled_call(device: str) -> None:
    """It is found when the op runs."""
    given = good(device)
    before = whole(given["positions"]).clone()
    f = compiled(
        lambda positions, out: xkv.translate_positions(given["req_to_token"], positions, out=out) + 0, "eager"
    )
    with pytest.raises(ValueError, match="out must not share memory with an input"):
        f(given["positions"], given["positions"])
    assert torch.equal(whole(given["positions"]), before)


@graphs
def test_the_status_word_is_written_in_a_graph(device: str) -> None:
    given, status = good(device), Status(device)
    f = compiled(
        lambda rows: xkv.translate_positions(
            given["req_to_token"], given["positions"], token_to_req=given["token_to_req"],
            req_pool_indices=rows, seq_lens=given["seq_lens"], status=status,
        ),
        "aot_eager",
    )  # fmt: skip
    f(torch.tensor([ROWS, 0], device=device))
    assert status.read() == (1, Reason.BAD_ROW)


@every_call
def test_views_of_larger_tensors(call: Any, device: str) -> None:
    """At any offset and with any row stride: inputs are not changed, outputs are written alone."""
    t = tensors(device, 5)
    status, want_status = Status(device), Status(device)
    counts = torch.empty(5, dtype=I32, device=device)
    want = call(t, want_status, counts=counts)
    inside, around = {}, {}
    for name, x in t.items():
        shape = [n + 4 for n in x.shape]
        large = torch.full(shape, SENTINEL, dtype=x.dtype, device=device)
        inside[name] = large[tuple(slice(1, 1 + n) for n in x.shape)].copy_(x)
        around[name] = large.clone(), large
    large = torch.full((9, 31), SENTINEL, dtype=want.dtype, device=device)
    large_counts = torch.full((9,), SENTINEL, dtype=I32, device=device)
    out = call(inside, status, out=large[3:8, 5:21], counts=large_counts[1:8])
    assert torch.equal(out, want)
    assert large_counts.tolist() == [SENTINEL, *counts.tolist(), SENTINEL, SENTINEL, SENTINEL]
    assert status.read() == want_status.read()
    out.fill_(SENTINEL)
    assert large.unique().tolist() == [SENTINEL]
    assert all(torch.equal(before, after) for before, after in around.values())


def test_rows_that_share_memory_are_read(device: str) -> None:
    """One row of positions for all query tokens, one source row for all requests."""
    given = good(device) | {"counts": None}
    given["positions"] = given["positions"][:1].expand(TOKENS, K)
    given["req_to_token"] = given["req_to_token"][:1].expand(ROWS, WIDTH)
    assert xkv.translate_positions(**given).tolist() == [[0, 2, -1, 7], [0, 2, -1, -1], [0, 2, -1, 7]]


@every_call
def test_inference_mode(call: Any, device: str) -> None:
    """In it, out of it, and with tensors of it outside."""
    t, want_status = tensors(device), Status(device)
    counts = torch.empty(3, dtype=I32, device=device)
    want = call(t, want_status, counts=counts)
    with torch.inference_mode():
        made, status = tensors(device), Status(device)
        out, inner = call(made, status), torch.empty(3, dtype=I32, device=device)
        assert out.is_inference()
        assert torch.equal(out, want)
        assert torch.equal(call(t, want_status, counts=counts), want)  # others' tensors inside
        out.zero_()
    assert call(made, status, out=out, counts=inner) is out
    assert torch.equal(out, want)
    assert torch.equal(inner, counts)
    assert status.read() == want_status.read()


@graphs
@every_call
def test_a_compiled_call_in_inference_mode(call: Any, device: str) -> None:
    t = tensors(device)
    want = call(t, Status(device))
    with torch.inference_mode():
        f = compiled(lambda t, status: call(t, status), "eager")
        assert torch.equal(f(tensors(device), Status(device)), want)


def test_what_requires_grad_is_no_int(device: str) -> None:
    given = good(device)
    given["positions"] = given["positions"].float().requires_grad_()
    with pytest.raises(TypeError, match=r"positions must be int32 or int64, got torch.float32"):
        xkv.translate_positions(**given)
    with torch.enable_grad():
        assert not by_request(tensors(device), None).requires_grad
