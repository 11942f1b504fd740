"""Every tuning row and form, compiled to machine code for every arch with rows: no GPU needed."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from compiling import GPUS, HEAVY, I64, PATTERNS, compiled_group, forms_of, hybrid, need, per_row

from xkv import dispatch
from xkv.cli.kernels import asked
from xkv.cli.kernels.compiling import compiled
from xkv.cli.kernels.resources import Resources, read
from xkv.cli.kernels.units import UNITS, programs, scheduler_warps
from xkv.cli.kernels.variants import meta, plain
from xkv.launch.grid import make_schedule
from xkv.params import CSR, SLOTS, TABLE, Build
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import Tuning
from xkv.shard import Shard

pytestmark = pytest.mark.compile

# How many programs fewer than the row asks for a compute unit holds: of these forms a lane takes too many
# registers for the rows of large batches, or on AMD a wavefront too many scalars.
LACKING = {
    ("cuda", "table of 1"): 3,  # on sm100 and later; on sm90 2
    ("cuda", "flashinfer_decode"): 1,
    ("cuda", "flashinfer_prefill"): 1,
    ("cuda", "token csr"): 4,
    ("cuda", "triton"): 4,
    ("cuda", "slots"): 5,  # on sm120; else 4
    ("cuda", "slots at positions"): 4,
    ("cuda", "larger source pages"): 3,
    ("hip", "table of 1"): 1,
    ("hip", "slots"): 1,
    ("hip", "slots at positions"): 1,
    ("hip", "aiter_mla"): 1,
    ("hip", "aiter_batch_prefill"): 1,
    ("hip", "triton"): 1,
}
# Scalars that find no scalar register go to lanes of a vector register, not to memory: of most forms, none.
# Where a lane reads 16 bytes, each of its four entries has a mask of two scalars.
SCALAR_SPILLS = {
    "aiter_mla": 12,
    "aiter_batch_prefill": 12,
    "triton": 12,
    "slots": 7,
    "slots at positions": 35,
    "group": 44,
    "step": 32,
    "mapped": 3,
    "local_lengths": 6,
    "aiter_unified": 4,
}
ALIKE = ("sm103", "sm120", "gfx950")  # as sm100 or gfx942 to Triton: spared the two slowest compiles


def cases() -> list[Any]:
    """Every form with the largest row of its access pattern; every other row with the pattern's first form.

    The full product is larger by half, and one row differs from the next in block sizes alone.
    """
    found: dict[str, Any] = {}
    for arch, where in GPUS.items():
        for pattern in PATTERNS:
            rows = sorted(
                (r for r in dispatch.rows_of(where)[1] if r.access_pattern == pattern), key=size, reverse=True
            )
            forms = [
                (name, make)
                for name, make in forms_of(where).items()
                if is_for(make(2), pattern) and not (name in HEAVY and arch in ALIKE)
            ]
            for n, (name, make) in enumerate(forms):
                for row in rows if n == 0 else rows[:1]:
                    label = f"{arch}-{name}-{'x'.join(map(str, size(row)))}"
                    found[label] = pytest.param(where, row, name, make, id=label)
    return list(found.values())


def is_for(build: Build, pattern: str) -> bool:
    return build.access_pattern == pattern


def size(row: Tuning) -> tuple[int, int, int]:
    return row.num_page_per_block, row.batch_block, row.num_warps


def examine(kernel: Any, where: Platform, row: Tuning, name: str = "", *, heavy: bool = False) -> Resources:
    """The machine code of one kernel fits, and keeps to registers."""
    used = read(kernel)
    assert kernel.metadata.num_warps == row.num_warps
    assert used.warp_size == where.warp_size
    assert used.threads == used.warp_size * row.num_warps
    assert used.shared <= 8 << 10  # bytes: never what limits the programs of a unit
    assert used.spills == used.calls == 0
    if where.vendor == "cuda":
        ptx = kernel.asm["ptx"]
        assert re.search(rf"^\.target {where.arch.replace('sm', 'sm_')}", ptx, re.M)
        assert not re.search(r"\.local\b", ptx)
        # ptxas puts a register or two on the stack where that lets one more program run
        assert used.stack <= 32
        assert used.registers <= (255 if heavy else 160 if name == "slots" else 128)
    else:
        text = kernel.asm["amdgcn"]
        # the triple's first part is another with each LLVM
        assert re.search(rf'\.amdgcn_target "\S*-amd-amdhsa-\S*-{where.arch}\b', text)
        assert used.registers <= 128
        assert used.stack == 0
        assert used.scalar_spills <= (160 if heavy else SCALAR_SPILLS.get(name, 0))
        # what LLVM itself counts; that of Triton 3.9 keeps more scalar registers back, for a wave at most
        assert 0 <= scheduler_warps(used, UNITS[where.arch]) - said(text, "Occupancy: ") <= 1
        # LLVM's own count, made before the last instructions are chosen: with Triton 3.8 and 3.9 it is 32
        # bytes over in one of all these kernels
        assert 0 <= said(text, "codeLenInByte = ") - used.code <= 32
        assert not re.search(r"\bscratch_(load|store)", text)
    return used


def said(text: str, what: str) -> int:
    """A number in a comment of LLVM's."""
    (number,) = re.findall(rf"^; {what}(\d+)", text, re.M)
    return int(number)


