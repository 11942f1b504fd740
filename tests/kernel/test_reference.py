"""The oracle against a Python loop, whatever the options and the data."""

from __future__ import annotations

import building
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xkv import reference
from xkv.params import Build, View


@pytest.mark.parametrize("hostile", [False, True], ids=["sane", "hostile"])
@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_oracle_equals_loop(seed: int, hostile: bool) -> None:
    building.any_launch(seed, hostile, reference.run, "cpu").check()


def test_prefix_sums_are_cut_at_int32() -> None:
    lens = torch.full((12,), 2**28 - 1)
    source = torch.zeros(1, 2**18, dtype=torch.int32).as_strided((1, 2**28 - 1), (0, 0))
    cu = torch.zeros(13, dtype=torch.int32)
    out = torch.zeros(12, 2**18, dtype=torch.int32)
    build = Build(source, lens * 0, lens, 0, 1024, 1, 1024, ())
    build.status = torch.full((1,), 2**63 - 1)
    build.views = (View(out, cu_seqlens_k=cu),)
    reference.run(build)
    assert cu[8] == 8 * (2**28 - 1)
    assert cu[9] == 2**31 - 1 == cu[12]
    assert build.status.item() == 8 * 256 + 8
