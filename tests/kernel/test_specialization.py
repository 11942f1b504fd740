"""What a launch looks its kernel up by: nothing that changes while serving. No GPU needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling import GPUS, HEAVY, everything, forms_of, need, specialization

from xkv import dispatch
from xkv.cli.kernels.variants import BIG, meta, of_spec, plain
from xkv.dispatch import specs_of
from xkv.launch import compile, launch
from xkv.params import TABLE, Build
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import Tuning

pytestmark = pytest.mark.compile


def key(build: Build, row: Tuning, where: Platform) -> dict[str, Any]:
    """What a launch looks its kernel up by, but for the `Config`, which says what is asked for."""
    found = specialization(build, row, where)
    found.pop("C")
    return found


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
@pytest.mark.parametrize("form", ["table of 64", "slots", "aiter_unified", *HEAVY])
def test_what_is_not_asked_for_is_no_argument(arch: str, form: str) -> None:
    """None as an integer's value would reach the launcher, which takes no None."""
    where = GPUS[arch]
    need(where)
    make = forms_of(where).get(form, lambda n: of_spec(specs_of("hip")["aiter_unified"], n))
    build = make(4)
    row = launch.tuned(build, where)
    values = compile.named_arguments(build) | {"own_tiles": 1}
    for name, (kind, _) in key(build, row, where).items():
        assert (kind == "constexpr") == (values.pop(name) is None), name
    assert not values


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_no_number_is_specialised(arch: str) -> None:
    """Nothing compiles while serving, whatever sizes, strides, lengths and options come by."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, "strided_far", 1)
    keys = []
    for n in (0, 1, 2, 16, 17, 4096, 65536):
        build = everything(64, n)
        build.req_to_token = meta(max(n, 1), max(n, 1), dtype=torch.int64)
        build.seq_lens_delta, build.query_sign = n % 5, n % 3 - 1
        build.missing_id, build.pad_value, build.pad_to_multiple_of = -n, n, max(n, 1)
        build.report_missing = bool(n % 2)
        for view in build.views:
            view.out = meta(n, max(n, 1))
            view.window = n
        build.views[0].page_map, build.views[1].token_map = meta(n), meta(n // 2 + 1)
        keys.append(key(build, row, where))
    assert all(found == keys[0] for found in keys)
    assert {"i32", "i64"} <= {kind for kind, _ in keys[0].values()}


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_nor_is_where_a_tensor_lies(arch: str) -> None:
    """Views into larger buffers, aligned or not, of any storage size, meet the same kernel."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, "strided_far", 16)
    keys = []
    for storage, shift in ((0, 0), (BIG, 0), (0, 1), (BIG, 1)):
        build = plain(TABLE, 64, 1, 16, storage=storage)
        build.seq_lens = meta(20, storage=storage)[shift : 16 + shift]
        build.views[0].out = meta(20, 4096, storage=storage)[:16, shift : 200 + shift]
        keys.append(key(build, row, where))
    assert all(found == keys[0] for found in keys)
