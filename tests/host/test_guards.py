"""Guards: calls that differ in sizes and data alone, or in data alone, are told by torch's own guards."""

from __future__ import annotations

import gc
import importlib
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xkv
from xkv.launch.guards import addresses, have_memory, make_guard, refuse


def tensors(device: str) -> list[torch.Tensor]:
    table = torch.zeros(6, 40, dtype=torch.int32, device=device)
    return [table[:, :32], torch.arange(5, device=device), torch.arange(5, device=device).int()]


def test_others_of_the_same_kinds(device: str) -> None:
    same = make_guard(tensors(device))
    assert same is not refuse, "this torch has none of the guards that calls are told by"
    others = tensors(device)
    assert same(*others)
    others[1] += 7
    storage = torch.zeros(9, dtype=torch.int64, device=device)
    assert same(others[0], storage[3:8], others[2])


class Own(torch.Tensor):
    pass


OTHERS = {
    "a dtype": lambda x: x.to(torch.int64 if x.dtype == torch.int32 else torch.int32),
    "a rank": lambda x: x[None],
    "an inner stride": lambda x: x.new_zeros((*x.shape, 2))[..., 0],
    "a device": lambda x: x.to("meta"),
    "a type": lambda x: x.as_subclass(Own),
    "a list": lambda x: x.tolist(),
    "None": lambda x: None,
    "an int": lambda x: 3,
}


@pytest.mark.parametrize("n", range(3))
@pytest.mark.parametrize("other", OTHERS)
def test_anything_else_is_refused(other: str, n: int, device: str) -> None:
    given: list[Any] = tensors(device)
    same = make_guard(given)
    given[n] = OTHERS[other](given[n])
    assert not same(*given)


def test_fewer_or_more_are_refused(device: str) -> None:
    given = tensors(device)
    for others in (given[:2], [*given, given[0]], []):
        try:
            told = make_guard(given)(*others)
        except (RuntimeError, TypeError):
            told = False
        assert not told


SIZES = {
    "a size": lambda x: torch.cat([x, x]),
    "a row stride": lambda x: x.new_zeros(x.shape[0], *[n + 3 for n in x.shape[1:]])[..., : x.shape[-1]],
}


@pytest.mark.parametrize("n", range(3))
@pytest.mark.parametrize("other", SIZES)
def test_sizes_are_checked_where_asked(other: str, n: int, device: str) -> None:
    given: list[Any] = tensors(device)
    loose, exact = make_guard(given), make_guard(given, sizes=True)
    assert exact(*given)
    given[n] = SIZES[other](given[n])
    assert loose(*given)
    assert exact(*given) == (other == "a row stride" and n > 0)  # vectors have none


def test_what_changed_in_place_is_seen(device: str) -> None:
    given = tensors(device)
    same = make_guard(given, sizes=True)
    given[1].resize_(4)
    assert not same(*given)


def test_a_transform_is_seen(device: str) -> None:
    """Its tensors have no memory."""
    given = tensors(device)
    same, seen = make_guard(given), []
    torch.vmap(lambda x: seen.append(same(given[0], x, given[2])) or x)(given[1].expand(3, 5))
    assert seen == [False]


def test_nothing_is_kept_alive(device: str) -> None:
    given = tensors(device)
    kept, same = [weakref.ref(x) for x in given], make_guard(given)
    given.clear()
    gc.collect()
    assert [x() for x in kept] == [None] * 3
    assert same(*tensors(device))


class _Odd:
    """Guards whose answer is another than True."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def check(self, *_: Any) -> int:
        return 2


def _refuses(*_: Any, **__: Any) -> Any:
    raise TypeError("another signature")


@pytest.mark.parametrize("guards", [{}, {"TensorGuards": _refuses}, {"TensorGuards": _Odd}, None])
def test_with_another_torch_everything_is_refused(guards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def found(name: str) -> Any:
        if name != "torch._C._dynamo.guards":
            return real(name)
        if guards is None:
            raise ImportError(name)
        return SimpleNamespace(**guards)

    monkeypatch.setattr(importlib, "import_module", found)
    assert make_guard(tensors("cpu")) is refuse
    assert not refuse()


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse).*:UserWarning")
@pytest.mark.parametrize(
    "without",
    [
        lambda x: torch.nested.nested_tensor([x.flatten()] * 2),
        lambda x: x.to_sparse(),
        lambda x: x.tolist(),
    ],
    ids=["nested", "sparse", "no tensor"],
)
@pytest.mark.parametrize("n", range(3))
def test_what_a_guard_would_end_the_process_on_is_told_before(n: int, without: Any, device: str) -> None:
    given: list[Any] = tensors(device)
    assert addresses(given) == [x.data_ptr() for x in given]
    given[n] = without(given[n])
    with pytest.raises((AttributeError, RuntimeError)):
        addresses(given)


def test_a_view_of_freed_memory_has_none() -> None:
    """Its address is its offset, not 0."""
    lens, rows = torch.arange(8, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    view, source = lens[2:5], torch.arange(32, dtype=torch.int32).view(2, 16)
    assert have_memory([1 << 40, 1 << 41], [lens, rows])
    assert have_memory([1 << 20], [lens[2:5]])  # below 4 GiB, the storage tells
    lens.untyped_storage().resize_(0)
    assert addresses([view]) != [0]
    assert not have_memory(addresses([view]), [view])
    with pytest.raises(TypeError, match="seq_lens must have memory of its own"):
        xkv.build_page_table(source, rows, view, page_size=4, max_seq_len=16)
