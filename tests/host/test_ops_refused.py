"""What the public ops refuse, in words, and that they have written nothing then."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from op_arguments import (
    ALL,
    CSR,
    I32,
    I64,
    ROWS,
    SLOTS,
    TABLE,
    contents,
    good,
    ids,
    source_tensor,
    status_with,
    tensors_in,
)

import xkv
from xkv import KVIndices, Status
from xkv.cli.check.memory import SENTINEL, guarded, guarded_1d, whole

Change = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]

# What the host refuses. Every case: the op, what replaces good arguments (or a function of the
# good arguments that gives it), the error, what its message begins with, and what else it says.
REFUSED: list[Any] = []


def refuse(
    ops: tuple[str, ...], error: type[Exception], begins: str, *says: str, name: str = "",
    **change: Any,
) -> None:  # fmt: skip
    """Adds one case for every op; a function among the changes gets the good arguments."""
    for op in ops:
        values = "-".join(str(v)[:20] for v in change.values() if not callable(v))
        label = f"{op.removeprefix('build_')}-{'-'.join(change)}-{name or values}"
        REFUSED.append(pytest.param(op, change, error, begins, says, id=label))


def swap(name: str, how: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    return {name: lambda given: how(given[name])}


TENSORS = [(ALL, name) for name in ("req_to_token", "req_pool_indices", "seq_lens")]
TENSORS += [((SLOTS,), "query_lens"), ((TABLE, SLOTS), "out")]
for ops, name in TENSORS:
    # out=None and kv_start=None are fine; [] has no dtype to be right by accident
    for label, how in {
        "a list": lambda x: x.tolist(),
        "numpy": lambda x: x.cpu().numpy(),
        "an int": lambda x: 3,
    }.items():
        refuse(ops, TypeError, f"{name} must be a torch.Tensor", "got ", name=label, **swap(name, how))
    for dtype in (torch.int16, torch.uint8, torch.bool, torch.float32, torch.complex64):
        refuse(
            ops, TypeError, f"{name} must be int32 or int64", f"got {dtype}", name=str(dtype),
            **swap(name, lambda x, dtype=dtype: x.to(dtype)),
        )  # fmt: skip
    refuse(
        ops, TypeError, f"{name} must be a dense tensor", "got torch.sparse_coo", name="sparse",
        **swap(name, lambda x: x.to_sparse()),
    )  # fmt: skip
    refuse(
        ops, TypeError, f"{name} must be a dense tensor", "got a nested tensor", name="nested",
        **swap(name, lambda x: torch.nested.nested_tensor([x[0].flatten()] * 2)),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have ", "dimension(s), got shape ()", name="0-d",
        **swap(name, lambda x: x.flatten()[0]),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have ", "dimension(s), got shape (1, ", name="one more",
        **swap(name, lambda x: x[None]),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have an inner stride of 1", "got strides", name="strided",
        **swap(name, lambda x: x.repeat_interleave(2, -1)[..., ::2]),
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have an inner stride of 1", "got strides", name="expanded",
        **swap(name, lambda x: x[..., :1].expand(x.shape)),
    )  # fmt: skip
    if name != "req_to_token":
        refuse(
            ops, ValueError, f"{name} must be on ", "like req_to_token, got meta", name="meta",
            **swap(name, lambda x: x.to("meta")),
        )  # fmt: skip
refuse(
    ALL, TypeError, "req_to_token must be a dense tensor", "got torch.sparse_csr", name="csr",
    **swap("req_to_token", lambda x: x.to_sparse_csr()),
)  # fmt: skip
refuse(
    ALL, ValueError, "req_to_token must be on a GPU", "CPU, got meta", name="meta",
    **swap("req_to_token", lambda x: x.to("meta")),
)  # fmt: skip
refuse(
    ALL, ValueError, "req_to_token must be on a GPU", "CPU, got meta", name="all meta",
    req_to_token=lambda g: g["req_to_token"].to("meta"),
    req_pool_indices=lambda g: g["req_pool_indices"].to("meta"),
    seq_lens=lambda g: g["seq_lens"].to("meta"), out=None,
)  # fmt: skip
refuse(
    ALL, ValueError, "req_to_token's rows must hold at most 268435455 tokens", "got 268435456",
    req_to_token=lambda g: g["req_to_token"].new_empty(1, 2**18), source_page_size=1024,
    name="too wide",
)  # fmt: skip

# What there must be one of for every request, or may be None.
PER_ROW = [(ALL, name, {}) for name in ("req_pool_indices", "seq_lens_delta")]
PER_ROW += [((SLOTS,), "query_lens", {})]
PER_ROW += [((TABLE, CSR), "kv_start", more) for more in ({}, {"out": None})]
for ops, name, more in PER_ROW:
    for rows in (0, 1, 3):
        refuse(
            ops, ValueError, f"{name} must have 2 entries",
            "one per request as seq_lens", f"got {rows}", name=f"{rows} rows",
            **{name: lambda g, rows=rows: g["seq_lens"].new_zeros(rows)}, **more,
        )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have 1 dimension(s)", "got shape ()", name="0-d",
        **{name: lambda g: g["seq_lens"][0]}, **more,
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have 1 dimension(s)", "got shape (1, 2)", name="2-d",
        **{name: lambda g: g["seq_lens"][None]}, **more,
    )  # fmt: skip
    refuse(
        ops, TypeError, f"{name} must be int32 or int64", "got torch.float32", name="float",
        **{name: lambda g: g["seq_lens"].float()}, **more,
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must be on ", "like req_to_token, got meta", name="meta",
        **{name: lambda g: g["seq_lens"].to("meta")}, **more,
    )  # fmt: skip
    refuse(
        ops, ValueError, f"{name} must have an inner stride of 1", "got strides (0,)",
        name="expanded", **{name: lambda g: g["seq_lens"][:1].expand(2)}, **more,
    )  # fmt: skip
for more in ({}, {"out": None}):
    for value in (0, [0, 0], np.zeros(2, np.int64)):
        refuse(
            (TABLE, CSR), TypeError, "kv_start must be a torch.Tensor",
            f"got {type(value).__name__}", kv_start=value, **more,
        )  # fmt: skip

for name in ("token_map", "page_map"):
    refuse(ALL, TypeError, f"{name} must be a torch.Tensor", "got list", **{name: [0, 1]})
    refuse(ALL, TypeError, f"{name} must be a torch.Tensor", "got dict", **{name: {}})
    refuse(
        ALL, TypeError, f"{name} must be int32 or int64", "got torch.int16", name="int16",
        **{name: lambda g: g["seq_lens"].short()},
    )  # fmt: skip
    refuse(
        ALL, ValueError, f"{name} must have 1 dimension(s)", "got shape (1, 2)", name="2-d",
        **{name: lambda g: g["seq_lens"][None]},
    )  # fmt: skip
    refuse(
        ALL, ValueError, f"{name} must be on ", "got meta", name="meta",
        **{name: lambda g: g["seq_lens"].to("meta")},
    )  # fmt: skip

for ops, name in (((TABLE, CSR), "page_size"), (ALL, "source_page_size"), (ALL, "map_page_size")):
    for value in (0, -16, 3, 48, 2048, 2**40):
        expected = f"{name} must be a power of two from 1 to 1024"
        if name == "source_page_size":
            if 0 < value < 2**16:
                continue
            expected = f"{name} must be from 1 to 65536"
        refuse(ops, ValueError, expected, f"got {value}", **{name: value})
    for value in (True, 16.0, "16", np.int64(16), torch.tensor(16)):
        refuse(ops, TypeError, f"{name} must be an int", f"got {type(value).__name__}", **{name: value})
refuse((TABLE, CSR), TypeError, "page_size must be an int", "got NoneType", page_size=None)
for value in (3, 24, 40, 2056, 65_535):
    refuse(
        (TABLE, CSR), ValueError, "source_page_size must be a multiple or a divisor of page_size=16",
        f"got {value}", source_page_size=value,
    )  # fmt: skip

# Plain integers: (ops, name, what else must be given, bounds).
INTEGERS: list[tuple[tuple[str, ...], str, dict[str, Any], int, int]] = [
    (ALL, "seq_lens_delta", {}, -(2**28) + 1, 2**28 - 1),
    (ALL, "missing_id", {}, -(2**31) + 1, 2**31 - 1),
    (ALL, "pad_value", {}, -(2**31) + 1, 2**31 - 1),
    (ALL, "pad_to_multiple_of", {"pad_value": 0}, 1, 2**31 - 1),
    ((TABLE,), "max_seq_len", {}, 0, 2**28 - 1),
    ((CSR, SLOTS), "max_tokens", {}, 0, 2**31 - 1),
]
for ops, name, more, low, high in INTEGERS:
    for value in (low - 2, high + 1, 10**30):
        refuse(
            ops, ValueError, f"{name} must be from ", f" to {high}, got {value}",
            **{name: value}, **more,
        )  # fmt: skip
    for value in (True, 1.0, "1", np.int32(1)):
        refuse(
            ops, TypeError, f"{name} must be an int", f"got {type(value).__name__}",
            **{name: value}, **more,
        )  # fmt: skip
refuse(ALL, ValueError, "pad_to_multiple_of=4 needs pad_value", "got None", pad_to_multiple_of=4)

for value in (0, "ok", object(), torch.zeros(1, dtype=I64)):
    refuse(ALL, TypeError, "status must be an xkv.Status", f"got {type(value).__name__}", status=value)


for label, how in {
    "int32": lambda x: x.int(), "none": lambda x: x[:0], "two": lambda x: x.expand(2).clone()
}.items():  # fmt: skip
    refuse(
        ALL, ValueError, "status.word must be one int64", "got torch.int", name=label,
        status=status_with(how),
    )  # fmt: skip
refuse(
    ALL, ValueError, "status must be on ", "like req_to_token, got meta", name="meta",
    status=lambda g: Status("meta"),
)  # fmt: skip
for value in (torch.int16, torch.float32, torch.bool, "int32", None, int):
    refuse(
        ALL, TypeError, "dtype must be torch.int32 or torch.int64", f"got {value}",
        dtype=value, out=None,
    )  # fmt: skip

refuse(
    (TABLE,), ValueError, "out must have at least 2 rows", "got 1", name="a row short",
    **swap("out", lambda x: x[:1]),
)  # fmt: skip
refuse((TABLE,), ValueError, "out must be wide enough", "max_seq_len=65", "4 pages of 16", max_seq_len=65)
refuse(
    (TABLE,), ValueError, "out's rows must not overlap", "got strides (0, 1)", name="one row",
    **swap("out", lambda x: x[:1].expand(2, 4)),
)  # fmt: skip
refuse(
    (TABLE,), ValueError, "out's rows must not overlap", "got strides (3, 1)", name="sheared",
    **swap("out", lambda x: x.as_strided((2, 4), (3, 1), x.storage_offset())),
)  # fmt: skip
refuse(
    (TABLE,), ValueError, "out must have at most 2147483647 entries a row", "got 2147483648",
    req_pool_indices=lambda g: g["seq_lens"][:0], seq_lens=lambda g: g["seq_lens"][:0],
    out=lambda g: g["out"].new_empty(0, 2**31), name="too wide",
)  # fmt: skip
refuse((SLOTS,), ValueError, "out must have at least 10 rows or entries", "got 9", max_tokens=10)
AT: dict[str, Any] = {
    "query_lens": None, "positions": lambda g: g["seq_lens"].new_zeros(5),
    "query_start_loc": lambda g: g["seq_lens"].new_zeros(3),
}  # fmt: skip
for name in ("positions", "query_start_loc"):
    for value, got in (([0], "list"), (3, "int")):
        refuse((SLOTS,), TypeError, f"{name} must be a torch.Tensor", f"got {got}", **AT | {name: value})
    for dtype in (torch.uint8, torch.float32):
        half = lambda g, dtype=dtype: torch.zeros(3, dtype=dtype, device=g["seq_lens"].device)  # noqa: E731
        refuse(
            (SLOTS,), TypeError, f"{name} must be int32 or int64", f"got {dtype}", name=f"{name} {dtype}",
            **AT | {name: half},
        )  # fmt: skip
    wide = lambda g: g["seq_lens"].new_zeros(3, 2)  # noqa: E731
    refuse((SLOTS,), ValueError, f"{name} must have 1 dimension(s)", name=f"{name} 2-d", **AT | {name: wide})
    sparse = lambda g: g["seq_lens"].new_zeros(6)[::2]  # noqa: E731
    refuse(
        (SLOTS,), ValueError, f"{name} must have an inner stride of 1", name=f"{name} strided",
        **AT | {name: sparse},
    )  # fmt: skip
for count in (0, 2, 4):
    starts = lambda g, count=count: g["seq_lens"].new_zeros(count)  # noqa: E731
    refuse(
        (SLOTS,), ValueError, "query_start_loc must have 3 entries, one more than seq_lens", f"got {count}",
        name=f"{count} starts", **AT | {"query_start_loc": starts},
    )  # fmt: skip
refuse(
    (SLOTS,), TypeError, "query_start_loc must be a torch.Tensor with positions, got None", name="no starts",
    **AT | {"query_start_loc": None},
)  # fmt: skip
refuse(
    (SLOTS,), TypeError, "query_lens must be a torch.Tensor, or positions and query_start_loc, got None",
    name="neither", query_lens=None,
)  # fmt: skip
refuse(
    (SLOTS,), ValueError, "query_lens must be None with positions, got Tensor", name="both",
    **AT | {"query_lens": lambda g: g["seq_lens"].new_zeros(2)},
)  # fmt: skip
refuse(
    (SLOTS,), ValueError, "out must have at least 10 rows or entries", "got 9", name="a bound of positions",
    **AT | {"max_tokens": 10},
)  # fmt: skip
for name, value in (("max_position", 5), ("query_start_loc", AT["query_start_loc"])):
    refuse((SLOTS,), ValueError, f"{name} must be None without positions, got ", **{name: value})
for value in (-1, 2**28, 10**30):
    refuse(
        (SLOTS,), ValueError, f"max_position must be from 0 to {2**28 - 1}, got {value}",
        **AT | {"max_position": value},
    )  # fmt: skip
for value in (True, 1.5):
    refuse(
        (SLOTS,), TypeError, f"max_position must be an int, got {type(value).__name__}",
        **AT | {"max_position": value},
    )  # fmt: skip
for value in ([], (1, 2, 3), 3):
    refuse((CSR,), TypeError, "out must be an xkv.KVIndices", f"got {type(value).__name__}", out=value)
refuse(
    (CSR,), TypeError, "out must be an xkv.KVIndices", "got tuple", name="plain",
    **swap("out", tuple),
)  # fmt: skip
refuse(
    (CSR,), TypeError, "out must be an xkv.KVIndices", "got Tensor", name="indices alone",
    **swap("out", lambda out: out.kv_indices),
)  # fmt: skip
refuse(
    (CSR,), ValueError, "out.kv_indices must be long enough", "max_tokens=145", "9 entries of 16",
    max_tokens=145,
)  # fmt: skip
for field in KVIndices._fields:
    part = f"out.{field}"

    def with_field(
        how: Callable[[torch.Tensor], Any], field: str = field
    ) -> dict[str, Callable[[dict[str, Any]], KVIndices]]:
        return {"out": lambda g: g["out"]._replace(**{field: how(getattr(g["out"], field))})}

    refuse(
        (CSR,), TypeError, f"{part} must be a torch.Tensor", "got NoneType", name=f"{field} None",
        **with_field(lambda x: None),
    )  # fmt: skip
    refuse(
        (CSR,), TypeError, f"{part} must be int32", "got torch.int16", name=f"{field} int16",
        **with_field(lambda x: x.short()),
    )  # fmt: skip
    refuse(
        (CSR,), ValueError, f"{part} must have 1 dimension(s)", "got shape (1, ",
        name=f"{field} 2-d", **with_field(lambda x: x[None]),
    )  # fmt: skip
    refuse(
        (CSR,), ValueError, f"{part} must have an inner stride of 1", "got strides (0,)",
        name=f"{field} expanded", **with_field(lambda x: x[:1].expand(9)),
    )  # fmt: skip
    refuse(
        (CSR,), ValueError, f"{part} must be on ", "got meta", name=f"{field} meta",
        **with_field(lambda x: x.to("meta")),
    )  # fmt: skip
    if field != "kv_indices":
        refuse(
            (CSR,), TypeError, f"{part} must be int32", "got torch.int64", name=f"{field} int64",
            **with_field(lambda x: x.long()),
        )  # fmt: skip
        refuse(
            (CSR,), ValueError, f"{part} must have at least ", "got 1", name=f"{field} short",
            **with_field(lambda x: x[:1]),
        )  # fmt: skip


def over(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A view shaped like ``like`` whose first element is x's last."""
    end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    buffer = whole(x).view(like.dtype)
    at = end * x.element_size() // like.element_size()
    return buffer.as_strided(like.shape, like.stride(), at)


