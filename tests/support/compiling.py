"""The forms that are compiled for GPUs that are not here, and what a launch looks its kernel up by."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
from triton.backends import backends

from xkv import cuda
from xkv.cli.kernels import BACKENDS
from xkv.cli.kernels.compiling import intercepted, plugged
from xkv.cli.kernels.units import UNITS
from xkv.cli.kernels.variants import csr, extension, meta, of_spec, plain, slots
from xkv.dispatch import specs_of
from xkv.kernel.entry import xkv_build
from xkv.kernel.group import xkv_build_group
from xkv.launch.group import GroupInputs, GroupKernel, GroupPart
from xkv.params import CSR, TABLE, Build
from xkv.platforms import tuning
from xkv.platforms.detect import Platform
from xkv.platforms.tuning import Tuning
from xkv.shard import Shard

I32, I64 = torch.int32, torch.int64
PATTERNS = get_args(tuning.AccessPattern)
GPUS = {arch: unit.platform for arch, unit in UNITS.items()}


def per_row(build: Build, dtype: torch.dtype = I32, more: int = 0) -> Any:
    return meta(build.batch + more, dtype=dtype)


def everything(page_size: int, batch: int) -> Build:
    """All that a `MetadataBuilder` can ask for at once, over the widest types."""
    form = TABLE if page_size > 1 else CSR
    build = plain(form, page_size, 1, batch, I32 if page_size > 1 else I64, I64)
    build.seq_lens_delta_rows = per_row(build, I64)
    build.query_lens, build.query_sign = per_row(build, I64), 1
    build.map_page_size = 16
    build.pad_value = 0
    build.status = meta(1, dtype=I64)
    first, second = (dataclasses.replace(build.views[0]) for _ in range(2))
    first.page_map = second.token_map = meta(1 << 20)
    first.cu_seqlens_q = per_row(build, more=1)
    sums = ("cu_seqlens_k",) if form == TABLE else ("kv_indptr", "kv_last_page_len")
    for view in (first, second):
        view.window = 4096
        for name in ("kv_start", "cache_seqlens", *sums):
            setattr(view, name, per_row(build, more=1))
    build.views = (first, second)
    return build


def slots_at_positions(batch: int) -> Build:
    build = slots(16, batch)
    build.query_lens, build.positions, build.indptr_is_input = None, meta(1 << 20, dtype=I64), True
    build.views[0].kv_indptr = per_row(build, more=1)
    build.max_position, build.pad_value, build.status = 1 << 20, -1, meta(1, dtype=I64)
    return build


def extension_of_one(batch: int) -> Build:
    """Page size 1, of a rank, in a window whose rows have all entries, and sums that may not fit in int32."""
    build = extension(PADDED_TABLE, batch)
    build.page_size = build.map_page_size = 1
    build.shard, build.sums_fit, build.pad_value = Shard(2, 1, 1, "global"), False, None
    (view,) = build.views
    view.window, view.is_absolute, view.kv_start = 4096, True, per_row(build)
    return build


FORMS = {
    "table of 64": lambda n: plain(TABLE, 64, 1, n),
    "table of 1": lambda n: plain(TABLE, 1, 1, n),
    "page csr": lambda n: of_spec(CSR_OF_PAGES, n),
    "token csr": lambda n: csr(1, n),
    "slots": lambda n: slots(16, n),
    "slots at positions": lambda n: slots_at_positions(n),
    "larger source pages": lambda n: plain(TABLE, 1, 16, n),
    "smaller source pages": lambda n: plain(TABLE, 64, 16, n),
    "extension": lambda n: extension(PADDED_TABLE, n),
    "extension of 1": lambda n: extension_of_one(n),
    "every table output": lambda n: everything(64, n),
    "every csr output": lambda n: everything(1, n),
}
HEAVY = ("every table output", "every csr output")
(CSR_OF_PAGES,) = (spec for spec in cuda.SPECS if spec.name == "flashinfer_mla")
(PADDED_TABLE,) = (spec for spec in cuda.SPECS if spec.name == "cutlass_mla")


def forms_of(where: Platform) -> dict[str, Any]:
    """The forms of the ops, and those of the vendor's backends that compile to something else."""
    forms, seen = dict(FORMS), set()
    for spec in specs_of(where.vendor).values():
        shape = (
            spec.form, spec.page_size > 1, spec.outputs, spec.id_dtype, spec.pad_to_tokens > 0,
            spec.min_seq_len > 0, spec.min_last_page_len > 0,
        )  # fmt: skip
        if shape not in seen and spec is not CSR_OF_PAGES:
            seen.add(shape)
            forms[spec.name] = lambda n, spec=spec: of_spec(spec, n)
    return forms


def need(where: Platform) -> None:
    name = BACKENDS[where.vendor]
    if name not in backends:
        pytest.skip(f"this triton cannot compile for {name}")


def specialization(build: Build, row: Tuning, where: Platform) -> dict[str, Any]:
    """What this launch looks its kernel up by: each parameter's type and what is known of it."""
    return intercepted(build, row, where, specialized)


def specialized(*args: Any, grid: Any, kernel: Any = xkv_build, **options: Any) -> dict[str, Any]:
    """The same of a launch's arguments, within it."""
    *_, binder = kernel.create_binder()
    _, found, _ = binder(*args, **options)
    return dict(zip(kernel.arg_names, found, strict=True))


def hybrid(batch: int) -> list[GroupPart]:
    """A group: tables of two block sizes, one absolute with a window, CSR, each with or without slots."""
    spec, of_csr = specs_of("cpu")["flash_attention"], specs_of("cpu")["flashinfer_mla"]
    tables = [of_spec(x, batch) for x in (spec, spec, of_csr)]
    for build, source_page_size in zip(tables, (16, 528, 1), strict=True):
        build.source_page_size, build.page_size = source_page_size, 16
        build.map_page_size, build.query_start_loc = 16, per_row(build, more=1)
    tables[1].views[0].window, tables[1].views[0].is_absolute = 4096, True
    tables[2].views[0].page_map = meta(1 << 20)
    mappings = [slots_at_positions(batch), slots_at_positions(batch), None]
    for n, mapping in enumerate(mappings):
        if mapping is not None:
            mapping.source_page_size = tables[n].source_page_size
            mapping.views[0].query_seqlens = meta(1 << 24)
    return [
        GroupPart(table, slot, n == 1) for n, (table, slot) in enumerate(zip(tables, mappings, strict=True))
    ]


def compiled_group(parts: list[GroupPart], batch: int, where: Platform) -> tuple[Any, int]:
    """The CompiledKernel of such a group's launch at given positions on such a GPU, and its warps."""
    kernel = GroupKernel(parts, meta(2 * len(parts), 1, dtype=I64), batch, where)
    positions, sums = meta(1 << 20, dtype=I64), meta(batch + 1)
    inputs = GroupInputs(meta(batch), meta(batch), 0, 1, 0, None, None, positions, sums)
    with plugged(xkv_build_group, where):
        args = [*kernel.arguments(inputs), kernel.config]
        return xkv_build_group.warmup(*args, grid=(1,), **kernel.options), kernel.options["num_warps"]
