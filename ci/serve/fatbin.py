"""Blanks the CUDA code of a library that one GPU never loads, so that the library compresses well.

A library holds machine code for many GPUs in ELF sections named ``.nv_fatbin*``. The bytes of the entries
for other archs are set to zero: no size and no offset changes, and the driver never reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MAGIC, _PTX, _CUBIN = 0xBA55ED50, 1, 2


class Entry(NamedTuple):
    """One piece of code: its kind, its arch (such as 90), and the position of its bytes."""

    kind: int
    arch: int
    start: int
    size: int


def sections(data: bytes | bytearray) -> list[tuple[int, int]]:
    """Returns offset and size of each section of fat binaries in a 64-bit ELF file; none for other files."""
    if data[:5] != b"\x7fELF\x02":
        return []
    (at,) = struct.unpack_from("<Q", data, 40)
    step, count, names_at = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, at + n * step) for n in range(count)]
    names = headers[names_at][4]
    found = []
    for name, _, _, _, offset, size in headers:
        start = names + name
        if bytes(data[start : data.index(b"\0", start)]).startswith(b".nv_fatbin"):
            found.append((offset, size))
    return found


def groups(data: bytes | bytearray, offset: int, size: int) -> Iterator[list[Entry]]:
    """Returns the entries of each fat binary in a section: the code of one kernel file for several archs."""
    at, end = offset, offset + size
    while at + 16 <= end:
        magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
        if magic != _MAGIC:
            at += 8  # padding between two fat binaries
            continue
        entries, here, last = [], at + header, at + header + length
        while here < last:
            kind, _, before, payload = struct.unpack_from("<HHIQ", data, here)
            (arch,) = struct.unpack_from("<I", data, here + 28)
            entries.append(Entry(kind, arch, here + before, payload))
            here += before + payload
        yield entries
        at = last


def blank(path: Path, arch: int, keep_ptx: bool) -> tuple[int, int]:
    """Blanks the code for other archs in a library.

    Args:
        path: the library.
        arch: of the GPU, such as 90.
        keep_ptx: if there is no machine code for the arch, keep the newest PTX that it can compile.

    Returns:
        The numbers of bytes of code that are kept and blanked.
    """
    data = bytearray(path.read_bytes())
    kept = blanked = 0
    for offset, size in sections(data):
        for entries in groups(data, offset, size):
            ready = any(e.kind == _CUBIN and e.arch == arch for e in entries)
            newest = max((e.arch for e in entries if e.kind == _PTX and e.arch <= arch), default=-1)
            for entry in entries:
                ptx = keep_ptx and not ready and entry.kind == _PTX and entry.arch == newest
                if ptx or (entry.kind == _CUBIN and entry.arch == arch):
                    kept += entry.size
                else:
                    blanked += entry.size
                    data[entry.start : entry.start + entry.size] = bytes(entry.size)
    if blanked:
        path.write_bytes(data)
    return kept, blanked
