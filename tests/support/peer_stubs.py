"""Files with the names and signatures of SGLang's kernels; plain torch in them runs on any device."""

from __future__ import annotations

from pathlib import Path

_KERNEL = """
import torch


class Kernel:
    def __init__(self, function):
        self.fn = function

    def __getitem__(self, grid):
        return self.fn


def pages(source, rows, lens, out, size):
    width = min(out.shape[1], -(-source.shape[1] // size))
    ids = source[rows][:, : width * size : size] // size
    live = torch.arange(width, device=out.device) * size < lens[:, None]
    out[:, :width][live] = ids[live].to(out.dtype)


@Kernel
def create_flashmla_kv_indices_triton(
    source, rows, lens, starts, out, source_stride, out_stride, PAGED_SIZE=64
):
    pages(source, rows, lens, out, PAGED_SIZE)
"""

_KV_INDICES = (
    _KERNEL
    + """

def get_num_kv_index_blocks_flashmla(width, page_size):
    return 2


def kv_indices_num_token_blocks(width, programs):
    return 3


def spec_kv_index_token_blocks(width, total, batch, context_len):
    assert (total is None) != (context_len is None)
    return 3


@Kernel
def create_flashinfer_kv_indices_triton(
    source, rows, lens, indptr, starts, out, source_stride, ENTRY_PAGE_SIZE=1,
    TOKEN_BLOCK_PARALLEL=False, token_mapping=None,
):
    tokens, column = source[rows], torch.arange(source.shape[1], device=out.device)
    live = column < lens[:, None]
    out[(indptr[: len(lens), None] + column)[live]] = tokens[live].to(out.dtype)
"""
)

_READ_TABLE = """
import torch


def build_kv_read_table(*, req_to_token, req_pool_indices, seq_lens, v2p, page_size, max_pages, out):
    ids = v2p[req_to_token[req_pool_indices, : max_pages * page_size : page_size] // page_size]
    live = torch.arange(max_pages, device=out.device) * page_size < seq_lens[:, None]
    out[:, :max_pages][live] = ids[live].int()


def build_kv_read_table_packed(
    *, req_to_token, req_pool_indices, seq_lens, v2p, indptr, page_size, max_tokens, out
):
    tokens = req_to_token[req_pool_indices].long()
    ids = v2p[tokens // page_size] * page_size + tokens % page_size
    live = torch.arange(tokens.shape[1], device=out.device) < seq_lens[:, None]
    out[: int(live.sum())] = ids[live].int()
"""

_FUSED = """
def fused(source, rows, lens, lens_k, cu_k, out, delta, size):
    lens_k.copy_(lens + delta)
    cu_k[1:] = torch.cumsum(lens_k, dim=0)
    pages(source, rows, lens_k, out, size)

"""

_MHA = (
    _KERNEL
    + _FUSED
    + """
def update_trtllm_mha_graph_metadata(
    *, req_pool_indices, seq_lens, req_to_token, cache_seqlens, cu_seqlens_k, page_table, bs, seqlen_offset,
    max_seq_pages, page_size,
):
    fused(
        req_to_token, req_pool_indices, seq_lens, cache_seqlens, cu_seqlens_k, page_table, seqlen_offset,
        page_size,
    )
"""
)

_FLASH = (
    _KERNEL
    + _FUSED
    + """
def normal_decode_set_metadata(lens_k, cu_k, out, source, rows, max_pages, lens, delta, page_size):
    fused(source, rows, lens, lens_k, cu_k, out, delta, page_size)
"""
)

_UNIFIED = (
    _KERNEL
    + """

@Kernel
def scatter_req_to_token_to_page_table_kernel(
    source, rows, lens, out, source_stride, out_stride, window, map, DRAFT_NUM, PAGE_SIZE, BLOCK_SIZE, HAS_SWA
):
    pages(source, rows, lens + DRAFT_NUM, out, PAGE_SIZE)
"""
)

# as 0.5.12's file, it imports what is not there
_UTILS = "from sglang.srt.utils import nothing\n" + _KERNEL

FILES = {
    "sglang/kernels/ops/attention/kv_indices.py": _KV_INDICES,
    "sglang/kernels/ops/kvcache/kv_read_table.py": _READ_TABLE,
    "sglang/srt/layers/attention/utils.py": _UTILS,
    "sglang/kernels/ops/attention/trtllm_mha_graph_metadata.py": _MHA,
    "sglang/kernels/ops/attention/metadata.py": _FLASH,
    "sglang/kernels/ops/attention/aiter_unified_page_table.py": _UNIFIED,
}


def write(folder: Path, *, flat: bool = False, spoilt: str = "") -> None:
    """Lays them out as the wheels do, or flat; of the spoilt one the last entry of each row is missing."""
    for path, text in FILES.items():
        file = folder / (Path(path).name if flat else path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if spoilt and path.endswith(spoilt):
            text = text.replace("* size < lens[:, None]", "* size + size <= lens[:, None]")
        file.write_text(text)
