"""Any arguments at all: an error that names one of those that are wrong, or the right result."""

from __future__ import annotations

from typing import Any

import building
import hypothesis
import pytest
import torch
from conftest import INTERPRETED
from hostile_values import SCALARS, VARIANTS
from hypothesis import strategies as st
from op_arguments import ALL, CSR, SLOTS, TABLE, contents, good, tensors_in

import xkv
from xkv.cli.check import oracle
from xkv.launch import compile, launch, op_calls

pytestmark = pytest.mark.filterwarnings("ignore:.*(nested|Sparse|storage).*:UserWarning")


def fuzz(examples: int) -> hypothesis.settings:
    """So many; in the interpreter, where a call takes a second, a tenth of them."""
    return hypothesis.settings(max_examples=examples // 10 if INTERPRETED else examples, derandomize=True)


OPTIONS = {
    TABLE: ("page_size", "max_seq_len", "kv_start"), CSR: ("page_size", "max_tokens", "kv_start"),
    SLOTS: ("max_tokens", "query_lens"),
}  # fmt: skip
COMMON = (
    "req_to_token", "req_pool_indices", "seq_lens", "source_page_size", "out", "seq_lens_delta", "token_map",
    "page_map", "map_page_size", "missing_id", "pad_value", "pad_to_multiple_of", "dtype", "status",
)  # fmt: skip
MOST = 1 << 20  # entries of an output that a call may ask for here


def like(name: str, good: dict[str, Any]) -> Any:
    """A good tensor for an argument, also where a call needs none."""
    if isinstance(good.get(name), (torch.Tensor, xkv.KVIndices)):
        return good[name]
    lens = good["seq_lens"]
    return torch.arange(700, device=lens.device) if name.endswith("map") else torch.ones_like(lens)


@st.composite
def change(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[str, str, int]:
    """An argument's name, what becomes of it, and which of its parts, if it has parts."""
    name = draw(st.sampled_from(names))
    what = draw(st.sampled_from(sorted(SCALARS) + sorted(VARIANTS) + ["good", "an input"]))
    return name, what, draw(st.integers(0, 2))


def changes_of(names: tuple[str, ...], least: int, most: int) -> st.SearchStrategy[list[Any]]:
    """Changes of different arguments."""
    return st.lists(change(names), min_size=least, max_size=most, unique_by=lambda c: c[0])


def apply(name: str, what: str, part: int, good: dict[str, Any]) -> Any:
    """The argument's new value."""
    if what in SCALARS:
        return SCALARS[what]
    old = like(name, good)
    if what == "good":
        return old
    if what == "an input":
        return good[("req_to_token", "req_pool_indices", "seq_lens")[part]]
    if isinstance(old, xkv.KVIndices):
        field = old._fields[part]
        return old._replace(**{field: VARIANTS[what](old[part])})
    return VARIANTS[what](old)


def asks_for_too_much(given: dict[str, Any]) -> bool:
    bounds = [given.get(name) for name in ("max_seq_len", "max_tokens")]
    return any(type(b) is int and MOST < b < 2**31 for b in bounds)


def assert_right(op: str, given: dict[str, Any], result: Any) -> None:
    """What a call returned is what the definition says of it."""
    given = {**given, "out": result}
    status = given["status"]
    if status is not None:
        status.clear()
    op_calls.forget()  # a call that is known would be made
    with launch.compile_only() as builds:
        getattr(xkv, op)(**given)
    if not builds:
        assert given["seq_lens"].shape[0] == 0
        return
    if status is not None:
        getattr(xkv, op)(**given)
    want = building.twin(builds[0], "cpu")
    if want.status is not None:
        want.status.fill_(2**63 - 1)
    oracle.run(want)
    building.assert_same(builds[0], want)


def attempt(call: Any, names: set[str]) -> Any:
    """The call's result; None where it raised what it may, in words that name one of these arguments."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        return assert_names(error, names)


def assert_names(error: Exception, names: set[str]) -> None:
    assert type(error) in (TypeError, ValueError), repr(error)
    assert any(name in str(error) for name in names), (str(error), names)


@pytest.mark.parametrize("op", ALL)
@fuzz(250)
@hypothesis.given(data=st.data())
def test_ops(op: str, device: str, data: st.DataObject) -> None:
    changes = data.draw(changes_of(COMMON + OPTIONS[op], 1, 3))
    fine = good(op, device)
    given = dict(fine)
    if data.draw(st.booleans()):
        given["out"] = None
    for name, what, part in changes:
        given[name] = apply(name, what, part, fine)
    hypothesis.assume(not asks_for_too_much(given))
    before = [contents(x) for x in tensors_in(given)]
    names = {name for name, *_ in changes} | {"out"}  # which a bound may pass
    result = attempt(lambda: getattr(xkv, op)(**given), names)
    if result is None:
        assert [contents(x) for x in tensors_in(given)] == before, "written to before it was refused"
    else:
        assert_right(op, given, result)


CONSTRUCTOR = (
    "backend", "req_to_token", "max_batch_size", "max_context_len", "page_size", "source_page_size",
    "max_tokens", "sliding_window", "window_token_map", "page_map",
)  # fmt: skip
BUILD = (
    "req_pool_indices", "seq_lens", "seq_lens_delta", "query_lens", "query_lens_sign", "kv_start",
    "window_kv_start", "max_tokens",
)  # fmt: skip


@pytest.mark.parametrize("backend", ["flashmla", "triton"])
@fuzz(200)
@hypothesis.given(data=st.data())
def test_builder(backend: str, device: str, data: st.DataObject) -> None:
    """A builder that is made builds; a step that is refused leaves it as it was."""
    table = good(TABLE, device)
    source = table["req_to_token"].clamp(min=0)
    kwargs: dict[str, Any] = {
        "backend": backend, "req_to_token": source, "max_batch_size": 4, "max_context_len": 120,
    }  # fmt: skip
    changes = data.draw(changes_of(CONSTRUCTOR, 0, 2))
    for name, what, part in changes:
        kwargs[name] = apply(name, what, part, {**table, "req_to_token": source})
    hypothesis.assume(not too_large(kwargs))
    builder = attempt(lambda: xkv.MetadataBuilder(**kwargs), set(CONSTRUCTOR))
    if builder is None:
        assert changes
        return
    step = {k: table[k][: builder.max_batch_size] for k in ("req_pool_indices", "seq_lens")}
    changed = data.draw(changes_of(BUILD, 0, 2))
    wrong = dict(step)
    for name, what, part in changed:
        wrong[name] = apply(name, what, part, table)
    attempt(lambda: builder.build(**wrong), {name for name, *_ in changed} | {"max_batch_size"})
    builder.status.clear()
    meta = builder.build(**step)
    lens = step["seq_lens"].clamp(max=builder.req_to_token.shape[1] * builder.source_page_size)
    if meta.cache_seqlens is not None and not changes:
        assert meta.cache_seqlens.tolist() == lens.tolist()
        builder.check()


def too_large(kwargs: dict[str, Any]) -> bool:
    """Whether a builder of these would fill more memory than a test should."""
    sizes = [kwargs.get(name) for name in ("max_batch_size", "max_context_len", "max_tokens")]
    return any(type(n) is int and 4096 < n < 2**31 for n in sizes)


@fuzz(100)
@hypothesis.given(data=st.data())
def test_capture_and_warmup(device: str, data: st.DataObject) -> None:
    table = good(TABLE, device)
    builder = xkv.MetadataBuilder("triton", table["req_to_token"], max_batch_size=4, max_context_len=120)
    names = ("batch_size", "pad_seq_len", "req_pool_indices", "seq_lens")
    name, what, part = data.draw(change(names))
    rows = {"req_pool_indices": table["req_pool_indices"], "seq_lens": table["seq_lens"]}
    size = len(rows["seq_lens"])
    given = {"batch_size": size, **rows, name: apply(name, what, part, table)}
    attempt(lambda: builder.capture(**given), {name, "capture"})
    arguments = {k: v for k, v in good(TABLE, device).items() if k != "out"}
    name, what, part = data.draw(change(("op", "req_to_token", "seq_lens", "page_size", "status")))
    wrong = {"op": xkv.build_page_table, **arguments}
    wrong[name] = apply(name, what, part, table)
    made = attempt(lambda: xkv.warmup(wrong.pop("op"), **wrong), {name})
    assert made is None or isinstance(made, int)


@pytest.mark.parametrize("what", sorted(SCALARS))
def test_status_of_any_device(what: str) -> None:
    status = attempt(lambda: xkv.Status(SCALARS[what]), {"device"})
    assert status is None or status.read() is None


@pytest.mark.parametrize("name", ["build_page_table", "build_kv_indices"])
def test_an_int_of_a_type_of_its_own_reaches_the_kernel_as_an_int(name: str) -> None:
    """Triton knows no IntEnum."""
    table = torch.zeros(4, 16, dtype=torch.int32)
    rows, lens = torch.tensor([0, 1]), torch.tensor([3, 5])
    four = SCALARS["IntEnum"]
    options = dict.fromkeys(
        ["page_size", "source_page_size", "seq_lens_delta", "map_page_size", "missing_id", "pad_value",
         "pad_to_multiple_of"], four
    )  # fmt: skip
    with launch.compile_only() as builds:
        getattr(xkv, name)(table, rows, lens, **options)
    (build,) = builds
    values = compile.named_arguments(build).values()
    numbers = [x for x in values if not isinstance(x, torch.Tensor) and x is not None]
    numbers += [build.page_size, build.source_page_size, build.map_page_size]
    assert four in numbers
    assert {type(x) for x in numbers} == {int}
