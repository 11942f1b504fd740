"""AMD's machine code against the oracle, bit for bit, without an AMD GPU: see executing.py.

A wrong address ends the process. Run with ``-n 2``: xdist then names the case and goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import building
import executing
import pytest
import torch
from cases import CASES, Case, make

import xkv
from xkv import dispatch, rocm
from xkv.cli.check import hostile, memory
from xkv.cli.check.families import Family, families
from xkv.cli.kernels.compiling import compiled
from xkv.launch import grid, launch
from xkv.launch.group import GroupInputs
from xkv.metadata.parts import GroupLaunches
from xkv.params import CSR, SLOTS, TABLE, Build
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import AccessPattern, Tuning
from xkv.shard import Shard

pytestmark = executing.MACHINE_CODE

I32, I64 = torch.int32, torch.int64
UNITS = {"gfx942": 304, "gfx950": 256}  # compute units of MI300X and MI355X
FORMS = {TABLE: "table", CSR: "csr", SLOTS: "slots"}
# tokens of a page and of a source entry
PAGE_SIZES = {
    "contiguous": (1, 1),
    "ragged": (1, 1),
    "expand": (1, 16),
    "strided_near": (16, 1),
    "strided_far": (64, 1),
    "mapped": (1, 1),
    "query_tokens": (1, 1),
    "extension": (1, 1),
}
FORMS_OF = {
    "contiguous": (TABLE,),
    "ragged": (CSR, SLOTS),
    "expand": (TABLE, CSR, SLOTS),
    "strided_near": (TABLE, CSR),
    "strided_far": (TABLE, CSR),
    "mapped": (TABLE, CSR),
    "query_tokens": (),  # its tiles are no row's
    "extension": (),  # of a builder's steps
}
# tiles small enough, and compute units few enough, that small cases have several tiles, some of them leftover
SMALL = Tuning("strided_far", None, 16, 1, 2, 1, 2, 16, 1, 2, 16, False, "test")
arches = pytest.mark.parametrize("arch", rocm.TUNING)
rows = pytest.mark.parametrize("real", [True, False], ids=["real", "small"])


def check(build: Build, arch: str, real: bool) -> Any:
    """With the row that a launch takes on such a GPU, or with the small one."""
    return executing.check(*launched(build, arch, real))


def small_row(kind: AccessPattern) -> Tuning:
    """The small row of an access pattern."""
    return dataclasses.replace(SMALL, access_pattern=kind)


def launched(build: Build, arch: str, real: bool) -> tuple[Build, Tuning, Platform]:
    """The build, with that row and GPU."""
    where = Platform("hip", arch, 64, UNITS[arch] if real else 1)
    return build, launch.tuned(build, where) if real else SMALL, where


SIZES = [(1, 1, I64), (16, 1, I32), (64, 1, I64), (64, 16, I32), (16, 64, I32)]


def curated() -> Iterator[Any]:
    """Every case in every form; of global sources those of slots alone, as ops make others a rank's own."""
    for name, case in CASES.items():
        shard: Shard | None = case.fields.get("shard")
        for form, (P, S, dtype) in itertools.product(case.forms, SIZES):
            if S == 1 or shard is None or shard.source == "local":
                label = f"{name}-{FORMS[form]}-{P}-{S}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(name, form, P, S, dtype, id=label)


@arches
@rows
@pytest.mark.parametrize(("name", "form", "P", "S", "dtype"), list(curated()))
def test_curated(
    name: str, form: int, P: int, S: int, dtype: torch.dtype, real: bool, arch: str
) -> None:  # fmt: skip
    check(make(CASES[name], form, P, S, dtype, "cpu"), arch, real)


@arches
@pytest.mark.parametrize(
    ("n", "form"),
    [(n, form) for n, row in enumerate(rocm.TUNING["gfx942"]) for form in FORMS_OF[row.access_pattern]],
)
def test_every_row_balanced(n: int, form: int, arch: str) -> None:
    """Rows so long, on so small a GPU, that there are leftover tiles, with the real tile sizes."""
    row, where = rocm.TUNING[arch][n], Platform("hip", arch, 64, 1)
    P, source_page_size = PAGE_SIZES[row.access_pattern]
    most = (
        row.num_page_per_block * row.tiles_per_program
        + row.balanced_num_page_per_block * row.balanced_own_tiles
    )
    case = Case("", lambda P: [3, (most + 5) * P - 1, 0, P * 40])
    build = make(case, form, P, source_page_size, I32, "cpu")
    if form == SLOTS:
        build.query_lens = build.seq_lens.clone()
        build.views[0].out = memory.guarded_1d(int(build.seq_lens.sum()), I32, "cpu")
    assert grid.make_schedule(build, row, where).balance
    executing.check(build, row, where)


