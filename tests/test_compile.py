"""Every tuning row and form, compiled to machine code for every arch with rows: no GPU needed."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from typing import Any, get_args

import pytest
import torch
from compiling import BIG, compiled, meta, specialization
from triton import knobs
from triton.backends import backends

from xkv import cuda, dispatch, rocm, tuning
from xkv.build import CSR, SLOTS, TABLE, Build, View
from xkv.dispatch import specs_of
from xkv.platforms import Platform
from xkv.schedule import schedule
from xkv.specs import BackendSpec
from xkv.tuning import Tuning

pytestmark = pytest.mark.compile

I32, I64 = torch.int32, torch.int64
KINDS = get_args(tuning.Kind)
GPUS = {
    arch: Platform("cuda", arch, 32, 132) for arch in cuda.TUNING
} | {arch: Platform("hip", arch, 64, 256) for arch in rocm.TUNING}  # fmt: skip


def rows_of(where: Platform) -> tuple[Tuning, ...]:
    return (cuda if where.vendor == "cuda" else rocm).TUNING[where.arch]


def per_row(build: Build, dtype: torch.dtype = I32, more: int = 0) -> Any:
    return meta(build.batch + more, dtype=dtype)


def plain(
    form: int, page_size: int, source_page_size: int, batch: int, dtype: torch.dtype = I32,
    source: torch.dtype = I32, storage: int = BIG,
) -> Build:  # fmt: skip
    """Rows of 4M tokens: more than what is written directly, so that both passes are compiled."""
    tokens = 1 << 22
    shape = (batch, tokens // page_size) if form == TABLE else (1 << 24,)
    return Build(
        meta(8, tokens // source_page_size, dtype=source, storage=storage),
        meta(batch, dtype=I64, storage=storage), meta(batch, storage=storage),
        form, page_size, source_page_size, page_size,
        (View(meta(*shape, dtype=dtype, storage=storage)),),
    )  # fmt: skip


def of_spec(spec: BackendSpec, batch: int) -> Build:
    """What `MetadataBuilder` launches for a backend: its outputs, its fill, a status word."""
    form = TABLE if spec.form == "table" else CSR
    build = plain(form, spec.page_size, 1, batch, getattr(torch, spec.id_dtype))
    for name in spec.outputs:
        setattr(build.views[0], name, per_row(build, more=1))
    build.status = meta(1, dtype=I64)
    build.tail_tile = spec.tail_tile(spec.page_size)
    build.tail_fill = spec.fill_id if spec.tail_tokens else None
    return build


def everything(page_size: int, batch: int) -> Build:
    """All that a `MetadataBuilder` can ask for at once, over the widest types."""
    form = TABLE if page_size > 1 else CSR
    build = plain(form, page_size, 1, batch, I32 if page_size > 1 else I64, I64)
    build.seq_lens_delta_rows = per_row(build, I64)
    build.query_lens, build.query_sign = per_row(build, I64), 1
    build.map_page_size = 16
    build.tail_fill = 0
    build.status = meta(1, dtype=I64)
    first, second = (dataclasses.replace(build.views[0]) for _ in range(2))
    first.page_map = second.token_map = meta(1 << 20)
    first.cu_seqlens_q = per_row(build, more=1)
    sums = ("cu_seqlens_k",) if form == TABLE else ("kv_indptr", "kv_last_page_len")
    for view in (first, second):
        view.window = 4096
        for name in ("kv_start", "cache_seqlens", *sums):
            setattr(view, name, per_row(build, more=1))
    build.views = (first, second)
    return build


def with_queries(build: Build) -> Build:
    build.query_lens = per_row(build)
    return build


FORMS = {
    "table of 64": lambda n: plain(TABLE, 64, 1, n),
    "table of 1": lambda n: plain(TABLE, 1, 1, n),
    "page csr": lambda n: of_spec(CSR_OF_PAGES, n),
    "slots": lambda n: with_queries(plain(SLOTS, 1, 16, n, I64)),
    "larger source pages": lambda n: plain(TABLE, 16, 64, n),
    "smaller source pages": lambda n: plain(TABLE, 64, 16, n),
    "every table output": lambda n: everything(64, n),
    "every csr output": lambda n: everything(1, n),
}
HEAVY = ("every table output", "every csr output")
(CSR_OF_PAGES,) = (spec for spec in cuda.SPECS if spec.name == "flashinfer_mla")


ALIKE = ("sm103", "sm120")  # as sm100 to Triton: spared the two slowest compiles


def forms_of(where: Platform) -> dict[str, Any]:
    """The forms of the ops, and those of the vendor's backends that compile to something else."""
    forms, seen = dict(FORMS), set()
    for spec in specs_of(where.vendor).values():
        shape = (spec.form, spec.page_size > 1, spec.outputs, spec.id_dtype, spec.tail_tokens > 0)
        if shape not in seen and spec is not CSR_OF_PAGES:
            seen.add(shape)
            forms[spec.name] = lambda n, spec=spec: of_spec(spec, n)
    return forms


