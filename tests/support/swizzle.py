"""Teaches tinygrad's CDNA emulator ds_swizzle_b32, which reductions over 32 lanes compile to.

The emulator of 2026-08 fails on it ("unexpected token in primary"): the manual has a table in place of pseudocode.
Only the bit mode is taught: within 32 lanes, lane i takes the value of lane ((i & and) | or) ^ xor.
"""

from __future__ import annotations

import ctypes
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np

LANES = np.arange(64)


def teach() -> None:
    """Once a process; without effect where the executor does not use this emulator."""
    try:
        emu: Any = importlib.import_module("test.mockgpu.amd.emu")
    except ModuleNotFoundError:
        return
    if getattr(emu, "_knows_swizzle", False):
        return
    decode_at = emu._decode_at

    def at_pc(pc: int, arch: str) -> Any:
        inst = emu.decode_inst(bytes((ctypes.c_char * 16).from_address(pc).raw), arch)
        if "DS_SWIZZLE_B32" not in str(getattr(inst, "op", "")):
            return decode_at(pc, arch)
        run = _swizzle(emu, inst)
        program = SimpleNamespace(arg=SimpleNamespace(globals=[0, 1]))
        return (program, SimpleNamespace(fxn=run)), inst

    emu._decode_at, emu._knows_swizzle = at_pc, True


def _swizzle(emu: Any, inst: Any) -> Any:
    mode = inst.offset1 << 8 | inst.offset0
    assert not mode >> 15, f"ds_swizzle_b32 in another mode than bits: {mode:#x}"
    source = (((LANES & mode & 31) | mode >> 5 & 31) ^ mode >> 10 & 31) | LANES & 32
    to, of = (register.offset - 256 for register in (inst.vdst, inst.addr))

    def run(sgprs: Any, vgprs: Any) -> None:
        scalar = np.frombuffer((ctypes.c_uint32 * 260).from_address(sgprs.value), np.uint32)
        vector = np.frombuffer((ctypes.c_uint32 * (256 * 64)).from_address(vgprs.value), np.uint32)
        vector = vector.reshape(256, 64)
        mask = int(scalar[emu.EXEC_LO.offset]) | int(scalar[emu.EXEC_LO.offset + 1]) << 32
        active = (mask >> LANES.astype(object) & 1).astype(bool)
        value = np.where(active[source], vector[of][source], 0)
        vector[to] = np.where(active, value, vector[to])
        after = (int(scalar[emu.PC_LO_IDX]) | int(scalar[emu.PC_HI_IDX]) << 32) + inst.size()
        scalar[emu.PC_LO_IDX], scalar[emu.PC_HI_IDX] = after & 0xFFFFFFFF, after >> 32

    return run
