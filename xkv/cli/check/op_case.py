"""A call of a public op on tensors between guard words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ... import ops
from ...params import CSR, OUTPUTS, SLOTS, TABLE, Build, View
from ...status import Status
from .case import Case, call_text, placed
from .families import I32
from .memory import Spec

_INPUTS = ("req_to_token", "token_map", "page_map", "kv_start_offset", "positions", "query_start_loc")


class OpCase(Case):
    """A call of a public op with ``out``; the indices of a KVIndices are the tensor "out"."""

    def outputs(self) -> dict[str, Spec]:
        """The tensors that are written."""
        family, rows = self.family, self.sizes.max_batch_size
        shape = (rows, self.sizes.room) if family.form == TABLE else (self.sizes.stream,)
        names = ["kv_indptr", "kv_last_page_len"] if family.form == CSR else []
        names += ["kv_start_offset"] if "kv_start_offset" in family.options else []
        sums = {name: Spec((rows + OUTPUTS[name],), I32) for name in names}
        return {"out": Spec(shape, family.dtype)} | sums

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""
        family, sizes = self.family, self.sizes
        found: dict[str, Any] = {"seq_lens_delta": sizes.delta, "source_page_size": family.source_page_size}
        found |= {} if family.form == SLOTS else {"page_size": family.page_size}
        found |= {name: name for name in (*self.vectors, *_INPUTS) if name in specs}
        numbers = sizes.numbers | {"map_page_size": sizes.map_page_size}
        found |= {} if family.shard is None else {"shard": family.shard}
        return found | {name: value for name, value in numbers.items() if name in family.options}

    def launch(self, t: Mapping[str, Tensor]) -> Build:
        """The launch that the call must equal, on these tensors."""
        family, sizes, options = self.family, self.sizes, self.family.options
        outputs: dict[str, Any] = {name: t[name] for name in OUTPUTS if name in t}
        view = View(t["out"], t.get("kv_start"), None, t.get("token_map"), t.get("page_map"), **outputs)
        if "positions" in t:
            view.kv_indptr = t["query_start_loc"]
        deltas, n = t.get("seq_lens_delta"), {k: v for k, v in sizes.numbers.items() if k in options}
        return Build(
            t["req_to_token"], t["req_pool_indices"], t["seq_lens"], family.form, family.page_size,
            family.source_page_size, sizes.map_page_size, (view,), **n, seq_lens_delta_rows=deltas,
            seq_lens_delta=sizes.delta if deltas is None else 0, query_lens=t.get("query_lens"),
            positions=t.get("positions"), indptr_is_input="positions" in t,
            report_missing="missing_id" not in options, shard=family.shard, status=t.get("status"),
        )  # fmt: skip

    def call(self, t: Mapping[str, Tensor]) -> Callable[[], Any]:
        """The call on these tensors."""
        out: Any = t["out"]
        if self.family.form == CSR:
            out = ops.KVIndices(t["kv_indptr"], out, t["kv_last_page_len"])
        status = Status.of(t["status"]) if "status" in t else None
        return partial(getattr(ops, self.family.group), **placed(self.arguments, t), out=out, status=status)

    def text(self) -> str:
        """The call as lines of a program, on tensors ``t[name]``."""
        out, status = "out=t['out']", ""
        if self.family.form == CSR:
            out = "out=xkv.KVIndices(t['kv_indptr'], t['out'], t['kv_last_page_len'])"
        if "status" in self.family.options:
            status = f"status = xkv.Status({self.device!r})\nstatus.word = t['status']\n"
            out += ", status=status"
        return status + call_text(f"xkv.{self.family.group}", self.arguments, out)
