"""Tensors beside memory that nobody may touch: a read too many ends the process, also one by machine code."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap

import torch

from xkv.build import Build, View

_PROT_NONE = 0  # <sys/mman.h>; Python's mmap does not name it
_INPUTS = ("req_to_token", "req_pool_indices", "seq_lens", "seq_lens_delta_rows", "query_lens")
_VIEW_INPUTS = ("kv_start", "token_map", "page_map")


def fenced(x: torch.Tensor, behind: bool) -> torch.Tensor:
    """A copy with the same strides: the byte behind its last entry, or before its first, faults."""
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    room = -(-max(extent * x.itemsize, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (begin, begin + mmap.PAGESIZE + room):
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    flat = torch.frombuffer(memory, dtype=x.dtype, count=room // x.itemsize, offset=mmap.PAGESIZE)
    return flat.as_strided(x.shape, x.stride(), len(flat) - extent if behind else 0).copy_(x)


def fence(build: Build, behind: bool) -> Build:
    """The build on such copies of all that it reads; it writes where it did."""

    def copies(of: Build | View, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {name: fenced(x, behind) for name in names if (x := getattr(of, name)) is not None}

    views = tuple(dataclasses.replace(view, **copies(view, _VIEW_INPUTS)) for view in build.views)
    return dataclasses.replace(build, **copies(build, _INPUTS), views=views)
