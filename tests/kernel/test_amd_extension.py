"""AMD machine code of extensions, executed where there is no AMD GPU: as test_amd.py."""

from __future__ import annotations

from typing import Any

import executing
import pytest
import torch
from test_extension import OWN

import xkv
from xkv import dispatch, rocm
from xkv.launch import launch
from xkv.launch.group import GroupInputs
from xkv.launch.verify import WRITTEN
from xkv.metadata.parts import make_parts
from xkv.platforms.detect import Platform

pytestmark = executing.MACHINE_CODE

TABLE = dispatch.specs_of("hip")["aiter_unified"]
CASES: dict[str, tuple[xkv.BackendSpec, int, dict[str, Any]]] = {
    "page 1": (TABLE, 1, {}),
    "page 64": (TABLE, 64, {}),
    "padding, int64, empty rows": (OWN, 4, {}),
    "blocks of 4 pages": (TABLE, 16, {"source_page_size": 64}),
    "window": (TABLE, 16, {"sliding_window": 40, "sink_tokens": 16}),
    "absolute window of a rank": (
        TABLE,
        1,
        {"sliding_window": 40, "window_is_absolute": True, "shard": xkv.Shard(2, 1, 1, "global")},
    ),
    "draft tree": (TABLE, 16, {"draft": xkv.DraftTree(topk=2, num_steps=3, step=2, page_size=16)}),
}
# which rows of the source each step has, and how many tokens it adds to them
STEPS = [
    ([0, 1, 2, 3, 4], [1, 1, 1, 1, 1]),
    ([0, 1, 2, 4, 3], [1, 5, 40, 0, 1]),
    ([4, 1, 2, 0, 9], [1, 1, -9, 1, 2]),
]


@pytest.mark.parametrize("arch", rocm.TUNING)
@pytest.mark.parametrize("units", [304, 1])  # of one unit all that is read begins where memory begins
@pytest.mark.parametrize("name", CASES)
def test_extension(name: str, units: int, arch: str) -> None:
    """By the kernel of a group, where a builder launches that, and by the other."""
    spec, page_size, options = CASES[name]
    torch.manual_seed(0)
    source = torch.randint(0, 5000, (5, 400 // options.get("source_page_size", 1)), dtype=torch.int32)
    source[torch.rand(source.shape) < 0.02] = -1
    ours, theirs = (
        xkv.MetadataBuilder(
            spec, source, max_batch_size=5, max_context_len=380, page_size=page_size, **options
        )
        for _ in range(2)
    )
    where = Platform("hip", arch, 64, units)
    lens = torch.tensor([130, 64, 0, 255, 17])
    for builder in (ours, theirs):
        builder.build(torch.arange(5), lens)
    for rows, more in STEPS:
        lens = lens + torch.tensor(more)
        inputs = GroupInputs(torch.tensor(rows), lens, 0, 1, 0, None, None, None, None)
        if ours._group is None:
            build = ours._steps.make(inputs[:7], True).fill(inputs[:7])
            executing.execute(build, launch.tuned(build, where), where)
        else:
            executing.execute_group(make_parts([ours.member], inputs, True), inputs, 5, where)
        theirs.extend(torch.tensor(rows), lens)
        for a, b in zip(ours.member.buffers.views, theirs.member.buffers.views, strict=True):
            for field in WRITTEN:
                x, y = getattr(a, field), getattr(b, field)
                assert x is y is None or torch.equal(x, y), field
        assert torch.equal(ours.status.word, theirs.status.word)
