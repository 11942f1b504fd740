"""The order of the kernel's arguments, which its NamedTuples own and its source repeats."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import torch

from xkv import params
from xkv.kernel import args, entry
from xkv.launch import compile
from xkv.params import CSR, Build, View


def test_the_signature() -> None:
    assert [*entry.xkv_build.arg_names] == [*args.ARGUMENTS, "C"]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (args.Request, [args.Request._fields]),
        (args.Policy, [args.Policy._fields]),
        (args.View, [args.View._fields, (*map(params.second_view, args.View._fields[:-1]), None)]),
    ],
)
def test_each_group_is_built_of_its_own_names(group: Any, expected: list[tuple[str | None, ...]]) -> None:
    calls = [
        tuple(x.id if isinstance(x, ast.Name) else None for x in node.args)
        for node in ast.walk(ast.parse(inspect.getsource(entry)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == group.__name__
    ]
    assert calls == expected


@pytest.mark.parametrize("views", [1, 2])
def test_the_host_gives_each_of_them(views: int) -> None:
    ints = torch.zeros(2, dtype=torch.int32)
    build = Build(ints.view(1, 2), ints, ints, CSR, 1, 1, 1, tuple(View(ints) for _ in range(views)))
    assert {*compile.named_arguments(build), "own_tiles"} == {*args.ARGUMENTS}
