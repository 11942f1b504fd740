"""A failing case as a program of its own, ready to be pasted: literal values, and the public calls alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .memory import Memory
from .trial import SENTINEL

_PROGRAM = """\
# {title}
import torch
import xkv

# name: first int32 word of the one allocation, shape, strides, dtype
PLACES = {{
{places}}}
GIVEN = {{
{given}}}
WANT = {{  # {sentinel} where nothing may be written
{want}}}


def tensors(words):
    return {{
        name: words.view(dtype).as_strided(shape, stride, begin * 4 // dtype.itemsize)
        for name, (begin, shape, stride, dtype) in PLACES.items()
    }}


def put(words, values):
    for name, to in tensors(words).items():
        if name in values:
            to.copy_(torch.tensor(values[name], dtype=to.dtype).view(to.shape))


words = torch.full(({size},), {sentinel}, dtype=torch.int32)
put(words, GIVEN)
want = words.clone()
put(want, WANT)
words = words.to({device!r})
t = tensors(words)
{call}
{several}wrong = (words.cpu() != want).nonzero().flatten().tolist()
assert not wrong, f"{{len(wrong)}} words differ, the first of them word {{wrong[0]}}"
"""

_SEVERAL = """\
# entries that several rows claim: each has the value of one of them
for name, entries in {shared}.items():
    for at, values in entries.items():
        there = tensors(words.cpu())[name][at]
        if int(there) in values:
            tensors(want)[name][at] = there
"""


def program(
    title: str, memory: Memory, want: Tensor, outputs: set[str], call: str, device: str,
    shared: Mapping[str, Mapping[int, frozenset[int]]],
) -> str:  # fmt: skip
    """Writes the program.

    Args:
        title: the case, for whoever reads it.
        memory: its layout; its image as it was before the call.
        want: the image that the call must leave.
        outputs: names of the tensors that it may write.
        call: the call, on tensors ``t[name]``.
        device: where it ran.
        shared: by an output's name, the entries that several rows claim, each with their values.
    """
    expected = memory.views(want)
    several = {name: {at: tuple(sorted(v)) for at, v in each.items()} for name, each in shared.items()}
    return _PROGRAM.format(
        title=title,
        places=_lines({name: tuple(place) for name, place in memory.places.items()}),
        given=_lines({k: v.tolist() for k, v in memory.host.items() if k not in outputs or k == "status"}),
        want=_lines({k: expected[k].tolist() for k in memory.places if k in outputs}),
        size=len(want), sentinel=SENTINEL, device=device, call=call,
        several=_SEVERAL.format(shared=several) if several else "",
    )  # fmt: skip


def _lines(entries: Mapping[str, Any]) -> str:
    return "".join(f"    {name!r}: {value!r},\n" for name, value in entries.items())


def call_text(function: str, arguments: Mapping[str, Any], *more: str) -> str:
    """A call as text: names of tensors become ``t[name]``, all else is literal."""
    parts = [f"{k}={f't[{v!r}]' if isinstance(v, str) else v}" for k, v in arguments.items()]
    return f"{function}({', '.join([*more, *parts])})"
