"""SGLang's kernels, called as its backends call them, from wherever the user unpacked SGLang's wheels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...integrations.patching import replacing
from ...integrations.patching.codes import code_of
from ...integrations.sglang import table
from . import loading
from .cases import FLASH, KV_INDICES, MHA, UNIFIED
from .inputs import POOL, Inputs

READ_TABLES = "sglang/kernels/ops/kvcache/kv_read_table.py"
SERIAL = "sglang/srt/layers/attention/utils.py"  # 0.5.12's; 0.5.23's has not the kernel
_PAGE_TABLE = "create_flashmla_kv_indices_triton"


class SGLang:
    """The files that were found, those of SGLang 0.5.23 but for SERIAL.

    Args:
        folders: where to look: unpacked wheels, or the files themselves.

    Attributes:
        files: by path in the wheel, the module, or None.

    Raises:
        PeerError: one cannot be imported.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        paths = (KV_INDICES, READ_TABLES, MHA, FLASH, UNIFIED)
        self.files: dict[str, Any] = {path: loading.load(loading.find(folders, path)) for path in paths}
        # the function alone, as that file imports more than is there
        self.files[SERIAL] = loading.load_function(loading.find(folders, SERIAL), _PAGE_TABLE)

    @property
    def missing(self) -> list[str]:
        """The files that were not found."""
        return [path for path, module in self.files.items() if module is None]

    def has(self, path: str) -> bool:
        """Whether a case whose kernel is in that file can be timed."""
        return not path or self.files[path] is not None

    def page_table(self, at: Inputs, out: Tensor, path: str = KV_INDICES) -> Callable[[Tensor, Tensor], None]:
        """create_flashmla_kv_indices_triton, for rows and lengths; SERIAL's has one program a request."""
        file, width = self.files[path], out.stride(0)
        blocks = 1 if path == SERIAL else file.get_num_kv_index_blocks_flashmla(width, at.page_size)
        launch = getattr(file, _PAGE_TABLE)[(at.batch, blocks)]
        strides = at.source.stride(0), width
        return lambda rows, lens: launch(at.source, rows, lens, None, out, *strides, PAGED_SIZE=at.page_size)

    def tokens(
        self, at: Inputs, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor, blocks: int = 1
    ) -> None:
        """create_flashinfer_kv_indices_triton, so many programs a request."""
        self.files[KV_INDICES].create_flashinfer_kv_indices_triton[(at.batch, blocks)](
            at.source, rows, lens, indptr, None, out, at.source.stride(0), TOKEN_BLOCK_PARALLEL=blocks > 1
        )

    def token_blocks(self, at: Inputs) -> int:
        """kv_indices_num_token_blocks: programs a request of `tokens`."""
        blocks: int = self.files[KV_INDICES].kv_indices_num_token_blocks(at.source.shape[1], at.batch)
        return blocks

    def spec_blocks(self, at: Inputs, total: int | None) -> int:
        """spec_kv_index_token_blocks: FlashInfer gives it the host's sum, Aiter the context."""
        context = at.capacity if total is None else None
        blocks: int = self.files[KV_INDICES].spec_kv_index_token_blocks(
            at.source.shape[1], total, at.batch, context_len=context
        )
        return blocks

    def read_table(self, at: Inputs, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """build_kv_read_table, through a map of the pool's pages, which it cannot do without."""
        self.files[READ_TABLES].build_kv_read_table(
            req_to_token=at.source, req_pool_indices=rows, seq_lens=lens, v2p=_page_map(at),
            page_size=at.page_size, max_pages=at.width, out=out,
        )  # fmt: skip

    def read_table_packed(self, at: Inputs, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor) -> None:
        """build_kv_read_table_packed, likewise."""
        self.files[READ_TABLES].build_kv_read_table_packed(
            req_to_token=at.source, req_pool_indices=rows, seq_lens=lens, v2p=_page_map(at),
            indptr=indptr, page_size=at.page_size, max_tokens=out.shape[0], out=out,
        )  # fmt: skip

    def trtllm_mha(
        self, at: Inputs, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """update_trtllm_mha_graph_metadata."""
        self.files[MHA].update_trtllm_mha_graph_metadata(
            req_pool_indices=rows, seq_lens=lens, req_to_token=at.source,
            cache_seqlens=lens_k, cu_seqlens_k=cu_k, page_table=out, bs=at.batch,
            seqlen_offset=at.drafts, max_seq_pages=out.shape[1], page_size=at.page_size,
        )  # fmt: skip

    def flash_attention(
        self, at: Inputs, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """normal_decode_set_metadata."""
        self.files[FLASH].normal_decode_set_metadata(
            lens_k, cu_k, out, at.source, rows, out.shape[1], lens, at.drafts, at.page_size
        )

    def aiter_unified(self, at: Inputs, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """scatter_req_to_token_to_page_table_kernel."""
        grid = (at.batch, -(-out.shape[1] // 1024))
        self.files[UNIFIED].scatter_req_to_token_to_page_table_kernel[grid](
            at.source, rows, lens, out, at.source.stride(0), out.stride(0), None, None,
            DRAFT_NUM=at.drafts, PAGE_SIZE=at.page_size, BLOCK_SIZE=1024, HAS_SWA=False,
        )  # fmt: skip


class Plugin(SGLang):
    """SGLang's own calls of its kernels, which the plugin's replacements answer.

    Args:
        folders: as `SGLang`'s; the files are loaded once more, so that those others hold stay as they are.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(folders)
        self._replaced: set[str] = set()
        for path, module in self.files.items():
            for row in table.KERNELS:
                kernel = getattr(module, row.name, None)
                ours = None if kernel is None else row.codes.get(code_of(kernel.fn))
                if ours is not None:
                    replacing.swap(kernel, replacing.resolve(ours.launch))
                    self._replaced.add(path)

    def has(self, path: str) -> bool:
        """Whether a kernel in that file was replaced."""
        return path in self._replaced


def _page_map(at: Inputs) -> Tensor:
    return _identity(POOL // at.page_size, str(at.source.device))


@functools.cache
def _identity(pages: int, device: str) -> Tensor:
    """``[pages + 1]`` int64: every page is itself."""
    return torch.arange(pages + 1, device=device)
