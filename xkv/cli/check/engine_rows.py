"""The calls of the engines' plugins that hostile data is tried on, as data."""

from __future__ import annotations

import torch

from ...params import CSR, TABLE
from ...shard import Shard

I32, I64 = torch.int32, torch.int64
# of the plugins: (group, function, form, page size, source page size, source dtype, output dtype, optional
# arguments, dtype of the sums that the engine passes)
SGLANG, VLLM, LENGTHS = "SGLang kernels", "vLLM page indices", "vLLM lengths"
TABLES, POOL_TABLES = "create_flashmla_kv_indices_triton", "scatter_req_to_token_to_page_table_kernel"
STREAMS, METADATA = "create_flashinfer_kv_indices_triton", "update_trtllm_mha_graph_metadata_kernel"
INDICES = "expand_page_indices"
DECODE, EXTEND = "_fused_decode_metadata_kernel", "_draft_extend_metadata_kernel"
STEPS = (METADATA, DECODE, EXTEND)
RANK_TABLES, RANK_STREAMS = "create_mla_kv_page_table_for_dcp", "create_triton_kv_indices_for_dcp_triton"
RAGGED, RANK_LENGTHS = "compact_dcp_verify_token_table_to_ragged", "dcp_local_seq_lens"
OF_RANKS = (RANK_TABLES, RANK_STREAMS, RAGGED, RANK_LENGTHS)
Row = tuple[str, str, int, int, int, torch.dtype, torch.dtype, str, torch.dtype | None]
ENGINES: tuple[Row, ...] = (
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
    (VLLM, INDICES, CSR, 1, 1, I32, I32, "clamp_tail", I32),
    (VLLM, INDICES, CSR, 1, 16, I32, I32, "clamp_tail", I64),
    (SGLANG, METADATA, TABLE, 64, 1, I32, I32, "delta window_map new_slots", I32),
    (SGLANG, METADATA, TABLE, 1, 1, I64, I64, "query_lens window_map new_slots", I32),
    (SGLANG, METADATA, TABLE, 16, 1, I32, I32, "delta query skip_tables", I32),
    (SGLANG, METADATA, TABLE, 16, 1, I32, I32, "query_lens window_map new_slots skip_tables", I32),
    (SGLANG, DECODE, TABLE, 64, 1, I32, I32, "delta", None),
    (SGLANG, DECODE, TABLE, 1, 1, I32, I32, "zero_tail", None),
    (SGLANG, DECODE, TABLE, 1, 1, I64, I32, "delta window_map", None),
    (SGLANG, DECODE, TABLE, 16, 1, I32, I64, "window_map zero_tail", None),
    (SGLANG, DECODE, TABLE, 16, 1, I32, I32, "page_map", None),
    (SGLANG, DECODE, TABLE, 64, 1, I32, I32, "page_map window_page_map", None),
    (SGLANG, DECODE, TABLE, 16, 1, I64, I32, "delta page_map window_page_map zero_tail", None),
    (SGLANG, DECODE, TABLE, 64, 1, I32, I32, "delta skip_tables", None),
    (SGLANG, EXTEND, TABLE, 16, 1, I32, I32, "query_lens", None),
    (SGLANG, EXTEND, TABLE, 64, 1, I32, I32, "query_lens window_map new_slots", None),
    (SGLANG, EXTEND, TABLE, 1, 1, I64, I64, "query_lens window_map new_slots", None),
    (SGLANG, RAGGED, CSR, 1, 1, I32, I32, "", I32),
    (SGLANG, RAGGED, CSR, 1, 1, I64, I32, "", I64),
)
# the same of a rank
ENGINE_RANKS: tuple[tuple[Row, Shard | None], ...] = (
    ((SGLANG, RANK_TABLES, TABLE, 64, 1, I32, I32, "", None), Shard(2, 1, source="global")),
    ((SGLANG, RANK_TABLES, TABLE, 1, 1, I64, I32, "", None), Shard(16, 3, source="global")),
    ((SGLANG, RANK_TABLES, TABLE, 16, 1, I32, I32, "page_map", None), Shard(3, 2, source="global")),
    ((SGLANG, RANK_TABLES, TABLE, 16, 1, I32, I64, "page_map", None), None),
    ((SGLANG, RANK_STREAMS, CSR, 1, 1, I32, I64, "", I32), Shard(3, 1, source="global")),
    ((SGLANG, RANK_STREAMS, CSR, 1, 1, I64, I32, "", I64), Shard(2, 0, source="global")),
    ((SGLANG, RANK_STREAMS, CSR, 1, 1, I32, I32, "kv_start", I32), Shard(2, 1, source="global")),
    ((SGLANG, RANK_STREAMS, CSR, 1, 1, I32, I64, "kv_start", I64), Shard(5, 3, source="global")),
    ((LENGTHS, RANK_LENGTHS, TABLE, 1, 1, I32, I32, "", None), Shard(2, 1)),
    ((LENGTHS, RANK_LENGTHS, TABLE, 1, 1, I32, I32, "", None), Shard(3, 1, 16)),
)
