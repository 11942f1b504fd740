"""`python -m xkv info --kernels`: its table, what it reads of machine code, and what keeps it from one."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compiling import GPUS, need

from xkv import cuda, dispatch, rocm
from xkv.__main__ import main
from xkv.cli import kernels
from xkv.cli.kernels.resources import Resources, amd_bytes, code_bytes, count, ptx_bytes
from xkv.cli.kernels.units import UNITS, programs
from xkv.cli.kernels.variants import variants
from xkv.platforms.detect import Platform

pytestmark = pytest.mark.compile


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs info for archs; returns the status and, by arch, the table's rows: column -> cell."""

    def run(*arches: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
        for arch in arches:
            need(GPUS[arch])
        status = main(["info", "--kernels", "--arch", *arches])
        legend, *tables = capsys.readouterr().out.rstrip().split("\n\n")
        assert legend == kernels.LEGEND
        return status, dict(map(table, tables))

    return run


def table(text: str) -> tuple[str, list[dict[str, str]]]:
    title, header, *lines = text.splitlines()
    starts = [n for n, c in enumerate(header) if c != " " and (n == 0 or header[n - 1] == " ")]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    cells = [[line[a:b].strip() for a, b in spans] for line in (header, *lines)]
    return title, [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def only(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles these alone: test_compile.py compiles and judges them all."""
    found = {vendor: [v for v in variants(vendor) if v[0] in names] for vendor in ("cuda", "hip")}
    monkeypatch.setattr("xkv.cli.kernels.variants.variants", found.__getitem__)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a table and of a stream alone."""
    only(("build_page_table 64", "build_page_table 1", "triton 1"), monkeypatch)


@pytest.mark.parametrize("vendor", ["cuda", "hip"])
def test_every_op_and_backend(vendor: str) -> None:
    ops = [f"build_page_table {n}" for n in (64, 16, 1)] + [f"build_kv_indices {n}" for n in (64, 1)]
    specs = dispatch.specs_of(vendor).values()
    backends = [f"{spec.name} {spec.page_size}" for spec in specs]
    backends += [f"{spec.name} {spec.page_size}, extend" for spec in specs if spec.form == "table"]
    assert [name for name, _ in variants(vendor)] == [*ops, "build_slot_mapping 1", *backends]


def test_a_row_says_what_its_tuning_row_says(printed, monkeypatch) -> None:
    """One row each for a small and a large batch."""
    names = ("build_page_table 64", "build_kv_indices 64", "build_slot_mapping 1", "aiter_mla 1", "triton 1")
    only(names, monkeypatch)
    status, tables = printed("gfx942")
    assert status == 0
    (rows,) = tables.values()
    assert [(row["of"], row["batch"]) for row in rows] == [(n, b) for n in names for b in ("1", "256")]
    for row in rows:
        tuned = dispatch.tuning_row(GPUS["gfx942"], row["access_pattern"], int(row["batch"]))
        assert row["waves"] == f"{tuned.num_warps} x 64"
        assert row["NUM_PAGE_PER_BLOCK"] == str(tuned.balanced_num_page_per_block)
        assert int(row["asked"]) == tuned.num_warps * kernels.asked(tuned)
        vector, scalar = map(int, row["spills"].split("/"))
        assert vector == 0
        assert 0 <= scalar <= 64  # test_compile.py has a bound of each
        assert row["scratch"] == "0"
        assert 0 < int(row["VGPR"]) <= 128
        assert 0 < int(row["SGPR"]) <= 106
        assert int(row["load"]) >= 4
        assert int(row["code"]) > 1000
        # where entries lie side by side, a lane takes four of them at a time, or two where ids are int64
        if row["access_pattern"] == "contiguous":
            narrow = row["of"] in ("build_slot_mapping 1", "triton 1")
            assert (row["load"], row["store"]) == ("8" if narrow else "16", "16")


@pytest.mark.usefixtures("two")
def test_both_vendors_in_their_own_words(printed) -> None:
    status, tables = printed("sm90", "gfx950", "sm90")
    assert status == 0
    assert list(tables) == ["sm90", "gfx950"]
    nvidia, amd = (set(rows[0]) for rows in tables.values())
    assert nvidia - amd == {"warps", "REG", "local", "stack", "shared"}
    assert amd - nvidia == {"waves", "VGPR", "SGPR", "spills", "scratch", "LDS"}
    assert {row["warps"] for row in tables["sm90"]} == {"4 x 32"}
    widths = {row["of"]: (row["load"], row["store"]) for row in tables["sm90"]}
    # with a status word a lane takes an entry at a time
    assert widths == {
        "build_page_table 64": ("4", "4"), "build_page_table 1": ("16", "16"), "triton 1": ("4", "8"),
    }  # fmt: skip


@pytest.mark.usefixtures("two")
def test_an_arch_that_does_not_compile_hides_no_other(printed, monkeypatch, capsys) -> None:
    real = kernels.table

    def broken(arch: str, spec: object) -> list[list[str]]:
        if arch == "sm90":
            raise RuntimeError("ptxas died\nat length")
        return real(arch, spec)

    monkeypatch.setattr(kernels, "table", broken)
    need(GPUS["gfx942"])
    assert main(["info", "--arch", "sm90", "gfx942"]) == 1
    out, err = capsys.readouterr()
    assert "\ngfx942\nof " in out
    assert "\nsm90\n" not in out
    assert err.startswith("xkv info: sm90 does not compile here: ptxas died\n")
    assert "at length" not in err


def test_a_triton_of_one_vendor(monkeypatch, capsys) -> None:
    monkeypatch.setattr("triton.backends.backends", {"nvidia": None})
    assert main(["info", "--arch", "gfx942"]) == 1
    said = "xkv info: gfx942 does not compile here: this triton cannot compile for amd\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("two")
def test_without_tqdm(printed, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert printed("gfx942")[0] == 0
    assert capsys.readouterr().err == ""


HIDDEN = "import sys; sys.modules['triton'] = None\n"


@pytest.mark.parametrize(
    ("env", "before", "said"),
    [({"TRITON_INTERPRET": "1"}, "", "unset it"), ({}, HIDDEN, "triton is not installed")],
)
def test_what_cannot_compile_says_so(env: dict[str, str], before: str, said: str) -> None:
    code = f"{before}import sys\nfrom xkv.__main__ import main\nsys.exit(main(['info', '--kernels']))"
    here = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    here["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=here | env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("xkv info: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_every_tuned_arch_has_a_unit() -> None:
    assert set(UNITS) == {*cuda.TUNING, *rocm.TUNING}
    for arch, unit in UNITS.items():
        where = unit.platform
        vendor, warp = ("cuda", 32) if arch in cuda.TUNING else ("hip", 64)
        assert where == Platform(vendor, arch, warp, where.compute_units)


def using(arch: str, warps: int, registers: int, *, scalars: int = 0, shared: int = 0) -> Resources:
    warp = UNITS[arch].platform.warp_size
    return Resources(warp, warps * warp, registers, scalars, 0, 0, 0, shared, 4, 4, 0, 0, 0)


@pytest.mark.parametrize(
    ("arch", "used", "held"),
    [
        # CUDA's occupancy calculator
        ("sm90", {"warps": 8, "registers": 64}, 4),
        ("sm90", {"warps": 8, "registers": 65}, 3),
        ("sm90", {"warps": 4, "registers": 32}, 16),
        ("sm90", {"warps": 1, "registers": 16}, 32),
        ("sm90", {"warps": 4, "registers": 32, "shared": 100 << 10}, 2),
        ("sm120", {"warps": 4, "registers": 32}, 12),
        ("sm120", {"warps": 1, "registers": 32}, 24),
        # LLVM's: 8 waves up to 64 VGPRs and 100 SGPRs
        ("gfx942", {"warps": 8, "registers": 64, "scalars": 100}, 4),
        ("gfx942", {"warps": 8, "registers": 65, "scalars": 100}, 3),
        ("gfx942", {"warps": 8, "registers": 64, "scalars": 101}, 3),
        ("gfx942", {"warps": 2, "registers": 24, "scalars": 40}, 16),
        ("gfx942", {"warps": 2, "registers": 24, "scalars": 40, "shared": 16 << 10}, 4),
        ("gfx950", {"warps": 2, "registers": 24, "scalars": 40, "shared": 16 << 10}, 10),
    ],
)
def test_programs_that_a_unit_holds(arch: str, used: dict[str, int], held: int) -> None:
    assert programs(using(arch, **used), UNITS[arch]) == held


@pytest.mark.parametrize(
    ("line", "width"),
    [
        ("@%p1 ld.global.b32 { %r1 }, [ %rd1 + 0 ];", [4]),
        ("ld.global.L1::evict_first.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];", [16]),
        ("ld.global.nc.L2::cache_hint.v2.u64 {%rd1, %rd2}, [%rd3], %rd4;", [16]),
        ("ld.volatile.global.u8 %r1, [%rd1];", [1]),
        ("ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];", []),
        ("st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};", []),
    ],
)
def test_width_of_a_load_in_ptx(line: str, width: list[int]) -> None:
    assert ptx_bytes("ld", f"\t{line}\n") == width


@pytest.mark.parametrize(
    ("line", "width"),
    [
        ("global_load_dword v1, v[2:3], off", [4]),
        ("buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen", [16]),
        ("flat_load_dwordx2 v[0:1], v[2:3]", [8]),
        ("global_load_ubyte v1, v[2:3], off", [1]),
        ("global_load_short_d16 v1, v[2:3], off", [2]),
        ("s_load_dwordx8 s[0:7], s[0:1], 0x0", []),
        ("global_store_dwordx4 v[0:1], v[2:5], off", []),
    ],
)
def test_width_of_a_load_on_amd(line: str, width: list[int]) -> None:
    assert amd_bytes("load", f"\t{line}\n") == width


@pytest.mark.parametrize(
    ("symbols", "code"),
    [
        ([(2, 4, 0, 640)], 640),
        ([(2, 4, 0x100, 640), (3, 4, 0, 0x4000)], 640),  # another type than a function
        ([(2, 4, 0, 640), (0x12, 4, 512, 128)], 640),  # one within the other, global or not
        ([(2, 4, 0, 640), (2, 5, 0, 128)], 768),  # of two sections
    ],
)
def test_bytes_of_code_in_an_elf_file(symbols: list[tuple[int, int, int, int]], code: int) -> None:
    table = b"".join(struct.pack("<IBBHQQ", 0, info, 0, where, at, n) for info, where, at, n in symbols)
    header = bytearray(64)
    struct.pack_into("<Q", header, 0x28, 64)  # where the section headers begin
    struct.pack_into("<HH", header, 0x3A, 64, 2)  # bytes of one, and how many
    sections = [(1, 0, 0), (2, 64 + 2 * 64, len(table))]  # type, offset, bytes
    for kind, start, length in sections:
        header += struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, start, length, 0, 0, 8, 24)
    assert code_bytes(bytes(header) + table) == code


def test_counted_instructions() -> None:
    text = "\t@%p1 div.s32 %r1;\n\trem.u32 %r1;\n\t// rem.u32\n\tv_rcp_f32_e32 v1, v2\n\tcall.uni x;\n"
    assert count("div|rem|rcp", text) == 2
    assert count("[sv]_div|v_rcp", text) == 1
    assert count("call", text) == 1
