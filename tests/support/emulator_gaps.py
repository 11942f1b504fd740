"""Teaches tinygrad's CDNA emulator what reductions and matrix products in local memory compile to.

Of the emulator of 2026-08 (a9069c177a):

* It fails on ds_swizzle_b32 ("unexpected token in primary": the manual has a table in place of pseudocode).
  Only the bit mode is taught: within 32 lanes, lane i takes the value of lane ((i & and) | or) ^ xor.
* It takes the lane of ds_bpermute_b32 without the "mod 64" that the manual has there: all waves of a program
  but the first read 0.
* A lane that is off reads local memory at whatever its address register holds, which can end the process.
  Such a lane gets address 0 meanwhile.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

LANES = np.arange(64)
# of the 256 vector registers: the values that lanes hold, and the lane that each reads
Source = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def teach() -> None:
    """Once a process; without effect where the executor does not use this emulator."""
    try:
        emu: Any = importlib.import_module("test.mockgpu.amd.emu")
    except ModuleNotFoundError:
        return
    if getattr(emu, "_knows_local_memory", False):
        return
    decode_at = emu._decode_at

    def at_pc(pc: int, arch: str) -> Any:
        inst = emu.decode_inst(bytes((ctypes.c_char * 16).from_address(pc).raw), arch)
        source = _source(inst)
        if source is not None:
            return _runner(_exchange(emu, inst, source), [0, 1]), inst
        found = decode_at(pc, arch)
        if type(inst).__name__ != "DS":
            return found
        (program, runtime), inst = found
        return _runner(_guarded(emu, inst, runtime.fxn, program.arg.globals), [*range(6)]), inst

    emu._decode_at, emu._knows_local_memory = at_pc, True


def _runner(run: Any, buffers: list[int]) -> Any:
    return SimpleNamespace(arg=SimpleNamespace(globals=buffers)), SimpleNamespace(fxn=run)


def _registers(emu: Any, sgprs: Any, vgprs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scalar registers, ``[256, 64]`` vector registers, and which lanes are on."""
    scalar = np.frombuffer((ctypes.c_uint32 * 260).from_address(sgprs.value), np.uint32)
    vector = np.frombuffer((ctypes.c_uint32 * (256 * 64)).from_address(vgprs.value), np.uint32)
    mask = scalar[emu.EXEC_LO.offset : emu.EXEC_LO.offset + 2]
    return scalar, vector.reshape(256, 64), np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)


def _source(inst: Any) -> Source | None:
    name = getattr(getattr(inst, "op", None), "name", "")
    if name not in ("DS_SWIZZLE_B32", "DS_BPERMUTE_B32"):
        return None
    offset = inst.offset1 << 8 | inst.offset0
    addr, data = (register.offset - 256 for register in (inst.addr, inst.data0))
    if name == "DS_BPERMUTE_B32":
        return lambda vector: (vector[data], (vector[addr].astype(np.int64) + offset) // 4 % 64)
    assert not offset >> 15, f"ds_swizzle_b32 in another mode than bits: {offset:#x}"
    lanes = (((LANES & offset & 31) | offset >> 5 & 31) ^ offset >> 10 & 31) | LANES & 32
    return lambda vector: (vector[addr], lanes)


def _exchange(emu: Any, inst: Any, source: Source) -> Any:
    to = inst.vdst.offset - 256

    def run(sgprs: Any, vgprs: Any) -> None:
        scalar, vector, active = _registers(emu, sgprs, vgprs)
        values, lanes = source(vector)
        taken = np.where(active[lanes], values[lanes], 0)  # a lane that is off gives 0
        vector[to] = np.where(active, taken, vector[to])
        after = (int(scalar[emu.PC_LO_IDX]) | int(scalar[emu.PC_HI_IDX]) << 32) + inst.size()
        scalar[emu.PC_LO_IDX], scalar[emu.PC_HI_IDX] = after & 0xFFFFFFFF, after >> 32

    return run


def _guarded(emu: Any, inst: Any, plain: Any, buffers: list[int]) -> Any:
    addr = inst.addr.offset - 256

    def run(*given: Any) -> None:
        _, vector, active = _registers(emu, *given[:2])
        kept = vector[addr][~active]
        vector[addr][~active] = 0
        plain(*(given[n] for n in buffers))
        vector[addr][~active] = (
            kept  # also if it is the destination: of lanes that are off, nothing is written
        )

    return run