SHARED = [(ALL, name) for name in ("req_to_token", "req_pool_indices", "seq_lens", "token_map")]
SHARED += [(ALL, "page_map"), (ALL, "seq_lens_delta"), ((TABLE, CSR), "kv_start")]
SHARED += [((SLOTS,), "query_lens"), ((SLOTS,), "positions"), ((SLOTS,), "query_start_loc"), (ALL, "status")]


@pytest.mark.parametrize(("op", "name"), [(op, name) for ops, name in SHARED for op in ops], ids=str)
def test_out_over_an_input(op: str, name: str, device: str) -> None:
    given = good(op, device)
    # int64: an output of either width can begin at its last entry
    if name == "req_to_token":
        target = given[name] = guarded(5, 8, 10, I64, device).fill_(1)
    elif name == "status":
        target = given[name].word = guarded_1d(1, I64, device).fill_(2**63 - 1)
    elif name in ("positions", "query_start_loc"):
        given |= {at: how(given) if how else None for at, how in AT.items()}
        target = given[name] = guarded_1d(3, I64, device).fill_(1)
    else:
        target = given[name] = guarded_1d(2, I64, device).fill_(1)
    if op == CSR:
        for field in KVIndices._fields:
            bad = over(target, getattr(given["out"], field))
            out = given["out"]._replace(**{field: bad})
            assert_refused(op, given | {"out": out}, ValueError, f"out.{field} must not share memory", ())
    else:
        out = over(target, given["out"])
        assert_refused(op, given | {"out": out}, ValueError, "out must not share memory", ())


