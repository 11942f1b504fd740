"""Files with the names and signatures of SGLang's kernels, and the simplest kernels of our own in them."""

from __future__ import annotations

from pathlib import Path

_TABLE = """
STEP = tl.constexpr(1)


@triton.jit
def create_flashmla_kv_indices_triton(
    source, rows, lens, starts, out, source_stride: tl.constexpr, out_stride: tl.constexpr,
    PAGED_SIZE: tl.constexpr = 64,
):
    b = tl.program_id(0)
    row = tl.load(rows + b)
    pages = tl.cdiv(tl.load(lens + b), PAGED_SIZE)
    for i in range(tl.program_id(1), pages, tl.num_programs(1) * STEP):
        token = tl.load(source + row * source_stride + i * PAGED_SIZE)
        tl.store(out + b * out_stride + i, token // PAGED_SIZE)
"""

_KV_INDICES = (
    "import triton\nimport triton.language as tl\n"
    + _TABLE
    + """

def get_num_kv_index_blocks_flashmla(width, page_size):
    return 2


def kv_indices_num_token_blocks(width, programs):
    return 3


@triton.jit
def create_flashinfer_kv_indices_triton(
    source, rows, lens, indptr, starts, out, source_stride, ENTRY_PAGE_SIZE: tl.constexpr = 1,
    TOKEN_BLOCK_PARALLEL: tl.constexpr = False, token_mapping=None,
):
    b = tl.program_id(0)
    row, at = tl.load(rows + b), tl.load(indptr + b)
    step = 1
    if TOKEN_BLOCK_PARALLEL:
        step = tl.num_programs(1)
    for i in range(tl.program_id(1), tl.load(lens + b), step):
        tl.store(out + at + i, tl.load(source + row * source_stride + i))
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

# as 0.5.12's file, it imports what is not there
_UTILS = "from sglang.srt.utils import nothing\nimport triton\nimport triton.language as tl\n" + _TABLE

FILES = {
    "sglang/kernels/ops/attention/kv_indices.py": _KV_INDICES,
    "sglang/kernels/ops/kvcache/kv_read_table.py": _READ_TABLE,
    "sglang/srt/layers/attention/utils.py": _UTILS,
}


def write(folder: Path, *, flat: bool = False, spoilt: str = "") -> None:
    """Lays them out as the wheels do, or flat; of the spoilt one the last entry of each row is missing."""
    for path, text in FILES.items():
        file = folder / (Path(path).name if flat else path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if spoilt and path.endswith(spoilt):
            text = text.replace("tl.cdiv(tl.load(lens + b), PAGED_SIZE)", "tl.load(lens + b) // PAGED_SIZE")
        file.write_text(text)