def cases() -> list[Any]:
    """Every form with the largest row of its kind; every other row with the first form of its kind.

    The full product is larger by half, and one row differs from the next in block sizes alone.
    """
    found: dict[str, Any] = {}
    for arch, where in GPUS.items():
        for kind in KINDS:
            rows = sorted((r for r in rows_of(where) if r.kind == kind), key=size, reverse=True)
            forms = [
                (name, make)
                for name, make in forms_of(where).items()
                if is_for(make(2), kind) and not (name in HEAVY and arch in ALIKE)
            ]
            for n, (name, make) in enumerate(forms):
                for row in rows if n == 0 else rows[:1]:
                    label = f"{arch}-{name}-{'x'.join(map(str, size(row)))}"
                    found[label] = pytest.param(where, row, make, name in HEAVY, id=label)
    return list(found.values())


def is_for(build: Build, kind: str) -> bool:
    return tuning.kind_of(build.page_size, build.source_page_size) == kind


def size(row: Tuning) -> tuple[int, int, int]:
    return row.num_page_per_block, row.batch_block, row.num_warps


def examine(kernel: Any, where: Platform, row: Tuning, *, heavy: bool = False) -> None:
    """The machine code of one kernel fits, and keeps to registers."""
    assert kernel.metadata.num_warps == row.num_warps
    assert kernel.metadata.shared <= 8 << 10  # bytes: never what limits the programs of a unit
    if where.vendor == "cuda":
        ptx = kernel.asm["ptx"]
        assert re.search(rf"^\.target {where.arch.replace('sm', 'sm_')}", ptx, re.M)
        assert f".reqntid {32 * row.num_warps}" in ptx
        assert not re.search(r"\.local\b", ptx)
        used = resources(kernel)
        assert used["LOCAL"] == 0
        # ptxas puts a register or two on the stack where that lets one more program run
        assert used["STACK"] <= 32
        assert used["REG"] <= (255 if heavy else 128)
    else:
        text = kernel.asm["amdgcn"]
        assert f'.amdgcn_target "amdgcn-amd-amdhsa--{where.arch}' in text
        used = amd_metadata(text)
        assert used["wavefront_size"] == 64
        assert used["max_flat_workgroup_size"] == 64 * row.num_warps
        assert used["vgpr_count"] <= 128
        assert used["private_segment_fixed_size"] == used["vgpr_spill_count"] == 0
        # scalars that find no scalar register go to lanes of a vector register, not to memory
        assert used["sgpr_spill_count"] <= (160 if heavy else 0)
        assert not re.search(r"\bscratch_(load|store)", text)


