"""The kinds of build that hostile data is tried on: every op, every backend in every mode, engines' calls.

A bounded set, since each takes a kernel or two: within a kind only what a kernel is not compiled for differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import torch

from ... import dispatch
from ...params import CSR, SLOTS, TABLE
from ...platforms.specs import BackendSpec

I32, I64 = torch.int32, torch.int64


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for.

    Attributes:
        group: the op or the backend.
        what: what is special about it.
        form: TABLE, CSR or SLOTS.
        page_size: tokens of an output id.
        source_page_size: tokens of a source entry.
        ids: dtype of the source.
        dtype: dtype of the ids written.
        has: which optional arguments it is given.
        sign: of ``query_lens``.
        spec: the backend's, where the call is a `MetadataBuilder`'s.
        call: a plugin's function, where the call is an engine's.
        sums: dtype of the prefix sums that the engine gives with it.
    """

    group: str
    what: str
    form: int
    page_size: int
    source_page_size: int
    ids: torch.dtype
    dtype: torch.dtype
    has: frozenset[str]
    sign: int = 0
    spec: BackendSpec | None = None
    call: str = ""
    sums: torch.dtype | None = None

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
)
_BOUND = (64, 1, I32, I32, "status max_seq_len")
_LAST = (16, 1, I32, I32, "status min_last_page_len")
_SLOTS = (
    (1, 1, I32, I64, "status"),
    (1, 16, I64, I32, "status pad_value"),
    (1, 64, I32, I64, "status seq_lens_delta missing_id"),
    (1, 1, I64, I64, "status token_map page_map map_page_size pad_value pad_to_multiple_of"),
    (1, 16, I32, I32, "page_map"),
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
)
# of the plugins: (group, function, form, page size, source page size, source dtype, output dtype, optional
# arguments, dtype of the sums that are given)
SGLANG, VLLM = "SGLang kernels", "vLLM page indices"
TABLES, POOL_TABLES = "create_flashmla_kv_indices_triton", "scatter_req_to_token_to_page_table_kernel"
STREAMS, METADATA = "create_flashinfer_kv_indices_triton", "update_trtllm_mha_graph_metadata_kernel"
INDICES = "expand_page_indices"
_ENGINES = (
    (SGLANG, TABLES, TABLE, 64, 1, I32, I32, "", None),
    (SGLANG, TABLES, TABLE, 1, 1, I64, I32, "kv_start", None),
    (SGLANG, POOL_TABLES, TABLE, 16, 1, I32, I32, "delta window_map", None),
    (SGLANG, METADATA, TABLE, 64, 1, I32, I32, "delta query_lens", I32),
    (SGLANG, METADATA, TABLE, 16, 1, I64, I64, "delta query window_map", I32),
    (SGLANG, METADATA, TABLE, 1, 1, I32, I32, "query_lens window_map", I32),
    (SGLANG, STREAMS, CSR, 1, 1, I32, I32, "", I32),
    (SGLANG, STREAMS, CSR, 1, 1, I32, I64, "kv_start", I64),
    (SGLANG, STREAMS, CSR, 1, 16, I64, I32, "token_map kv_start", I32),
    (SGLANG, STREAMS, CSR, 1, 16, I32, I64, "token_map", I64),
    (VLLM, INDICES, CSR, 1, 1, I32, I32, "", I32),
    (VLLM, INDICES, CSR, 1, 16, I32, I32, "", I64),
    (VLLM, INDICES, CSR, 1, 64, I64, I64, "", I64),
)


def kinds(vendor: str) -> list[Kind]:
    """Every kind, for a vendor's backends.

    Args:
        vendor: "cuda" or "hip"; "cpu": the backends of both.
    """
    found = []
    for group, form, calls in (
        ("build_page_table", TABLE, (*_PAGED, _BOUND)), ("build_kv_indices", CSR, (*_PAGED, _LAST)),
        ("build_slot_mapping", SLOTS, _SLOTS),
    ):  # fmt: skip
        for page_size, unit, ids, dtype, has in calls:
            what = f"{page_size} of {unit}, {str(ids)[6:]} -> {str(dtype)[6:]}, {has.replace(' ', ', ')}"
            found.append(Kind(group, what, form, page_size, unit, ids, dtype, frozenset(has.split())))
    turns = cycle((I32, I64))
    for spec in dispatch.specs_of(vendor).values():
        for mode, has, sign in _MODES:
            always = ["status", "pad_value"] if spec.tail_tokens else ["status"]
            found.append(
                Kind(
                    spec.name, mode, TABLE if spec.form == "table" else CSR, spec.page_size,
                    16 if "unit" in has else 1, next(turns), getattr(torch, spec.id_dtype),
                    frozenset([*always, *has.split()]), sign, spec,
                )
            )  # fmt: skip
    for group, call, form, page_size, unit, ids, dtype, has, sums in _ENGINES:
        what = ", ".join([call, f"{page_size} of {unit}, {str(ids)[6:]} -> {str(dtype)[6:]}", *has.split()])
        what += "" if sums is None else f", sums {str(sums)[6:]}"
        options = frozenset(has.split())
        sign = -1 if call == INDICES else 0
        found.append(Kind(group, what, form, page_size, unit, ids, dtype, options, sign, None, call, sums))
    return found
