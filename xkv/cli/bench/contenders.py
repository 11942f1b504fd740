"""Who is timed: xkv's ops, and SGLang's kernels called as its backends call them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import ops
from .. import loading
from .inputs import POOL, Inputs
from .records import BLOCKS, OURS, READ_TABLE, SEED, SERIAL, TOKENS

_TABLE_KERNEL = "create_flashmla_kv_indices_triton"


@dataclass(frozen=True, eq=False)
class Contender:
    """One that builds what a section asks for.

    Attributes:
        name: as in `records.SECTIONS`.
        call: builds for ``[batch]`` source rows: issues it on the current stream, does not sync.
        unit: tokens that one of its ids stands for.
        out: what a call writes, by the names of xkv.Metadata's fields.
    """

    name: str
    call: Callable[[Tensor], object]
    unit: int
    out: dict[str, Tensor]


class Peers:
    """The peers' files that were found.

    Args:
        folders: where to look.

    Attributes:
        kv_indices: SGLang 0.5.23's kv_indices.py, or None.
        read_table: SGLang 0.5.23's kv_read_table.py, or None.
        serial: the table kernel of SGLang 0.5.12's utils.py, or None.
        home: the folder of kv_indices.py, or None.
        absent: who is left out for want of a file, and of which.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        index = "sglang/kernels/ops/attention/kv_indices.py"
        read = "sglang/kernels/ops/kvcache/kv_read_table.py"
        utils = "sglang/srt/layers/attention/utils.py"
        at = loading.find(folders, index)
        self.home = None if at is None else at.parent
        self.kv_indices = loading.load(at)
        self.read_table = loading.load(loading.find(folders, read))
        # the function alone, as that file imports more than is there
        self.serial = loading.load_function(loading.find(folders, utils), _TABLE_KERNEL)
        self.absent = {
            name: path
            for module, path, names in (
                (self.kv_indices, index, (SEED, TOKENS, BLOCKS)),
                (self.serial, f"{utils} with {_TABLE_KERNEL}", (SERIAL,)),
                (self.read_table, read, (READ_TABLE,)),
            )
            if module is None
            for name in names
        }


def table(at: Inputs, peers: Peers) -> list[Contender]:
    """Those of the section "table", on one output, as wide as the capacity asks for.

    Args:
        at: what they read.
        peers: what was found of the peers.

    Returns:
        Those that are there.
    """
    out = at.ints(at.batch, at.width)
    calls = {
        SEED: peers.kv_indices and seed(at, peers.kv_indices, out),
        SERIAL: peers.serial and _serial(at, peers.serial, out),
        READ_TABLE: peers.read_table and _read_table(at, peers.read_table, out),
        OURS: ours(at, out),
    }
    return [Contender(name, call, at.page_size, {"page_table": out}) for name, call in calls.items() if call]


def ours(at: Inputs, out: Tensor) -> Callable[[Tensor], object]:
    """xkv.build_page_table."""
    return lambda rows: ops.build_page_table(at.source, rows, at.lens, page_size=at.page_size, out=out)


def seed(at: Inputs, file: Any, out: Tensor) -> Callable[[Tensor], object]:
    """create_flashmla_kv_indices_triton, a program a block of the table's width."""
    blocks = file.get_num_kv_index_blocks_flashmla(out.stride(0), at.page_size)
    return _flashmla(at, file, out, (at.batch, blocks))


def _serial(at: Inputs, file: Any, out: Tensor) -> Callable[[Tensor], object]:
    """The same before SGLang's PR #27320, a program a request."""
    return _flashmla(at, file, out, (at.batch,))


def _flashmla(at: Inputs, file: Any, out: Tensor, grid: tuple[int, ...]) -> Callable[[Tensor], object]:
    kernel = getattr(file, _TABLE_KERNEL)
    strides = at.source.stride(0), out.stride(0)
    return lambda rows: kernel[grid](at.source, rows, at.lens, None, out, *strides, PAGED_SIZE=at.page_size)


