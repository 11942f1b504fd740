"""A failing case as a program of its own, ready to be pasted: literal values, and the public calls alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...launch.verify import WRITTEN
from .case import Case
from .memory import SENTINEL

_PROGRAM = """\
# {title}
import torch
import xkv

# name: first int32 word of the one allocation, shape, strides, dtype
PLACES = {{
{places}}}
INPUTS = {{
{inputs}}}
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
put(words, INPUTS)
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


def program(title: str, case: Case) -> str:
    """The program of a case whose image is as it was before the call; afterwards it is the oracle's."""
    memory, outputs = case.memory, {"status", "window_out_cache_loc", *WRITTEN}
    inputs = {
        k: v.tolist() for k, v in memory.host.items() if k.rpartition(".")[2] not in outputs or k == "status"
    }
    several = {
        prefix + "out": {at: tuple(sorted(values)) for at, values in entries.items()}
        for prefix, entries in case.expect().items()
        if entries
    }
    want = {k: v.tolist() for k, v in memory.host.items() if k.rpartition(".")[2] in outputs}
    return _PROGRAM.format(
        title=title, places=_lines({name: tuple(place) for name, place in memory.places.items()}),
        inputs=_lines(inputs), want=_lines(want), size=len(memory.image), sentinel=SENTINEL,
        device=case.device, call=case.text(), several=_SEVERAL.format(shared=several) if several else "",
    )  # fmt: skip


def _lines(entries: Mapping[str, Any]) -> str:
    return "".join(f"    {name!r}: {value!r},\n" for name, value in entries.items())
