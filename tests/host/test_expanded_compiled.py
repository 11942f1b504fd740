"""`expand_queries` inside torch.compile, and PyTorch's own checks of the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import INTERPRETED
from torch.library import opcheck

import xkv
from xkv import Shard, Status
from xkv.cli.check.memory import SENTINEL, whole

I32, I64 = torch.int32, torch.int64
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning"),
    pytest.mark.skipif(INTERPRETED, reason="what a graph calls is the op, whatever that runs on"),
]
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=[pytest.mark.gpu, pytest.mark.slow])]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def inputs(device: str, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    counts = torch.randint(0, 5, (batch,), generator=generator)
    table = torch.randint(0, 99, (batch + 1, 12), generator=generator)
    made = {"counts": counts, "lens": (counts + 9).to(I32), "table": table.to(I32)}
    return {name: x.to(device) for name, x in made.items()}


def call(t: dict[str, Any], num_tokens: int | None, status: Status, **out: Any) -> Any:
    """As a model calls it, among other ops."""
    starts = torch.nn.functional.pad(t["counts"].cumsum(0), (1, 0))
    return xkv.expand_queries(
        starts, t["lens"] - 3, num_tokens=num_tokens, page_table=t["table"], pad_req=-1,
        shard=Shard(2, 1), status=status, **out,
    )  # fmt: skip


def values(result: Any) -> list[Any]:
    return [None if x is None else (x.dtype, x.tolist()) for x in result]


@pytest.mark.parametrize("num_tokens", [30, None], ids=["bounded", "counted"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_new_outputs(backend: str, num_tokens: int | None, device: str) -> None:
    f = torch.compile(lambda t, status: call(t, num_tokens, status), fullgraph=True, backend=backend)
    for batch in (3, 5, 1):
        t, status, want_status = inputs(device, batch), Status(device), Status(device)
        got = f(t, status)
        assert isinstance(got, xkv.ExpandedQueries)
        assert values(got) == values(call(t, num_tokens, want_status))
        assert status.read() == want_status.read()


def buffers(device: str, *missing: str) -> xkv.ExpandedQueries:
    """Views of larger buffers, but for those that are missing."""
    vector = lambda dtype: torch.full((35,), SENTINEL, dtype=dtype, device=device)[2:-3]  # noqa: E731
    table = torch.full((30, 14), SENTINEL, dtype=I32, device=device)[:, 1:9]
    out = xkv.ExpandedQueries(vector(I32), vector(I64), vector(I32), table)
    return out._replace(**dict.fromkeys(missing))


@pytest.mark.parametrize("missing", [(), ("token_to_req",), ("positions", "seq_lens")], ids=len)
@pytest.mark.parametrize("backend", BACKENDS)
def test_out_is_written_to(backend: str, missing: tuple[str, ...], device: str) -> None:
    made, t = [], inputs(device)
    for compiled in (False, True):
        out, status = buffers(device, *missing), Status(device)
        f: Callable[..., Any] = lambda t, out, status: (call(t, None, status, out=out), t["lens"] * 2)  # noqa: E731
        got = (torch.compile(f, fullgraph=True, backend=backend) if compiled else f)(t, out, status)[0]
        assert [a is b for a, b in zip(got, out, strict=True)] == [True] * 4
        made.append([None if x is None else whole(x).tolist() for x in out] + [status.read()])
    assert made[0] == made[1]


def test_one_node_of_a_graph_that_serves_other_batches(device: str) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    f = torch.compile(lambda t, s: call(t, 30, s), fullgraph=True, dynamic=True, backend=count)
    for batch in (3, 4, 7):
        f(inputs(device, batch), Status(device))
    assert len(graphs) == 1
    assert [name for name in graphs[0] if name.startswith("xkv.")] == ["xkv.expand_queries.default"]


def test_opcheck(device: str) -> None:
    """Its schema, fake outputs, autograd and functionalisation."""
    t, out = inputs(device), buffers(device)
    starts = torch.nn.functional.pad(t["counts"].cumsum(0), (1, 0))
    opcheck(
        torch.ops.xkv.expand_queries.default,
        (starts, t["lens"], t["table"], *out, Status(device).word),
        {"num_tokens": 20, "shard": [2, 1, 1, 0], "causal": True, "pad_req": 0},
    )


def test_what_is_wrong_is_said(device: str) -> None:
    f = torch.compile(lambda t, status: call(t, -1, status), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="num_tokens must be from 0 to"):
        f(inputs(device), Status(device))