@arches
@pytest.mark.parametrize("seed", range(24))
def test_random(seed: int, arch: str) -> None:
    """Any options at all, hostile data every other time."""
    execute = lambda build: executing.execute(*launched(build, arch, seed % 4 > 1))  # noqa: E731
    building.any_launch(seed, seed % 2 == 1, execute, "cpu").check()


@arches
def test_it_is_the_code_that_a_launch_compiles(arch: str) -> None:
    build = make(CASES["skewed"], CSR, 16, 1, I32, "cpu")
    kernel = check(build, arch, real=True)
    where = Platform("hip", arch, 64, UNITS[arch])
    wanted = compiled(build, launch.tuned(build, where), where)
    assert kernel.asm["amdgcn"] == wanted.asm["amdgcn"]
    assert f"amdgcn-amd-amdhsa--{arch}" in kernel.asm["amdgcn"]


@arches
def test_a_wrong_word_is_found(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees what was executed, and guard words."""
    build = make(CASES["odd lengths"], TABLE, 16, 1, I32, "cpu")
    plain = executing.execute

    def wide(build: Build, row: Tuning, where: Platform) -> Any:
        view = build.views[0]
        wider = view.out.as_strided((build.batch, view.out.shape[1] + 1), view.out.stride())
        return plain(dataclasses.replace(build, views=(dataclasses.replace(view, out=wider),)), row, where)

    build.pad_value = 0
    monkeypatch.setattr(executing, "execute", wide)
    with pytest.raises(AssertionError, match=r"views\[0\]\.out differs"):
        check(build, arch, real=True)


@arches
@pytest.mark.parametrize("more", [0, 1], ids=["right", "planted"])
def test_an_entry_too_many_ends_the_process(more: int, arch: str) -> None:
    """The source's width taken for one more: its last row's next entry lies behind a fence."""
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-W", "error", "-c", _READ, str(tests), arch, str(more)]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGSEGV if more else 0), done.stderr


_READ = """
import sys
sys.path[:0] = [sys.argv[1] + "/kernel", sys.argv[1] + "/support", "."]
import test_amd
from xkv.params import Build
build = test_amd.make(test_amd.CASES["beyond the source"], test_amd.TABLE, 1, 1, test_amd.I32, "cpu")
build.req_pool_indices[:] = len(build.req_to_token) - 1
honest = Build.source_tokens.fget
Build.source_tokens = property(lambda build: honest(build) + int(sys.argv[3]))
test_amd.check(build, sys.argv[2], real=True)
"""


@pytest.fixture
def launches(arch: str, real: bool, monkeypatch: pytest.MonkeyPatch) -> list[Build]:
    """Executes and checks every launch that xkv makes, and lists them."""
    found: list[Build] = []

    def run(build: Build) -> None:
        build = dataclasses.replace(build)  # builders fill theirs again
        executing.guard(build)
        check(build, arch, real)
        found.append(build)

    monkeypatch.setenv("XKV_ARCH", arch)
    monkeypatch.setattr(launch, "run", run)
    return found


@arches
@rows
@pytest.mark.parametrize("family", families("hip"), ids=str)
def test_hostile(family: Family, real: bool, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op and every backend in every mode on hostile data: every word of one allocation is compared."""

    def run(build: Build) -> None:
        executing.execute(*launched(build, arch, real))

    def run_group(self: GroupLaunches, known: Any, builds: list[Build], inputs: GroupInputs) -> None:
        where = Platform("hip", arch, 64, UNITS[arch] if real else 1)
        executing.execute_group(known.parts, inputs, self._max_batch_size, where)

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(GroupLaunches, "_launch", run_group)
    if not real:
        monkeypatch.setattr(dispatch, "tuning_row", lambda _, kind, __: small_row(kind))
    for _, case in hostile.checks(family, 8, seed=int(real), device="cpu", small=True):
        case()


TOKENS, LENS = 1024, [300, 0, 897, 64, 1]


def inputs(P: int, S: int, dtype: torch.dtype = I32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = building.paged_source(random.Random(0), 9, TOKENS // S, max(P, S), S, dtype, "cpu")
    return source, torch.tensor([(3 * n + 1) % 9 for n in range(len(LENS))]), torch.tensor(LENS)


def permuted(size: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


OPTIONS: dict[str, Any] = {
    "nothing more": lambda P: {},
    "delta": lambda P: {"seq_lens_delta": 3},
    "delta a row": lambda P: {"seq_lens_delta": torch.tensor([5, 2, -7, 0, -1], dtype=I32)},
    "start": lambda P: {"kv_start": torch.tensor([130, 0, 64, 63, 0])},
    "token map": lambda P: {"token_map": permuted(9 * TOKENS)},
    "page map": lambda P: {"page_map": permuted(9 * TOKENS // P).to(I32)},
    "short map": lambda P: {"page_map": permuted(20), "missing_id": 7},
    "padding": lambda P: {"pad_value": 0, "pad_to_multiple_of": 4},
    "int64": lambda P: {"dtype": I64},
    "too long": lambda P: {"seq_lens_delta": 500},
}
OPS = {
    "build_page_table": (xkv.build_page_table, (1, 16, 64)),
    "build_kv_indices": (xkv.build_kv_indices, (1, 16)),
    "build_slot_mapping": (xkv.build_slot_mapping, (1,)),
}


@arches
@rows
@pytest.mark.parametrize("S", [1, 16])
@pytest.mark.parametrize(("op", "P"), [(op, P) for op, (_, sizes) in OPS.items() for P in sizes])
def test_ops(op: str, P: int, S: int, launches: list[Build], real: bool, arch: str) -> None:
    """The whole call, with every kind of option in turn."""
    for name, make_options in OPTIONS.items():
        options = make_options(P)
        arguments: list[Any] = [*inputs(P, S)]
        if op == "build_slot_mapping":
            if name == "start":
                continue
            arguments.append(torch.tensor([3, 0, 7, 64, 1], dtype=I32))
        else:
            options["page_size"] = P
        status = xkv.Status("cpu")
        OPS[op][0](*arguments, source_page_size=S, status=status, **options)
    assert len(launches) == len(OPTIONS) - (op == "build_slot_mapping")
    # the last is too long for its row
    assert int(launches[-1].status) == 2 * 256 + xkv.Reason.BAD_LENGTH


SPECS = dispatch.specs_of("hip").values()


@arches
@rows
@pytest.mark.parametrize(("spec", "P"), [(spec.name, P) for spec in SPECS for P in spec.page_sizes])
def test_backends(spec: str, P: int, launches: list[Build], real: bool, arch: str) -> None:
    """What `MetadataBuilder` launches: every mode of its steps."""
    source, pool, lens = inputs(P, 1)
    builder = xkv.MetadataBuilder(spec, source, max_batch_size=8, max_context_len=TOKENS, page_size=P)
    modes(builder, pool, lens)
    assert len(launches) == 9
    for build in launches:
        wanted = {*builder.spec.outputs, "out"}
        if build.views[0].kv_start is not None:  # where the start lies in its page
            wanted.add("kv_start_offset")
        if builder.extends:
            wanted.add("record")
        assert {name.split(".")[1] for name in building.outputs(build) if "." in name} == wanted


@arches
@rows
@pytest.mark.parametrize("kind", ["page ids", "window", "window map", "page map"])
@pytest.mark.parametrize("spec", [spec.name for spec in SPECS])
def test_backends_of_other_sources(
    spec: str, kind: str, launches: list[Build], real: bool, arch: str
) -> None:  # fmt: skip
    """Of page ids, through maps, and with a window's view beside the first."""
    P = dispatch.specs_of("hip")[spec].page_size
    S = 16 if kind == "page ids" else 1
    options = {
        "page ids": {"source_page_size": S},
        "window": {"sliding_window": 100},
        "window map": {"window_token_map": permuted(9 * TOKENS)},
        "page map": {"page_map": permuted(9 * TOKENS // P)},
    }[kind]
    source, pool, lens = inputs(P, S)
    builder = xkv.MetadataBuilder(
        spec, source, max_batch_size=8, max_context_len=TOKENS, **options
    )  # fmt: skip
    modes(builder, pool, lens)
    assert {len(build.views) for build in launches} == {1 + ("window" in kind)}


def modes(builder: xkv.MetadataBuilder, pool: torch.Tensor, lens: torch.Tensor) -> None:
    """Decode, verify, ragged verify, draft extend, a delta a row, a chunk, padding, violations, no batch."""
    ragged = torch.tensor([3, 0, 7, 1, 2], dtype=I32)
    builder.build(pool, lens)
    builder.build(pool, lens, seq_lens_delta=4, query_lens=4)
    builder.build(pool, lens, query_lens=ragged, query_lens_sign=1)
    builder.build(pool, lens + 9, query_lens=ragged, query_lens_sign=-1, seq_lens_delta=2)
    builder.build(pool, lens, seq_lens_delta=ragged)
    builder.build(pool, lens, kv_start=torch.tensor([130, 0, 64, 63, 0]))
    builder.build(pool.to(I32), torch.tensor([5, 0, 0, 0, 0], dtype=I32))
    builder.build(torch.tensor([0, 99, -1]), torch.tensor([TOKENS + 1, 5, 2**40]))
    builder.build(pool[:0], lens[:0])


def test_every_arch_has_its_units_and_rows() -> None:
    assert [*UNITS] == [*rocm.TUNING]
    assert len({tuple(row.access_pattern for row in found) for found in rocm.TUNING.values()}) == 1