def resources(kernel: Any) -> dict[str, int]:
    """What ptxas gave the kernel: registers, stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def amd_metadata(text: str) -> dict[str, int]:
    """What the code object says about its one kernel."""
    keys = (
        "wavefront_size", "vgpr_count", "private_segment_fixed_size", "vgpr_spill_count",
        "sgpr_spill_count", "max_flat_workgroup_size",
    )  # fmt: skip
    (block,) = re.findall(r"\.amdgpu_metadata(.*)\.end_amdgpu_metadata", text, re.S)
    found = re.findall(rf"^\s+\.({'|'.join(keys)}):\s+(\d+)$", block, re.M)
    assert len(found) == len(keys)
    return {key: int(value) for key, value in found}


def need(where: Platform) -> None:
    name = {"cuda": "nvidia", "hip": "amd"}[where.vendor]
    if name not in backends:
        pytest.skip(f"this triton cannot compile for {name}")


def batch_of(row: Tuning) -> int:
    return 256 if row.max_batch is None else row.max_batch


@pytest.mark.parametrize(("where", "row", "make", "heavy"), cases())
def test_machine_code(where: Platform, row: Tuning, make: Any, heavy: bool) -> None:
    need(where)
    build = make(batch_of(row))
    balance = schedule(build, row, where).balance
    assert balance, "the case is to hold all of the kernel's code"
    kernel = compiled(build, row, where)
    examine(kernel, where, row, heavy=heavy)
    # Of storages beyond 2 GiB nothing may be said: their rows are reached through 64-bit addresses.
    assert "tt.pointer_range" not in kernel.asm["ttir"]
    if where.vendor == "hip":
        for offset in buffer_offsets(kernel.asm["ttgir"]):
            assert offset <= {"tt.make_range", "arith.constant", "arith.muli"}


def buffer_offsets(text: str) -> list[set[str]]:
    """What the 32-bit offset of each buffer operation is made of: operations, down to their roots."""
    text = re.sub(r" loc\(.*\)$", "", text, flags=re.M)

    def operations(value: str) -> set[str]:
        found = re.search(rf"^\s*{value} = (\S+)(.*)$", text, re.M)
        if found is None:
            return {f"{value}, a block's argument"}
        return {found[1]}.union(*map(operations, re.findall(r"%\w+", found[2])))

    return [operations(v) for v in re.findall(r"\bbuffer_\w+ .*?%\w+\[(%\w+)\]", text)]


@pytest.mark.parametrize("arch", ["sm90", "sm120", "gfx942", "gfx950"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_storages(arch: str, kind: str) -> None:
    """What Triton knows about alignment and size changes the code; it must fit then too."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, kind, 256)
    form, page_size = {"far": (TABLE, 64), "near": (TABLE, 16), "token": (CSR, 1)}[kind]
    build = plain(form, page_size, 1, 256, storage=0)
    examine(compiled(build, row, where), where, row)


@pytest.mark.parametrize("arch", GPUS)
def test_short_rows(arch: str) -> None:
    """Rows that one pass writes: there is no other in the code."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, "far", 4)
    build = plain(TABLE, 64, 1, 4)
    build.views[0].out = meta(4, 16)
    balance = schedule(build, row, where).balance
    assert not balance
    examine(compiled(build, row, where), where, row)


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
    row = dispatch.tuning_row(where, tuning.kind_of(build.page_size, build.source_page_size), 4)
    for (name, (kind, _)), value in zip(key(build, row, where).items(), [*build.arguments(), 1], strict=True):
        assert (kind == "constexpr") == (value is None), name


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_no_number_is_specialised(arch: str) -> None:
    """Nothing compiles while serving, whatever sizes, strides, lengths and options come by."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, "far", 1)
    keys = []
    for n in (0, 1, 2, 16, 17, 4096, 65536):
        build = everything(64, n)
        build.req_to_token = meta(max(n, 1), max(n, 1), dtype=I64)
        build.seq_lens_delta, build.query_sign = n % 5, n % 3 - 1
        build.missing_id, build.tail_fill, build.tail_tile = -n, n, max(n, 1)
        build.expect_all = bool(n % 2)
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
    row = dispatch.tuning_row(where, "far", 16)
    keys = []
    for storage, shift in ((0, 0), (BIG, 0), (0, 1), (BIG, 1)):
        build = plain(TABLE, 64, 1, 16, storage=storage)
        build.seq_lens = meta(20, storage=storage)[shift : 16 + shift]
        build.views[0].out = meta(20, 4096, storage=storage)[:16, shift : 200 + shift]
        keys.append(key(build, row, where))
    assert all(found == keys[0] for found in keys)