def batch_of(row: Tuning) -> int:
    return 256 if row.max_batch is None else row.max_batch


@pytest.mark.parametrize(("where", "row", "name", "make"), cases())
def test_machine_code(where: Platform, row: Tuning, name: str, make: Any) -> None:
    need(where)
    build = make(batch_of(row))
    schedule = make_schedule(build, row, where)
    of_all = schedule.balance or build.tiles_of_tokens or build.extends
    assert of_all, "the case is to hold all of the kernel's code"
    kernel = compiled(build, row, where)
    used = examine(kernel, where, row, name, heavy=name in HEAVY)
    if name not in HEAVY:
        held = programs(used, UNITS[where.arch])
        assert held >= asked(row) - LACKING.get((where.vendor, name), 0)
        assert used.divisions <= divisions(build)
    divisors = constant_divisors(kernel.asm["ttir"])
    assert schedule.num_page_per_block in divisors
    assert all(n > 0 and n & (n - 1) == 0 for n in divisors)
    # Of storages beyond 2 GiB nothing may be said: their rows are reached through 64-bit addresses.
    assert "tt.pointer_range" not in kernel.asm["ttir"]
    if where.vendor == "hip":
        for offset in buffer_offsets(kernel.asm["ttgir"]):
            assert offset <= {"tt.make_range", "arith.constant", "arith.muli"}


def divisions(build: Build) -> int:
    """Divisions by what only the launch knows; those by a page size are shifts.

    By a tail's tile, in 32 bits: once in a stream, at most eight times in a table, where each row's tiles are
    counted with its padding. By the programs, of what long rows have left: once.
    """
    if build.pad_value is None:
        return 1
    return 9 if build.form == TABLE else 2


def constant_divisors(text: str) -> list[int]:
    """What is divided by, where it is known as the kernel is compiled: also by a shift."""
    constants = dict(re.findall(r"(%\S+) = arith\.constant (?:dense<)?(-?\d+)", text))
    used = re.findall(r"arith\.(div|rem|shr)\w+ %\S+, (%\S+) :", text)
    found = [(kind, int(constants[name])) for kind, name in used if name in constants]
    return [1 << n if kind == "shr" else n for kind, n in found]


def buffer_offsets(text: str) -> list[set[str]]:
    """What the 32-bit offset of each buffer operation is made of: operations, down to their roots."""
    text = re.sub(r" loc\(.*\)$", "", text, flags=re.M)

    def operations(value: str) -> set[str]:
        found = re.search(rf"^\s*{value} = (\S+)(.*)$", text, re.M)
        if found is None:
            return {f"{value}, a basic block's argument"}
        return {found[1]}.union(*map(operations, re.findall(r"%\w+", found[2])))

    return [operations(v) for v in re.findall(r"\bbuffer_\w+ .*?%\w+\[(%\w+)\]", text)]


