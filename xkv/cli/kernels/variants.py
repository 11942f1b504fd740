"""Launches to compile: what each op and each backend's builder would launch, with tensors of no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ...dispatch import specs_of
from ...params import CSR, OUTPUTS, RECORD_WORDS, SLOTS, TABLE, Build, View
from ...platforms.specs import BackendSpec

I32, I64 = torch.int32, torch.int64
BIG = 3 << 30  # bytes: past what 32-bit offsets, signed, reach


def meta(*shape: int, dtype: torch.dtype = I32, storage: int = BIG) -> torch.Tensor:
    """A tensor without data, at the front of a storage of so many bytes."""
    strides = [1]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * n)
    size = max(storage // dtype.itemsize, shape[0] * strides[0])
    return torch.empty(size, dtype=dtype, device="meta").as_strided(shape, strides)


def plain(
    form: int, page_size: int, source_page_size: int, batch: int, dtype: torch.dtype = I32,
    source: torch.dtype = I32, storage: int = BIG,
) -> Build:  # fmt: skip
    """Rows of 4M tokens: more than what is written directly, so that both passes are compiled."""
    tokens = 1 << 22
    shape = (batch, tokens // page_size) if form == TABLE else (1 << 24,)
    return Build(
        meta(8, tokens // source_page_size, dtype=source, storage=storage),
        meta(batch, dtype=I64, storage=storage), meta(batch, storage=storage),
        form, page_size, source_page_size, page_size,
        (View(meta(*shape, dtype=dtype, storage=storage)),),
    )  # fmt: skip


def of_spec(spec: BackendSpec, batch: int) -> Build:
    """What `MetadataBuilder` launches for a backend: its outputs, its fill, a status word."""
    form = TABLE if spec.form == "table" else CSR
    build = plain(form, spec.page_size, 1, batch, getattr(torch, spec.id_dtype))
    _give(build, spec.outputs)
    build.status = meta(1, dtype=I64)
    build.min_seq_len, build.min_last_page_len = spec.min_seq_len, spec.min_last_page_len
    build.pad_to_multiple_of = spec.pad_to_multiple_of(spec.page_size)
    build.pad_value = spec.pad_id if spec.pad_to_tokens else None
    build.sums_fit = True  # of any batch of rows that an engine has
    if form == TABLE:
        build.views[0].record = meta(1 + batch, RECORD_WORDS)
    return build


def extension(spec: BackendSpec, batch: int) -> Build:
    """What `MetadataBuilder.extend` launches for a backend of page tables."""
    return replace(of_spec(spec, batch), extends=True)


def csr(page_size: int, batch: int) -> Build:
    """What `build_kv_indices` launches."""
    return _give(plain(CSR, page_size, 1, batch), ("kv_indptr", "kv_last_page_len"))


def slots(source_page_size: int, batch: int) -> Build:
    """What `build_slot_mapping` launches."""
    build = plain(SLOTS, 1, source_page_size, batch, I64)
    build.query_lens = meta(batch)
    return build


def _give(build: Build, outputs: tuple[str, ...]) -> Build:
    for name in outputs:
        setattr(build.views[0], name, meta(build.batch + OUTPUTS[name]))
    return build


_OPS: dict[str, Callable[[int], Build]] = {
    "build_page_table 64": lambda n: plain(TABLE, 64, 1, n),
    "build_page_table 16": lambda n: plain(TABLE, 16, 1, n),
    "build_page_table 1": lambda n: plain(TABLE, 1, 1, n),
    "build_kv_indices 64": lambda n: csr(64, n),
    "build_kv_indices 1": lambda n: csr(1, n),
    "build_slot_mapping 1": lambda n: slots(1, n),
}


def variants(vendor: str) -> Iterator[tuple[str, Callable[[int], Build]]]:
    """Name and page size of every op and of every backend of a vendor, and its build for a batch."""
    yield from _OPS.items()
    yield from map(of_backend, specs_of(vendor).values())
    tables = (spec for spec in specs_of(vendor).values() if spec.form == "table")
    yield from map(extension_of_backend, tables)


def of_backend(spec: BackendSpec) -> tuple[str, Callable[[int], Build]]:
    """The same of one backend."""
    return f"{spec.name} {spec.page_size}", lambda batch: of_spec(spec, batch)


def extension_of_backend(spec: BackendSpec) -> tuple[str, Callable[[int], Build]]:
    """The same of one backend's extensions."""
    return f"{spec.name} {spec.page_size}, extend", lambda batch: extension(spec, batch)
