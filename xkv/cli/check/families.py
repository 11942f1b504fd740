"""The case families that hostile data is tried on: every op, every backend in every mode, engines' calls.

A bounded set, since each takes a kernel or two: within a family only what no kernel is compiled for differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import torch

from ... import dispatch
from ...params import CSR, SLOTS, TABLE
from ...platforms.specs import BackendSpec
from ...shard import Shard
from .engine_rows import ENGINE_RANKS, ENGINES, INDICES, Row

I32, I64 = torch.int32, torch.int64


OPS = {"build_page_table": TABLE, "build_kv_indices": CSR, "build_slot_mapping": SLOTS}


@dataclass(frozen=True)
class Family:
    """What a kernel is compiled for.

    Attributes:
        group: the op, the backend or the plugin.
        what: what is special about it.
        form: TABLE, CSR or SLOTS.
        page_size: tokens of an output id.
        source_page_size: tokens of a source entry.
        ids: dtype of the source.
        dtype: dtype of the ids written.
        options: the optional arguments that are passed.
        query_sign: of ``query_lens``.
        spec: the backend's, where the call is a `MetadataBuilder`'s.
        function: a plugin's, where the call is an engine's.
        indptr: dtype of the prefix sums that the engine passes to it.
        shard: the rank's, of an op or a `MetadataBuilder`.
    """

    group: str
    what: str
    form: int
    page_size: int
    source_page_size: int
    ids: torch.dtype
    dtype: torch.dtype
    options: frozenset[str]
    query_sign: int = 0
    spec: BackendSpec | None = None
    function: str = ""
    indptr: torch.dtype | None = None
    shard: Shard | None = None

    def __str__(self) -> str:
        return f"{self.group}: {self.what}"


# (page size, source page size, source dtype, output dtype, optional arguments)
_PAGED = (
    (64, 1, I32, I32, "status"),
    (1, 1, I64, I32, "status pad_value"),
    (16, 64, I32, I32, "status kv_start kv_start_offset"),
    (64, 16, I64, I64, "status kv_start seq_lens_delta"),
    (16, 1, I32, I64, "status token_map missing_id"),
    (16, 1, I64, I32, "status page_map pad_value pad_to_multiple_of"),
    (16, 64, I32, I32, "status token_map page_map map_page_size missing_id kv_start"),
    (1, 16, I32, I64, "seq_lens_delta"),
    (16, 528, I32, I32, "status kv_start"),
    (64, 4352, I64, I64, "status page_map pad_value"),
)
# the same with a shard
_PAGED_SHARDS = (
    ((64, 1, I32, I32, "status"), Shard(2, 1, 1, "global")),
    ((1, 1, I64, I32, "status kv_start pad_value"), Shard(4, 2, 16, "global")),
    ((16, 1, I32, I64, "status page_map missing_id"), Shard(3, 0, 4, "global")),
    ((16, 64, I32, I32, "status kv_start kv_start_offset"), Shard(2, 1, 16, "global")),
    ((16, 64, I32, I32, "status kv_start kv_start_offset"), Shard(2, 0, 1, "local")),
    ((16, 16, I64, I64, "status token_map page_map seq_lens_delta"), Shard(3, 2, 4, "local")),
    ((16, 528, I32, I32, "status"), Shard(8, 5, 3, "local")),
)
_BOUND = (64, 1, I32, I32, "status max_seq_len")
_LAST = (16, 1, I32, I32, "status min_last_page_len")
_SLOTS = (
    (1, 1, I32, I64, "status"),
    (1, 16, I64, I32, "status pad_value"),
    (1, 64, I32, I64, "status seq_lens_delta missing_id"),
    (1, 1, I64, I64, "status token_map page_map map_page_size pad_value pad_to_multiple_of"),
    (1, 16, I32, I32, "page_map"),
    (1, 2112, I64, I32, "status"),
    (1, 1, I32, I64, "status positions pad_value"),
    (1, 16, I64, I32, "status positions max_position seq_lens_delta"),
    (1, 528, I32, I64, "status positions max_position page_map missing_id pad_value pad_to_multiple_of"),
)
_SLOTS_SHARDS = (
    ((1, 1, I32, I64, "status"), Shard(2, 1, 1, "global")),
    ((1, 1, I64, I32, "status page_map map_page_size"), Shard(3, 1, 4, "global")),
    ((1, 16, I64, I32, "status pad_value missing_id"), Shard(4, 3, 4, "local")),
    ((1, 528, I32, I64, "status token_map"), Shard(2, 0, 16, "local")),
    ((1, 16, I32, I64, "status positions pad_value"), Shard(2, 1, 4, "local")),
    ((1, 1, I64, I64, "status positions max_position"), Shard(3, 1, 1, "global")),
)
# of `MetadataBuilder`: (mode, optional arguments of its constructor and of its build, sign of query_lens)
_MODES = (
    ("decode, verify", "delta", 0),
    ("ragged verify", "query_lens", 1),
    ("draft extend", "delta query_lens", -1),
    ("a delta a row", "seq_lens_delta", 0),
    ("chunk", "kv_start", 0),
    ("everything a row", "seq_lens_delta query_lens kv_start", -1),
    ("window", "window", 0),
    ("window of a pool", "window window_map", 0),
    ("window, chunk", "window kv_start window_kv_start", 0),
    ("page map", "page_map", 0),
    ("page ids", "unit", 0),
    ("shard of slots", "window page_map global", 0),
    ("shard of page ids", "unit query_lens kv_start window window_map local", 1),
    ("slots", "delta slots page_map", 0),
    ("slots, ragged", "query_lens slots window", 1),
    ("slots at positions", "unit positions slots window window_map kv_start", 0),
    ("slots of a shard", "global positions slots query_seqlens page_map", 0),
    ("lengths of query tokens", "local unit slots query_seqlens", 0),
    ("absolute window", "unit window window_is_absolute window_page_map", 0),
    ("absolute window, ragged", "query_lens window window_is_absolute slots", 1),
    ("sinks", "unit delta window sink_tokens", 0),
    ("sinks of a shard", "global query_lens window sink_tokens slots", 1),
    ("draft tree", "draft_tree delta", 0),
    ("draft tree, window with sinks", "unit draft_tree seq_lens_delta window window_page_map sink_tokens", 0),
    ("sinks, absolute window", "window window_map window_is_absolute sink_tokens", 0),
    ("extension of a shard", "delta global page_map window extends", 0),
    ("extension, absolute window, slots", "delta query_lens unit window window_is_absolute slots extends", 1),
    ("extension of a draft tree", "delta draft_tree window window_page_map sink_tokens extends", 0),
)
_SHARDS = {"global": Shard(3, 1, 1, "global"), "local": Shard(2, 0, 4, "local")}  # by option


def families(vendor: str) -> list[Family]:
    """Every family, for the backends of a vendor: "cuda", "hip", or "cpu" for both."""
    found: list[Family] = []
    calls = {"build_page_table": (*_PAGED, _BOUND), "build_kv_indices": (*_PAGED, _LAST)}
    for op in OPS:
        found += [op_family(op, *row) for row in calls.get(op, _SLOTS)]
        for row, shard in _PAGED_SHARDS if op in calls else _SLOTS_SHARDS:
            found.append(op_family(op, *row, shard=shard))
    found += backend_families(*dispatch.specs_of(vendor).values())
    rows: list[tuple[Row, Shard | None]] = [*((row, None) for row in ENGINES), *ENGINE_RANKS]
    for (group, function, form, page_size, unit, ids, dtype, options, indptr), rank in rows:
        parts = [function, _described(page_size, unit, ids, dtype), *options.split()]
        parts += [] if indptr is None else [f"sums {str(indptr)[6:]}"]
        parts += [] if rank is None else [_rank(rank)]
        sign = -1 if function == INDICES and "clamp_tail" not in options else 0
        found.append(
            Family(
                group, ", ".join(parts), form, page_size, unit, ids, dtype, frozenset(options.split()), sign,
                None, function, indptr, rank,
            )
        )  # fmt: skip
    return found


def backend_families(*specs: BackendSpec) -> list[Family]:
    """The families of these backends: every mode of each."""
    turns = cycle((I32, I64))
    return [
        Family(
            spec.name, mode, TABLE if spec.form == "table" else CSR, spec.page_size,
            16 if "unit" in options else 1, next(turns), getattr(torch, spec.id_dtype),
            frozenset(["status", *options.split(), *(["pad_value"] if spec.pad_to_tokens else [])]),
            sign, spec, shard=next((_SHARDS[name] for name in options.split() if name in _SHARDS), None),
        )
        for spec in specs
        for mode, options, sign in _MODES
        if spec.form == "table" or "extends" not in options  # which of a stream is a build
    ]  # fmt: skip


def op_family(
    op: str, page_size: int, source_page_size: int, ids: torch.dtype, dtype: torch.dtype, options: str,
    *more: str, shard: Shard | None = None,
) -> Family:  # fmt: skip
    """A family of an op's calls; ``more`` says what else is special about it."""
    parts = [_described(page_size, source_page_size, ids, dtype), *options.split(), *more]
    if shard is not None:
        parts.append(_rank(shard))
    return Family(
        op, ", ".join(parts), OPS[op], page_size, source_page_size, ids, dtype, frozenset(options.split()),
        shard=shard,
    )  # fmt: skip


def _rank(shard: Shard) -> str:
    return f"rank {shard.rank} of {shard.size}, {shard.interleave} in a run, {shard.source} source"


def _described(page_size: int, source_page_size: int, ids: torch.dtype, dtype: torch.dtype) -> str:
    return f"{page_size} of {source_page_size}, {str(ids)[6:]} -> {str(dtype)[6:]}"