@pytest.mark.parametrize(("a", "b"), [*itertools.permutations(KVIndices._fields, 2)])
def test_outputs_over_each_other(a: str, b: str, device: str) -> None:
    given = good(CSR, device)
    out = given["out"]
    given["out"] = out._replace(**{a: over(getattr(out, b), getattr(out, a)[:3])})
    later = max(a, b, key=KVIndices._fields.index)
    assert_refused(CSR, given, ValueError, f"out.{later} must not share memory", ())


def test_neighbours_in_one_buffer_do_not_overlap(device: str) -> None:
    """One allocation for all that a step needs is usual; only what is shared is refused."""
    source = ids(1)
    buffer = torch.full((200,), SENTINEL, dtype=I32, device=device)
    lens, rows, indptr, last, indices = (
        buffer[a:b] for a, b in ((0, 6), (6, 12), (12, 19), (19, 25), (25, 66))
    )
    lens.copy_(torch.tensor([3, 0, 5, 9, 20, 4]))
    rows.copy_(torch.tensor(ROWS))
    out = KVIndices(indptr, indices, last)
    xkv.build_kv_indices(source_tensor(source, I32, device), rows, lens, out=out)
    assert indptr.tolist() == [0, 3, 3, 8, 17, 37, 41]
    assert indices.tolist() == [
        t for row, n in zip(ROWS, lens.tolist(), strict=True) for t in source[row][:n]
    ]
    assert buffer[66:].unique().tolist() == [SENTINEL]


