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


def fenced(x: torch.Tensor, behind: bool) -> torch.Tensor:
    """A copy with the same strides: the byte behind its last entry, or before its first, faults."""
    size = extent(x)
    room = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (begin, begin + mmap.PAGESIZE + room):
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    flat = torch.frombuffer(memory, dtype=x.dtype, count=room // x.itemsize, offset=mmap.PAGESIZE)
    return flat.as_strided(x.shape, x.stride(), (room - size) // x.itemsize if behind else 0).copy_(x)


def fence(build: Build, behind: bool) -> Build:
    """The build on such copies of all that it reads; it writes where it did."""

    def copies(of: Build | View) -> dict[str, torch.Tensor]:
        found = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
        tensors = {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}
        read = {"kv_indptr"} if build.indptr_is_input and build.form != TABLE else set()
        written = {*WRITTEN, *WRITTEN_ONCE} - read
        return {name: fenced(x, behind) for name, x in tensors.items() if name not in written}

    views = tuple(dataclasses.replace(view, **copies(view)) for view in build.views)
    return dataclasses.replace(build, **copies(build), views=views)
