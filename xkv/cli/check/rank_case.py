"""Calls of the plugins' functions for context parallelism: given a rank's own lengths, or asked for them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...params import CSR, TABLE, Build, View
from ...shard import Shard
from .engine_rows import I32, RAGGED, RANK_LENGTHS, RANK_TABLES
from .memory import Spec
from .plugin_case import PluginCase

_ANY_ROW = 1 << 16, 1 << 12  # entries of a source that has room for any row, and tokens of an entry


class RankCase(PluginCase):
    """A call of such a function, with the arguments that the engine has for its own kernel."""

    @property
    def vectors(self) -> list[str]:
        """The inputs with an entry a request."""
        return ["seq_lens"] if self.family.function in (RAGGED, RANK_LENGTHS) else super().vectors

    def specs(self, rng: random.Random) -> dict[str, Spec]:
        """The tensors, in an order, with gaps and dtypes, that are drawn."""
        found = super().specs(rng)
        if self.family.function == RANK_LENGTHS:  # vLLM's lengths are the first of a buffer for as many
            found["seq_lens"] = found["seq_lens"]._replace(shape=(self.sizes.max_batch_size,))
        return found

    def outputs(self) -> dict[str, Spec]:
        """The tensors that are written, and the sums that the engine passes."""
        if self.family.function == RANK_LENGTHS:
            return {"cache_seqlens": Spec((self.sizes.max_batch_size,), I32)}
        return super().outputs()

    def launch(self, t: Mapping[str, Tensor]) -> Build:
        """The launch that the call must equal, on these tensors."""
        family, sizes, size = self.family, self.sizes, self.family.page_size
        source, lens = t["req_to_token"], t["seq_lens"]
        if family.function == RANK_LENGTHS:
            width, unit = _ANY_ROW
            out = t["cache_seqlens"]
            return Build(  # what is behind the requests has no row
                torch.zeros(sizes.batch, 1, dtype=I32).expand(-1, width), None, lens, TABLE, 1, unit, 1,
                (View(out.view(1, -1), cache_seqlens=out),), report_missing=False, shard=family.shard,
                writes_ids=False,
            )  # fmt: skip
        view = View(t["out"], t.get("kv_start"), page_map=t.get("page_map"), kv_indptr=t.get("begins"))
        if family.function == RAGGED:
            first = source[: sizes.batch * sizes.query_len : sizes.query_len]
            return Build(
                first, None, lens, CSR, 1, 1, 1, (view,), min_seq_len=1, missing_id=0,
                report_missing=False, indptr_is_input=True,
            )  # fmt: skip
        return Build(
            source, t["req_pool_indices"], lens, family.form, size, 1, size, (view,), missing_id=0,
            report_missing=False, indptr_is_input=family.form == CSR, shard=family.shard,
            lens_are_local=family.shard is not None,
        )  # fmt: skip

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""
        family, sizes, stride = self.family, self.sizes, specs["req_to_token"].stride[0]
        shard = Shard(1, 0) if family.shard is None else family.shard
        found: dict[str, Any] = {"grid": (sizes.batch, 1)}
        if family.function == RANK_LENGTHS:
            return found | {
                "out_ptr": "cache_seqlens", "seq_lens_ptr": "seq_lens", "dcp_size": shard.size,
                "dcp_rank": shard.rank, "cp_interleave": shard.interleave, "num_reqs": sizes.batch,
                "max_num_reqs": sizes.max_batch_size, "BLOCK_SIZE": 128,
            }  # fmt: skip
        if family.function == RAGGED:
            return found | {
                "token_table_ptr": "req_to_token", "local_kv_lens_ptr": "seq_lens", "kv_indptr_ptr": "begins",
                "kv_indices_ptr": "out", "table_stride": stride, "Q_LEN": sizes.query_len, "BLOCK_SIZE": 128,
            }  # fmt: skip
        found |= {"req_to_token_ptr": "req_to_token", "req_pool_indices_ptr": "req_pool_indices"}
        if family.function == RANK_TABLES:
            v2p = "page_map" if "page_map" in specs else None
            return found | {
                "local_seq_lens_ptr": "seq_lens", "block_kv_indices_ptr": "out", "v2p_ptr": v2p,
                "req_to_token_stride": stride, "block_table_stride": specs["out"].stride[0],
                "PHYSICAL_PAGE_SIZE": family.page_size, "DCP_SIZE": shard.size, "DCP_RANK": shard.rank,
                "PAGES_PER_BLOCK": 16, "HAS_V2P": v2p is not None,
            }  # fmt: skip
        return found | {
            "dcp_kernel_lens_ptr": "seq_lens", "kv_indptr": "begins",
            "kv_start_idx": "kv_start" if "kv_start" in specs else None, "kv_indices_ptr": "out",
            "req_to_token_ptr_stride": stride, "dcp_size": shard.size, "dcp_rank": shard.rank,
        }  # fmt: skip
