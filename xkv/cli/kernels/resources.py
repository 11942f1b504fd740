"""What a compiled kernel takes of a GPU, read from its machine code and from what its assembler says."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

# Of ELF: the types of sections that hold symbols, and the type of a symbol.
_SYMBOLS = (2, 11)
_FUNCTION = 2


@dataclass(frozen=True)
class Resources:
    """The resources of one kernel.

    Attributes:
        warp_size: lanes of a warp or wavefront.
        threads: of a program.
        registers: 32-bit registers of a lane; on AMD VGPRs.
        scalars: SGPRs of a wavefront; 0 on NVIDIA.
        spills: what found no register and went to memory: on AMD VGPRs, on NVIDIA bytes of local memory.
        scalar_spills: SGPRs that went to lanes of a VGPR.
        stack: bytes of private memory a lane: ptxas' stack, AMD's scratch.
        shared: bytes of shared memory or LDS.
        load: bytes of the widest global load of a lane.
        store: bytes of the widest global store of a lane.
        divisions: sequences that divide, those with a reciprocal included.
        calls: calls of functions.
        code: bytes of machine code.
    """

    warp_size: int
    threads: int
    registers: int
    scalars: int
    spills: int
    scalar_spills: int
    stack: int
    shared: int
    load: int
    store: int
    divisions: int
    calls: int
    code: int


def read(kernel: Any) -> Resources:
    """Reads a kernel's resources.

    Args:
        kernel: a CompiledKernel; need not be loaded.

    Raises:
        ValueError: its assembly does not say what it should: this Triton writes it in another way.
    """
    return _READERS[kernel.metadata.target.backend](kernel)


def _nvidia(kernel: Any) -> Resources:
    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    used = _numbers(r"\b(REG|STACK|LOCAL):(\d+)", cubin_text("cuobjdump", "--dump-resource-usage", cubin), 3)
    threads = _numbers(r"\.(reqntid) (\d+)", ptx, 1)["reqntid"]
    return Resources(
        warp_size=threads // kernel.metadata.num_warps, threads=threads,
        registers=used["REG"], scalars=0, spills=used["LOCAL"], scalar_spills=0, stack=used["STACK"],
        shared=kernel.metadata.shared,
        load=_widest(ptx_bytes("ld", ptx)), store=_widest(ptx_bytes("st", ptx)),
        divisions=count("div|rem|rcp", ptx), calls=count("call", ptx),
        code=code_bytes(cubin),
    )  # fmt: skip


def cubin_text(tool: str, option: str, cubin: bytes) -> str:
    """What one of NVIDIA's tools, which come with Triton, prints of a cubin: "cuobjdump" or "nvdisasm"."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(knobs.nvidia, tool).path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ptx_bytes(what: str, ptx: str) -> list[int]:
    """Bytes a lane of each global access: ld.global.L1::evict_first.v4.b32."""
    found = re.findall(rf"\b{what}(?:\.\w+)*?\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[busf](\d+)\b", ptx)
    return [int(lanes or 1) * int(bits) // 8 for lanes, bits in found]


_AMD_KEYS = (
    "wavefront_size", "max_flat_workgroup_size", "vgpr_count", "sgpr_count", "vgpr_spill_count",
    "sgpr_spill_count", "private_segment_fixed_size",
)  # fmt: skip


def _amd(kernel: Any) -> Resources:
    text = kernel.asm["amdgcn"]
    block = "".join(re.findall(r"\.amdgpu_metadata(.*)\.end_amdgpu_metadata", text, re.S))
    used = _numbers(rf"^\s+\.({'|'.join(_AMD_KEYS)}):\s+(\d+)$", block, len(_AMD_KEYS))
    return Resources(
        warp_size=used["wavefront_size"], threads=used["max_flat_workgroup_size"],
        registers=used["vgpr_count"], scalars=used["sgpr_count"],
        spills=used["vgpr_spill_count"], scalar_spills=used["sgpr_spill_count"],
        stack=used["private_segment_fixed_size"], shared=kernel.metadata.shared,
        load=_widest(amd_bytes("load", text)), store=_widest(amd_bytes("store", text)),
        divisions=count("[sv]_div|v_rcp", text), calls=count("s_swappc|s_call", text),
        code=code_bytes(kernel.asm["hsaco"]),
    )  # fmt: skip


_AMD_BYTES = {"byte": 1, "short": 2, "dword": 4}


def amd_bytes(what: str, text: str) -> list[int]:
    """Bytes a lane of each access of memory other than LDS: global_load_dwordx4, buffer_store_short."""
    found = re.findall(
        rf"^\s+(?:global|buffer|flat)_{what}_(?:lds_)?[us]?(byte|short|dword)(?:x(\d))?", text, re.M
    )
    return [_AMD_BYTES[word] * int(words or 1) for word, words in found]


def count(names: str, text: str) -> int:
    """Instructions that begin with one of these names, guarded ones ("@%p1 call.uni ...") included."""
    return len(re.findall(rf"^\s*(?:@\S+\s+)?(?:{names})[._\s]", text, re.M))


_READERS = {"cuda": _nvidia, "hip": _amd}


def _widest(accesses: list[int]) -> int:
    if not accesses:
        raise ValueError("the assembly has no global access that xkv knows: a Triton newer than xkv?")
    return max(accesses)


def _numbers(pattern: str, text: str, count: int) -> dict[str, int]:
    """The numbers that stand once each beside their names."""
    found = re.findall(pattern, text, re.M)
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers for {pattern!r}, expected {count}: a Triton newer than xkv?")
    return {name: int(number) for name, number in found}


def code_bytes(elf: bytes) -> int:
    """Bytes of code in a 64-bit ELF file, a cubin or an hsaco, without what pads AMD's section."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, sections = struct.unpack_from("<HH", elf, 0x3A)
    spans: dict[int, list[int]] = {}  # ptxas' own functions, as of a 64-bit division, lie within the kernel's
    for n in range(sections):
        _, kind, _, _, start, length = struct.unpack_from("<IIQQQQ", elf, table + n * size)
        if kind in _SYMBOLS:
            for _, info, _, section, at, code in struct.iter_unpack("<IBBHQQ", elf[start : start + length]):
                if info & 15 == _FUNCTION:
                    spans.setdefault(section, []).extend((at, at + code))
    return sum(max(ends) - min(ends) for ends in spans.values())
