"""The order of the kernel's arguments, which its NamedTuples own and its source repeats."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest
import torch

from xkv import params
from xkv.kernel import args, entry, group, parts
from xkv.launch import compile
from xkv.launch import group as launch_group
from xkv.launch.group import GroupInputs
from xkv.metadata.group_inputs import SLOT_ROWS, WORDS, kernel_arguments
from xkv.params import CSR, Build, View

FLAT = args.View._fields[:-3]


def test_the_signature() -> None:
    assert [*entry.xkv_build.arg_names] == [*args.ARGUMENTS, "C"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (args.Request, [(*args.Request._fields[:-1], None)]),  # what a group's parts alone have is None
        (args.Policy, [args.Policy._fields]),
        (args.View, [(*FLAT, None, None, None), (*map(params.second_view, FLAT[:-1]), *[None] * 4)]),
    ],
)
def test_each_tuple_is_built_of_its_own_names(kind: Any, expected: list[tuple[str | None, ...]]) -> None:
    calls = [
        tuple(x.id if isinstance(x, ast.Name) else None for x in node.args)
        for node in ast.walk(ast.parse(inspect.getsource(entry)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == kind.__name__
    ]
    assert calls == expected


@pytest.mark.parametrize("views", [1, 2])
def test_the_host_gives_each_of_them(views: int) -> None:
    ints = torch.zeros(2, dtype=torch.int32)
    build = Build(ints.view(1, 2), ints, ints, CSR, 1, 1, 1, tuple(View(ints) for _ in range(views)))
    assert {*compile.named_arguments(build), "own_tiles"} == {*args.ARGUMENTS}


def test_a_group_s_arguments() -> None:
    """Those of the launch in the order of the host's list, and each part's own in that of its words."""
    ints = torch.zeros(2, dtype=torch.int32)
    inputs = GroupInputs(ints, ints, 3, 1, 0, ints, None, ints, torch.zeros(3, dtype=torch.int32))
    assert tuple(group.xkv_build_group.arg_names) == (*group.GROUP_ARGUMENTS, "PARTS")
    named = launch_group.named_arguments(inputs) | {"words_ptr": 0, "slot_rows": 0}
    pointers = {
        name: x.data_ptr() if isinstance(x, torch.Tensor) else x for name, x in named.items()
    }  # fmt: skip
    assert kernel_arguments(inputs) == [pointers[name] for name in group.GROUP_ARGUMENTS]
    assert group.GROUP_ARGUMENTS[WORDS] == "words_ptr"
    assert group.GROUP_ARGUMENTS[SLOT_ROWS] == "slot_rows"
    build = Build(ints.view(1, 2), ints, ints, CSR, 1, 1, 1, (View(ints),))
    assert {*parts.PART_FIELDS} <= {*launch_group.own_arguments(build)}
    loaded = set(re.findall(r'_load\(words, "(\w+)", K\)', inspect.getsource(group)))
    assert loaded == {*parts.PART_FIELDS}
