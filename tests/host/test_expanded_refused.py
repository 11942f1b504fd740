"""What `expand_queries` refuses, in words, and that it has written nothing then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import xkv
from xkv.cli.check.memory import SENTINEL, guarded, guarded_1d, whole
from xkv.expanded import MAX_TOKENS, MAX_WIDTH
from xkv.params import INT32_MAX, MAX_BATCH

I32, I64 = torch.int32, torch.int64


def good(device: str) -> dict[str, Any]:
    """A call with every argument, of 2 requests and 5 query tokens."""
    return {
        "query_start_loc": torch.tensor([0, 1, 4], device=device),
        "seq_lens": torch.tensor([7, 5], dtype=I32, device=device),
        "page_table": torch.arange(6, dtype=I32, device=device).view(2, 3),
        "out": xkv.ExpandedQueries(
            guarded_1d(5, I32, device), guarded_1d(5, I64, device), guarded_1d(5, I32, device),
            guarded(5, 3, 4, I32, device),
        ),
        "status": xkv.Status(device),
    }  # fmt: skip


def out_with(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given["out"]._replace(
        **{name: x(given) if callable(x) else x for name, x in fields.items()}
    )


def ones(*shape: int, dtype: torch.dtype = I32, device: str | None = None) -> Callable[..., torch.Tensor]:
    return lambda given: torch.ones(shape, dtype=dtype, device=device or given["seq_lens"].device)


# the argument, its bad value or a function of the good arguments, the error, and how its message begins
REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("query_start_loc", [0, 1, 4], TypeError, "query_start_loc must be a torch.Tensor, got list"),
    ("query_start_loc", None, TypeError, "query_start_loc must be a torch.Tensor, got NoneType"),
    ("query_start_loc", ones(3, dtype=torch.float32), TypeError, "query_start_loc must be int32 or int64"),
    ("query_start_loc", ones(3, 1), ValueError, "query_start_loc must have 1 dimension(s), got shape (3, 1)"),
    ("query_start_loc", ones(2), ValueError, "query_start_loc must have 3 entries, one more"),
    ("query_start_loc", lambda _: torch.ones(6, dtype=I32)[::2], ValueError, "query_start_loc must have an"),
    ("query_start_loc", ones(3, device="meta"), ValueError, "query_start_loc must be on c"),
    ("seq_lens", 7, TypeError, "seq_lens must be a torch.Tensor, got int"),
    ("seq_lens", ones(2, dtype=torch.int16), TypeError, "seq_lens must be int32 or int64, got torch.int16"),
    ("seq_lens", ones(3), ValueError, "query_start_loc must have 4 entries, one more than seq_lens, got 3"),
    ("seq_lens", ones(1, 2), ValueError, "seq_lens must have 1 dimension(s), got shape (1, 2)"),
    ("seq_lens", ones(2, device="meta"), ValueError, "seq_lens must be on a GPU"),
    ("seq_lens", ones(MAX_BATCH + 1), ValueError, f"seq_lens must have at most {MAX_BATCH} entries, got"),
    ("num_tokens", 2.0, TypeError, "num_tokens must be an int, got float"),
    ("num_tokens", True, TypeError, "num_tokens must be an int, got bool"),
    ("num_tokens", -1, ValueError, f"num_tokens must be from 0 to {MAX_TOKENS}, got -1"),
    ("num_tokens", MAX_TOKENS + 1, ValueError, f"num_tokens must be from 0 to {MAX_TOKENS}, got"),
    ("num_tokens", 6, ValueError, "out.token_to_req must have at least 6 rows or entries, got 5"),
    ("shard", (2, 1), TypeError, "shard must be an xkv.Shard, got tuple"),
    ("causal", 1, TypeError, "causal must be a bool, got int"),
    ("causal", None, TypeError, "causal must be a bool, got NoneType"),
    ("pad_req", 1.0, TypeError, "pad_req must be an int, got float"),
    ("pad_req", INT32_MAX + 1, ValueError, f"pad_req must be from {-INT32_MAX - 1} to {INT32_MAX}, got"),
    ("page_table", [[1]], TypeError, "page_table must be a torch.Tensor, got list"),
    ("page_table", ones(2, 3, dtype=torch.uint8), TypeError, "page_table must be int32 or int64, got"),
    ("page_table", ones(6), ValueError, "page_table must have 2 dimension(s), got shape (6,)"),
    ("page_table", ones(1, 3), ValueError, "page_table must have at least 2 rows, one per request, got 1"),
    ("page_table", ones(2, 3, dtype=I64), TypeError, "out.out_page_table must be torch.int64, as"),
    ("page_table", ones(2, 2), ValueError, "out.out_page_table must have at most 2 columns"),
    ("page_table", ones(2, 3, device="meta"), ValueError, "page_table must be on c"),
    ("page_table", lambda _: torch.ones(3, 2, dtype=I32).t(), ValueError, "page_table must have an inner"),
    ("page_table", None, TypeError, "page_table must be a torch.Tensor with out.out_page_table, got None"),
    (
        "page_table", lambda _: torch.empty(MAX_WIDTH + 1, dtype=I32).expand(2, -1),
        ValueError, f"page_table must have at most {MAX_WIDTH} columns, got {MAX_WIDTH + 1}",
    ),
    ("out", tuple, TypeError, "out must be an xkv.ExpandedQueries, got type"),
    ("out", lambda given: tuple(given["out"]), TypeError, "out must be an xkv.ExpandedQueries, got tuple"),
    ("out", xkv.ExpandedQueries(), ValueError, "out must have a tensor to write, got None alone"),
    ("out", out_with(token_to_req=[1]), TypeError, "out.token_to_req must be a torch.Tensor, got list"),
    ("out", out_with(token_to_req=ones(5, dtype=I64)), TypeError, "out.token_to_req must be int32, got"),
    ("out", out_with(positions=ones(5, dtype=torch.bool)), TypeError, "out.positions must be int32 or int64"),
    ("out", out_with(positions=ones(4)), ValueError, "out.positions must have 5 entries or rows"),
    ("out", out_with(seq_lens=ones(5, dtype=I64)), TypeError, "out.seq_lens must be int32, got torch.int64"),
    ("out", out_with(seq_lens=ones(5, 1)), ValueError, "out.seq_lens must have 1 dimension(s), got"),
    ("out", out_with(seq_lens=ones(5, device="meta")), ValueError, "out.seq_lens must be on c"),
    ("out", out_with(out_page_table=None), TypeError, "out.out_page_table must be a torch.Tensor"),
    ("out", out_with(out_page_table=ones(6, 3)), ValueError, "out.out_page_table must have 5 entries"),
    ("out", out_with(out_page_table=ones(5)), ValueError, "out.out_page_table must have 2 dimension(s), got"),
    (
        "out", out_with(out_page_table=lambda _: torch.ones(9, dtype=I32).as_strided((5, 3), (1, 1))),
        ValueError, "out.out_page_table's rows must not overlap, got strides (1, 1)",
    ),
    (
        "out", out_with(token_to_req=lambda given: given["out"].seq_lens),
        ValueError, "out.seq_lens must not share memory with an input or another output",
    ),
    (
        "out", out_with(out_page_table=lambda given: given["page_table"].view(-1).as_strided((5, 1), (1, 1))),
        ValueError, "out.out_page_table must not share memory with an input or another output",
    ),
    ("status", 3, TypeError, "status must be an xkv.Status, got int"),
    ("status", lambda _: torch.zeros(1, dtype=I64), TypeError, "status must be an xkv.Status, got Tensor"),
    ("status", lambda _: xkv.Status("meta"), ValueError, "status.word must be on c"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "error", "says"), REFUSED, ids=[f"{n}-{says[:60]}" for n, _, _, says in REFUSED]
)
def test_refused(name: str, value: Any, error: type[Exception], says: str) -> None:
    given = good("cpu")
    written = [whole(x).clone() for x in given["out"]]
    outs = given["out"]
    arguments = given | {name: value(given) if callable(value) and value is not tuple else value}
    with pytest.raises(error) as info:
        xkv.expand_queries(arguments.pop("query_start_loc"), arguments.pop("seq_lens"), **arguments)
    assert str(info.value).startswith(says)
    assert all(torch.equal(whole(x), before) for x, before in zip(outs, written, strict=True))
    assert given["status"].read() is None


def test_the_good_call_is_taken() -> None:
    given = good("cpu")
    out = given["out"]
    got = xkv.expand_queries(given.pop("query_start_loc"), given.pop("seq_lens"), **given)
    assert got is out
    assert out.out_page_table.tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5], [0, 0, 0]]
    assert whole(out.token_to_req)[-1] == SENTINEL


def test_a_table_of_new_tensors_needs_no_out() -> None:
    given = good("cpu")
    got = xkv.expand_queries(
        given["query_start_loc"], given["seq_lens"], num_tokens=0, page_table=given["page_table"]
    )
    assert [tuple(x.shape) for x in got] == [(0,), (0,), (0,), (0, 3)]


def test_a_warmup_has_nothing_to_do_on_a_cpu() -> None:
    given = good("cpu")
    out = given["out"]
    assert xkv.warmup(xkv.expand_queries, given.pop("query_start_loc"), given.pop("seq_lens"), **given) == 0
    assert (out.positions == SENTINEL).all()