@pytest.mark.parametrize("arch", ["sm90", "sm120", "gfx942", "gfx950"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_small_storages(arch: str, pattern: str) -> None:
    """What Triton knows about alignment and size changes the code; it must fit then too."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, pattern, 256)
    form, page_size = {
        "strided_far": (TABLE, 64),
        "strided_near": (TABLE, 16),
        "contiguous": (TABLE, 1),
        "ragged": (CSR, 1),
        "expand": (CSR, 1),
        "mapped": (TABLE, 1),
        "query_tokens": (SLOTS, 1),
        "extension": (TABLE, 64),
    }[pattern]
    build = plain(form, page_size, 16 if pattern == "expand" else 1, 256, storage=0)
    if pattern == "extension":
        build.extends, build.views[0].record = True, meta(257, 4, storage=0)
    if pattern == "mapped":
        build.views[0].token_map = meta(1 << 20, storage=0)
    examine(compiled(build, row, where), where, row, pattern)


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_records_are_replaced_behind_a_barrier(arch: str) -> None:
    """Each thread of a program reads the records that one of them replaces."""
    where = GPUS[arch]
    need(where)
    build = forms_of(where)["extension"](256)
    text = compiled(build, dispatch.tuning_row(where, "extension", 256), where).asm["ttgir"]
    (barrier,) = re.finditer(r"^ *(gpu|ttg)\.barrier\b", text, re.M)
    assert "tt.store" in text[barrier.end() :]
    assert "tt.load" not in text[barrier.end() :]


@pytest.mark.parametrize("arch", GPUS)
def test_group(arch: str) -> None:
    """Several outputs in one launch: the code of all of them fits."""
    where = GPUS[arch]
    need(where)
    kernel, num_warps = compiled_group(hybrid(256), 256, where)
    row = dataclasses.replace(dispatch.tuning_row(where, "contiguous", 256), num_warps=num_warps)
    examine(kernel, where, row, "group")
    divisors = constant_divisors(kernel.asm["ttir"])
    assert 528 // 16 in divisors or 528 in divisors
    assert "tt.pointer_range" not in kernel.asm["ttir"]


@pytest.mark.parametrize("arch", GPUS)
def test_short_rows(arch: str) -> None:
    """Rows that one pass writes: there is no other in the code."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, "strided_far", 4)
    build = plain(TABLE, 64, 1, 4)
    build.views[0].out = meta(4, 16)
    balance = make_schedule(build, row, where).balance
    assert not balance
    examine(compiled(build, row, where), where, row)


def local_lengths(batch: int) -> Build:
    """A rank's own lengths, from a start on."""
    build = plain(CSR, 1, 1, batch, I64)
    build.shard, build.lens_are_local, build.indptr_is_input = Shard(8, 3, source="global"), True, True
    build.views[0].kv_start, build.views[0].kv_indptr = per_row(build, I64), per_row(build, more=1)
    return build


def clamped_tail(batch: int) -> Build:
    build = plain(CSR, 1, 16, batch)
    build.clamps_tail, build.indptr_is_input = True, True
    build.views[0].kv_indptr = per_row(build, more=1)
    return build


def step(batch: int) -> Build:
    """Two tables of pools of virtual pages, lengths, sums, and slots of new tokens."""
    build = plain(TABLE, 16, 1, batch)
    first, second = (dataclasses.replace(build.views[0], page_map=meta(1 << 20)) for _ in range(2))
    second.page_map, second.token_map = None, meta(1 << 24, dtype=I64)
    first.cache_seqlens, first.cu_seqlens_k, first.cu_seqlens_q = (per_row(build, more=1) for _ in range(3))
    build.views, build.query_lens, build.pad_value = (first, second), per_row(build), 0
    build.out_cache_loc = build.window_out_cache_loc = meta(1 << 20, dtype=I64)
    return build


def alone(batch: int) -> Build:
    """The same without tables."""
    build = step(batch)
    (first, second), build.writes_ids, build.pad_value = build.views, False, None
    build.views = (dataclasses.replace(first, page_map=None, token_map=second.token_map),)
    return build


@pytest.mark.parametrize(
    ("arch", "make"),
    [(arch, make) for arch in GPUS for make in (clamped_tail, alone)]
    + [(arch, make) for arch in GPUS if arch not in ALIKE for make in (local_lengths, step)],
)
def test_what_engines_need(arch: str, make: Any) -> None:
    """What no op and no builder asks for fits, with the largest row of its access pattern."""
    where, build = GPUS[arch], make(256)
    need(where)
    rows = [row for row in dispatch.rows_of(where)[1] if row.access_pattern == build.access_pattern]
    row = max(rows, key=size)
    examine(compiled(build, row, where), where, row, make.__name__)


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_it_waits_for_the_kernel_before_it(arch: str) -> None:
    """Launched before the engine's kernel has ended, it touches no memory until it has."""
    where = GPUS[arch]
    need(where)
    row = dispatch.tuning_row(where, "strided_far", 256)
    kernels = compiled(plain(TABLE, 64, 1, 256), row, where), compiled_group(hybrid(256), 256, where)[0]
    for kernel in kernels:
        assert kernel.metadata.launch_pdl
        ptx = kernel.asm["ptx"]
        access = re.search(r"\b(ld|st|atom|red)\.global", ptx)
        assert access is not None
        assert 0 < ptx.find("griddepcontrol.wait") < access.start()