def _read_table(at: Inputs, file: Any, out: Tensor) -> Callable[[Tensor], object]:
    """build_kv_read_table, through a map of the pool's pages, which it cannot do without."""
    page_map = identity(POOL // at.page_size, str(at.source.device))
    return lambda rows: file.build_kv_read_table(
        req_to_token=at.source, req_pool_indices=rows, seq_lens=at.lens, v2p=page_map,
        page_size=at.page_size, max_pages=at.width, out=out,
    )  # fmt: skip


@functools.cache
def identity(pages: int, device: str) -> Tensor:
    """``[pages + 1]`` int64: every page is itself."""
    return torch.arange(pages + 1, device=device)


def csr(at: Inputs, peers: Peers) -> list[Contender]:
    """Those of the section "csr"; what is theirs is a stream of single tokens at any page size.

    Args:
        at: what they read.
        peers: what was found of the peers.

    Returns:
        Those that are there.
    """
    batch, size = at.batch, at.page_size
    mine = ops.KVIndices(at.ints(batch + 1), at.ints(batch * at.width), at.ints(batch))
    fields = {"kv_indptr": mine[0], "kv_indices": mine[1], "kv_last_page_len": mine[2]}
    found = [Contender(OURS, functools.partial(_csr, at, mine), size, fields)]
    if peers.kv_indices is None and peers.read_table is None:
        return found
    stream = ops.KVIndices(at.ints(batch + 1), at.ints(batch * at.load.capacity), at.ints(batch))
    # they write neither the first 0 nor, at page size 1, the ones: both are set once and never again
    theirs = {"kv_indptr": stream.kv_indptr[1:], "kv_indices": stream.kv_indices}
    if size > 1:
        theirs["kv_last_page_len"] = stream.kv_last_page_len
    writers: dict[str, Callable[[Tensor], object]] = {}
    if peers.kv_indices is not None:
        blocks = peers.kv_indices.kv_indices_num_token_blocks(at.source.shape[1], batch)
        writers[TOKENS] = _flashinfer(at, peers.kv_indices, stream, 1)
        writers[BLOCKS] = _flashinfer(at, peers.kv_indices, stream, blocks)
    if peers.read_table is not None:
        writers[READ_TABLE] = _packed(at, peers.read_table, stream)
    for name, write in writers.items():
        call = functools.partial(_with_sums, at, stream, write)
        found.append(Contender(name, call, 1, theirs))
    return found


def _csr(at: Inputs, out: ops.KVIndices, rows: Tensor) -> None:
    ops.build_kv_indices(at.source, rows, at.lens, page_size=at.page_size, out=out)


def _with_sums(at: Inputs, out: ops.KVIndices, write: Callable[[Tensor], object], rows: Tensor) -> None:
    """The torch ops that SGLang's backends issue before the kernel."""
    out.kv_indptr[1 : at.batch + 1] = torch.cumsum(at.lens, dim=0)
    if at.page_size > 1:
        out.kv_last_page_len[: at.batch] = (at.lens - 1) % at.page_size + 1
    write(rows)


def _flashinfer(at: Inputs, file: Any, out: ops.KVIndices, blocks: int) -> Callable[[Tensor], object]:
    """create_flashinfer_kv_indices_triton, so many programs a request."""
    kernel = file.create_flashinfer_kv_indices_triton
    return lambda rows: kernel[(at.batch, blocks)](
        at.source, rows, at.lens, out.kv_indptr, None, out.kv_indices, at.source.stride(0),
        TOKEN_BLOCK_PARALLEL=blocks > 1,
    )  # fmt: skip


def _packed(at: Inputs, file: Any, out: ops.KVIndices) -> Callable[[Tensor], object]:
    page_map = identity(POOL // at.page_size, str(at.source.device))
    return lambda rows: file.build_kv_read_table_packed(
        req_to_token=at.source, req_pool_indices=rows, seq_lens=at.lens, v2p=page_map,
        indptr=out.kv_indptr, page_size=at.page_size, max_tokens=out.kv_indices.shape[0],
        out=out.kv_indices,
    )  # fmt: skip
