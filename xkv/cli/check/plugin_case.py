"""Calls of the engines' plugins on tensors between guard words: engines pass the sums that ops compute."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...integrations.sglang import context_parallel, kv_indices, metadata, page_tables
from ...integrations.vllm import indices, lengths
from ...integrations.vllm.launching import served
from ...launch import launch
from ...params import CSR, Build, View
from .case import Case, call_text, placed
from .engine_rows import INDICES, POOL_TABLES, STREAMS, TABLES
from .memory import Spec


class PluginCase(Case):
    """A call of a plugin's function, with the arguments that the engine has for its own kernel."""

    @property
    def vectors(self) -> list[str]:
        """The inputs with an entry a request."""
        if self.family.function == INDICES:
            return ["seq_lens"] if "clamp_tail" in self.family.options else []
        return super().vectors

    def specs(self, rng: random.Random) -> dict[str, Spec]:
        """The tensors, in an order, with gaps and dtypes, that are drawn."""
        found = super().specs(rng)
        if self.family.function == POOL_TABLES:  # which passes one stride for both tables
            found["window.out"] = found["window.out"]._replace(gap=found["out"].gap)
        return found

    def outputs(self) -> dict[str, Spec]:
        """The tensors that are written, and the sums that the engine passes."""
        family, sizes = self.family, self.sizes
        if family.form == CSR:
            assert family.indptr is not None
            of_all = family.function == INDICES
            begins = Spec((sizes.batch + of_all,), family.indptr)
            return {"sums" if of_all else "begins": begins, "out": Spec((sizes.stream,), family.dtype)}
        table = Spec((sizes.max_batch_size, sizes.room), family.dtype)
        return {prefix + "out": table for prefix in self.prefixes}

    def launch(self, t: Mapping[str, Tensor]) -> Build:
        """The launch that the call must equal, on these tensors."""
        family, source, size = self.family, t["req_to_token"], self.family.page_size
        if family.function == INDICES:
            sums, every = t["sums"], torch.arange(self.sizes.batch)
            if "clamp_tail" in family.options:
                return Build(
                    source, every, t["seq_lens"], CSR, 1, family.source_page_size, 1,
                    (View(t["out"], kv_indptr=sums),), report_missing=False, indptr_is_input=True,
                    clamps_tail=True,
                )  # fmt: skip
            view = View(t["out"], kv_indptr=sums[: self.sizes.batch])
            return Build(
                source, every, sums[1:], CSR, 1, family.source_page_size, 1, (view,),
                query_lens=sums[: self.sizes.batch], query_sign=-1, report_missing=False,
                indptr_is_input=True,
            )  # fmt: skip
        start = t.get("kv_start")
        views = []
        for prefix in self.prefixes:
            view = View(t[prefix + "out"])
            if prefix:
                view.token_map = t["window_map"]
            else:
                view.kv_start, view.token_map, view.kv_indptr = start, t.get("token_map"), t.get("begins")
            views.append(view)
        build = Build(
            source, t["req_pool_indices"], t["seq_lens"], family.form, size, family.source_page_size, size,
            tuple(views), seq_lens_delta=self.sizes.delta, seq_lens_delta_rows=start, report_missing=False,
            indptr_is_input=family.form == CSR,
        )  # fmt: skip
        if size > 1:
            build.missing_id = 0  # what a division toward 0 makes of the token -1
        return build

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""
        family, sizes, strides = self.family, self.sizes, {k: x.stride[0] for k, x in specs.items()}
        maybe: dict[str, str | None] = {
            name: name if name in strides else None
            for name in ("kv_start", "token_map", "window_map", "window.out")
        }
        stride = strides["req_to_token"]
        rows = {"req_to_token_ptr": "req_to_token", "req_pool_indices_ptr": "req_pool_indices"}
        found: dict[str, Any] = {"grid": (sizes.batch,)}
        if family.function == INDICES:
            clamps = "clamp_tail" in family.options
            return found | {
                "page_indices": "out", "block_table": "req_to_token", "block_table_stride_0": stride,
                "block_table_stride_1": 1, "cu_num_tokens": "sums",
                "num_real_tokens": "seq_lens" if clamps else "sums",
                "KERNEL_BLOCK_SIZE": family.source_page_size, "BLOCK_SIZE": 1024, "CLAMP_TAIL": clamps,
            }  # fmt: skip
        if family.function == STREAMS:
            return found | rows | {
                "page_kernel_lens_ptr": "seq_lens", "kv_indptr": "begins", "kv_start_idx": maybe["kv_start"],
                "kv_indices_ptr": "out", "req_to_token_ptr_stride": stride,
                "ENTRY_PAGE_SIZE": family.source_page_size, "token_mapping": maybe["token_map"],
            }  # fmt: skip
        if family.function == TABLES:
            return found | rows | {
                "page_kernel_lens_ptr": "seq_lens", "kv_start_idx": maybe["kv_start"],
                "kv_indices_ptr": "out", "req_to_token_ptr_stride": stride,
                "kv_indices_ptr_stride": strides["out"], "PAGED_SIZE": family.page_size,
            }  # fmt: skip
        return found | rows | {
            "seq_lens_ptr": "seq_lens", "page_table_ptr": "out", "req_to_token_stride": stride,
            "page_table_stride": strides["out"], "PAGE_SIZE": family.page_size,
            "HAS_SWA": maybe["window_map"] is not None, "sw_page_table_ptr": maybe["window.out"],
            "swa_slot_mapping_ptr": maybe["window_map"], "DRAFT_NUM": sizes.delta, "BLOCK_SIZE": 256,
        }  # fmt: skip

    def call(self, t: Mapping[str, Tensor]) -> Callable[[], Any]:
        """The call on these tensors."""
        return partial(launched, self.family.function, **placed(self.arguments, t))

    def text(self) -> str:
        """The call as lines of a program, on tensors ``t[name]``."""
        called = call_text("launched", self.arguments, repr(self.family.function))
        return f"from xkv.cli.check.plugin_case import launched\n{called}"


def launched(name: str, **arguments: Any) -> None:
    """Makes a plugin's launch, by the reference where the plugin leaves CPU tensors to the engine."""
    if name == INDICES and not arguments["CLAMP_TAIL"] and served(arguments["page_indices"]) is None:
        table, sums = arguments["block_table"], arguments["cu_num_tokens"]
        (batch,) = arguments["grid"]
        view = View(arguments["page_indices"], kv_indptr=sums[:batch])
        launch.run(indices._as_build(batch, view, table, sums, arguments["KERNEL_BLOCK_SIZE"]))
        return
    modules = (page_tables, kv_indices, metadata, context_parallel, indices, lengths)
    if not next(vars(module)[name] for module in modules if name in vars(module))(**arguments):
        raise RuntimeError(f"{name} left the call to the engine's own kernel")