def assert_refused(
    op: str, given: dict[str, Any], error: type[Exception], begins: str, says: tuple[str, ...]
) -> None:
    """The op raises just that error with that message, and writes nothing at all."""
    before = [contents(x) for x in tensors_in(given)]
    with pytest.raises(error) as info:
        getattr(xkv, op)(**given)
    message = str(info.value)
    assert type(info.value) is error, message
    assert message.startswith(begins)
    for part in says:
        assert part in message
    assert [contents(x) for x in tensors_in(given)] == before


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse).*:UserWarning")
@pytest.mark.parametrize(("op", "change", "error", "begins", "says"), REFUSED)
def test_refused(
    op: str, change: dict[str, Any], error: type[Exception], begins: str, says: tuple[str, ...],
    device: str,
) -> None:  # fmt: skip
    given = good(op, device)
    changed = {k: v(given) if callable(v) and not isinstance(v, type) else v for k, v in change.items()}
    assert_refused(op, given | changed, error, begins, says)


@pytest.mark.parametrize("op", ALL)
def test_what_the_refusals_start_from_is_good(op: str, device: str) -> None:
    given = good(op, device)
    before = [contents(x) for x in tensors_in({"out": given["out"]})]
    getattr(xkv, op)(**given)
    assert [contents(x) for x in tensors_in({"out": given["out"]})] != before
    assert given["status"].read() is None
