"""Tensors beside memory that nobody may touch: a read too many ends the process, also one by machine code."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap

import torch

from xkv.arguments import extent
from xkv.launch.verify import WRITTEN, WRITTEN_ONCE
from xkv.params import TABLE, Build, View

_PROT_NONE = 0  # <sys/mman.h>; Python's mmap does not name it


def fenced(x: torch.Tensor, behind: bool, readable: bool = True) -> torch.Tensor:
    """A copy with the same strides: the byte behind its last entry, or before its first, faults.

    Or each of its own, if it is not readable.
    """
    size = extent(x)
    room = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    flat = torch.frombuffer(memory, dtype=x.dtype, count=room // x.itemsize, offset=mmap.PAGESIZE)
    made = flat.as_strided(x.shape, x.stride(), (room - size) // x.itemsize if behind else 0)
    guards = [(begin, mmap.PAGESIZE), (begin + mmap.PAGESIZE + room, mmap.PAGESIZE)]
    if readable:
        made.copy_(x)
    else:
        guards.append((begin + mmap.PAGESIZE, room))
    for at, count in guards:
        if libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(count), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return made


def fence(build: Build, behind: bool) -> Build:
    """The build on such copies of all that it reads; it writes where it did. Lengths need no source."""

    def copies(of: Build | View) -> dict[str, torch.Tensor]:
        found = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
        tensors = {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}
        read = {"kv_indptr"} if build.indptr_is_input and build.form != TABLE else set()
        written = {*WRITTEN, *WRITTEN_ONCE} - read
        unread = set() if build.writes_ids else {"req_to_token"}
        return {
            name: fenced(x, behind, name not in unread) for name, x in tensors.items() if name not in written
        }

    views = tuple(dataclasses.replace(view, **copies(view)) for view in build.views)
    return dataclasses.replace(build, **copies(build), views=views)
