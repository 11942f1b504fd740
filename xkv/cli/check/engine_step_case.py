"""Calls of the plugins' functions that write all of a step: tables, lengths, sums and slots of new tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...integrations.sglang import metadata
from ...params import OUTPUTS, TABLE, Build, View
from .engine_rows import DECODE, EXTEND, I32, I64, METADATA
from .memory import Spec
from .plugin_case import PluginCase


class StepCase(PluginCase):
    """A call of a function that writes all of a step, with the arguments that the engine has for its own."""

    @property
    def query_mode(self) -> int:
        """How the kernel of metadata gets its query lengths; 0: not at all."""
        options = self.family.options
        if "query_lens" in options:
            return metadata.Q_CUMSUM
        return metadata.Q_STRIDED if "query" in options else 0

    @property
    def has_tables(self) -> bool:
        """Whether tables are written."""
        skips = "skip_tables" in self.family.options
        return not skips and (self.family.function != DECODE or self.sizes.pages > 0)

    def specs(self, rng: random.Random) -> dict[str, Spec]:
        """The tensors, in an order, with gaps and dtypes, that are drawn."""
        found = super().specs(rng)
        if self.family.function == EXTEND and "window.out" in found:  # which passes one stride for both
            found["window.out"] = found["window.out"]._replace(gap=found["out"].gap)
        return found

    def outputs(self) -> dict[str, Spec]:
        """The tensors that are written, and the slots that the engine passes."""
        sizes = self.sizes
        names = ("cache_seqlens", "cu_seqlens_k", *(["cu_seqlens_q"] if self.query_mode else []))
        found = super().outputs()
        found |= {name: Spec((sizes.max_batch_size + OUTPUTS[name],), I32) for name in names}
        if "new_slots" in self.family.options:
            found["out_cache_loc"] = Spec((sizes.new + sizes.spare,), I64)
            found["window_out_cache_loc"] = Spec((sizes.translated + sizes.spare,), sizes.slot_dtype)
        return found

    @property
    def missing_id(self) -> int:
        """What the function's own kernel makes of a token without a slot, which is -1 in the source."""
        family = self.family
        if family.function == DECODE and "page_map" in family.options:
            return 0  # the page of what a map has no page for
        if family.function == EXTEND or (family.function == METADATA and "window_map" in family.options):
            return -1
        return -1 if family.page_size == 1 else 0  # a division toward 0

    def launch(self, t: Mapping[str, Tensor]) -> Build:
        """The launch that the call must equal, on these tensors."""
        family, sizes, views = self.family, self.sizes, []
        for prefix in self.prefixes:
            name = "window_" if prefix else ""
            view = View(t[prefix + "out"][:, : sizes.pages], page_map=t.get(name + "page_map"))
            if prefix:
                view.token_map = t.get("window_map")
            else:
                for name in OUTPUTS.keys() & t.keys():
                    setattr(view, name, t[name])
            views.append(view)
        source, rows = t["req_to_token"], t.get("req_pool_indices")
        if not self.has_tables:  # lengths do not depend on what has no row
            source, rows = source[:1].expand(sizes.batch, -1), None
        build = Build(
            source, rows, t["seq_lens"], TABLE, family.page_size, 1,
            family.page_size, tuple(views), seq_lens_delta=sizes.delta, query_lens=t.get("query_lens"),
            query_len=sizes.query_len if self.query_mode == metadata.Q_STRIDED else 0,
            pad_value=0 if "zero_tail" in family.options else None, missing_id=self.missing_id,
            report_missing=False, indptr_is_input=family.function == METADATA, writes_ids=self.has_tables,
        )  # fmt: skip
        if "new_slots" in family.options:
            build.out_cache_loc, build.num_out_tokens = t["out_cache_loc"], sizes.new
            build.window_out_cache_loc = t["window_out_cache_loc"][: sizes.translated]
        return build

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""
        present = {name: name for name in specs}
        function, sizes, size = self.family.function, self.sizes, self.family.page_size
        stride, out_stride = specs["req_to_token"].stride[0], specs["out"].stride[0]
        out2, swa_map = present.get("window.out"), present.get("window_map")
        out2_stride = 0 if out2 is None else specs[out2].stride[0]
        slots = {
            "out_cache_loc": present.get("out_cache_loc"),
            "swa_out_cache_loc": present.get("window_out_cache_loc"),
        }  # fmt: skip
        if function == METADATA:
            pointers = {
                "req_pool_indices": "req_pool_indices", "seq_lens": "seq_lens",
                "req_to_token": "req_to_token", "swa_mapping": swa_map, "qlens": present.get("query_lens"),
                "cache_seqlens": "cache_seqlens", "cu_seqlens_k": "cu_seqlens_k",
                "cu_seqlens_q": present.get("cu_seqlens_q"), "page_table": "out", "swa_page_table": out2,
            }  # fmt: skip
            has_slots = slots["out_cache_loc"] is not None
            return {f"{name}_ptr": x for name, x in (pointers | slots).items()} | {
                "grid": (sizes.batch,), "bs": sizes.batch, "seqlen_offset": sizes.delta,
                "max_seq_pages": sizes.pages, "q_stride": sizes.query_len,
                "num_out_tokens": sizes.new if has_slots else 0,
                "swa_out_len": sizes.translated if has_slots else 0, "req_to_token_stride": stride,
                "page_table_stride": out_stride, "swa_page_table_stride": out2_stride, "PAGE_SIZE": size,
                "HAS_SWA": out2 is not None, "HAS_SWA_OUT": has_slots, "Q_MODE": self.query_mode,
                "SKIP_PAGE_TABLE": int("skip_tables" in self.family.options), "PAGE_BLOCK": 64,
                "BS_BLOCK": 16,
            }  # fmt: skip
        names = {
            "seq_lens": "seq_lens", "req_pool_indices": "req_pool_indices",
            "cache_seqlens_int32": "cache_seqlens", "cu_seqlens_k": "cu_seqlens_k",
        }  # fmt: skip
        if function == EXTEND:
            names |= {"extend_seq_lens": "query_lens", "cu_seqlens_q": "cu_seqlens_q"}
        found: dict[str, Any] = names | {f"{name}_stride_0": 1 for name in names}
        found |= {
            "grid": (sizes.batch, 1), "req_to_token": "req_to_token", "req_to_token_stride_0": stride,
            "req_to_token_stride_1": 1, "page_table": "out", "page_table_stride_0": out_stride,
            "page_table_stride_1": 1, "full_to_swa_index_mapping": swa_map, "swa_page_table": out2,
            "B": sizes.batch, "max_seq_pages": sizes.pages, "BLOCK_COLS": 128,
        }  # fmt: skip
        if function == EXTEND:
            return found | slots | {
                "tokens_per_req": sizes.query_len, "PAGE_SIZE_ONE": size == 1,
                "SHIFT": size.bit_length() - 1, "HAS_SWA": out2 is not None, "OUT_BLOCK": 4,
            }  # fmt: skip
        return found | {
            "swa_page_table_stride_0": out2_stride, "swa_page_table_stride_1": 1,
            "full_to_swa_mapping_stride_0": 1, "full_v2p": present.get("page_map"), "full_v2p_stride_0": 1,
            "swa_v2p": present.get("window_page_map"), "swa_v2p_stride_0": 1, "PAGE_SIZE": size,
            "SEQ_LEN_DELTA": sizes.delta, "SKIP_PAGE_TABLE": "skip_tables" in self.family.options,
            "ZERO_TAIL": "zero_tail" in self.family.options,
        }  # fmt: skip
