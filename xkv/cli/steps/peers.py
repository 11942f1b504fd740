"""The other side of `python -m xkv steps`: a step's inputs, buffers, and SGLang's index kernels.

Their kernels are loaded by path from wherever the user unpacked SGLang's wheel; none of their code
is in this package. Where there are none, `StandIn` calls xkv's own ops in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ... import ops
from ...integrations.patching import replacing
from ...integrations.patching.codes import code_of
from ...integrations.sglang import table
from .. import loading

INDEX_KERNELS = "kv_indices.py"
OTHERS = ("metadata.py", "trtllm_mha_graph_metadata.py", "aiter_unified_page_table.py")
_ROOM = "sglang/kernels/ops/attention"  # where the wheel has them


@dataclass(frozen=True, eq=False)
class Step:
    """One step's batch.

    Attributes:
        rows: ``[batch]`` int64 on the device, source rows.
        lens: ``[batch]`` int64 on the device, tokens.
        host_lens: ``[batch]`` int64 on the CPU, the same.
        total: tokens, their sum.
    """

    rows: Tensor
    lens: Tensor
    host_lens: Tensor
    total: int


@dataclass(frozen=True)
class Setup:
    """What their buffers are made for.

    Attributes:
        peers: their index kernels.
        source: ``[rows, >= context]`` int32, req_to_token.
        batch: requests.
        context: tokens, capacity of a row.
        page_size: tokens of a page.
        drafts: draft tokens of a verify; 0: decode.
    """

    peers: Peers
    source: Tensor
    batch: int
    context: int
    page_size: int
    drafts: int

    def ints(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """A buffer of zeros on the device."""
        return torch.zeros(shape, dtype=dtype, device=self.source.device)

    def query_starts(self) -> Tensor:
        """``[batch + 1]`` int32, query tokens: what is set once and never again."""
        queries = self.drafts or 1
        return torch.arange(0, self.batch * queries + 1, queries, device=self.source.device).int()


class Peers(Protocol):
    """The kernels that their sequences of ops need."""

    @property
    def title(self) -> str:
        """What "theirs" stands for, for the reader."""

    def has(self, file: str) -> bool:
        """Whether a row whose kernel is in that file can be timed."""

    def blocks(self, at: Setup, total: int | None) -> int:
        """Programs a row of `tokens` under speculative decoding."""

    def page_table(self, at: Setup, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """Writes the live part of a page table."""

    def tokens(
        self, at: Setup, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """Writes a stream of token slots whose rows begin at indptr."""

    def trtllm_mha(
        self, at: Setup, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """Writes a page table, lengths and their prefix sums."""

    def flash_attention(
        self, at: Setup, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """The same."""

    def aiter_unified(self, at: Setup, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """Writes a page table that reaches past the lengths, to the last draft token."""


class StandIn:
    """xkv's public ops in place of their index kernels: one launch for one launch."""

    title = "torch ops + xkv's index kernel"

    def __init__(self) -> None:
        self._unread: dict[int, tuple[Tensor, Tensor]] = {}

    def has(self, file: str) -> bool:
        """Not the kernels that do the whole step: xkv's launch would stand on both sides."""
        return file in ("", INDEX_KERNELS, "aiter_unified_page_table.py")

    def blocks(self, at: Setup, total: int | None) -> int:
        """As xkv likes."""
        return 1

    def page_table(self, at: Setup, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """xkv.build_page_table."""
        ops.build_page_table(at.source, rows, lens, page_size=at.page_size, out=out)

    def tokens(
        self, at: Setup, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """xkv.build_kv_indices; its prefix sums go unread, lest they hide what theirs are."""
        if at.batch not in self._unread:
            self._unread[at.batch] = at.ints(at.batch + 1), at.ints(at.batch)
        starts, last = self._unread[at.batch]
        ops.build_kv_indices(at.source, rows, lens, out=ops.KVIndices(starts, out, last))

    def trtllm_mha(
        self, at: Setup, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """For the comparison alone."""
        torch.add(lens, at.drafts, out=lens_k)
        cu_k[1:] = torch.cumsum(lens_k, dim=0)
        self.page_table(at, rows, lens_k, out)

    flash_attention = trtllm_mha

    def aiter_unified(self, at: Setup, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """xkv.build_page_table."""
        self.page_table(at, rows, lens + at.drafts, out)


def find(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, or where the unpacked wheel has it."""
    return loading.find([folder], f"{_ROOM}/{name}")


class SGLang:
    """The kernels of SGLang 0.5.23, called as its backends call them.

    Args:
        folder: holds kv_indices.py and what else is wanted of sglang/kernels/ops/attention, by
            itself or under that path.
    """

    def __init__(self, folder: Path) -> None:
        self.title = f"torch ops + SGLang's kernels in {folder}"
        self._files = {name: loading.load(find(folder, name)) for name in (INDEX_KERNELS, *OTHERS)}

    def has(self, file: str) -> bool:
        """Whether the file was found."""
        return not file or self._files[file] is not None

    def blocks(self, at: Setup, total: int | None) -> int:
        """spec_kv_index_token_blocks: FlashInfer gives it the host's sum, Aiter the context."""
        context = at.context if total is None else None
        blocks: int = self._files[INDEX_KERNELS].spec_kv_index_token_blocks(
            at.source.shape[1], total, at.batch, context_len=context
        )
        return blocks

    def page_table(self, at: Setup, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """create_flashmla_kv_indices_triton."""
        file, stride = self._files[INDEX_KERNELS], out.stride(0)
        grid = (at.batch, file.get_num_kv_index_blocks_flashmla(stride, at.page_size))
        file.create_flashmla_kv_indices_triton[grid](
            at.source, rows, lens, None, out, at.source.stride(0), stride, PAGED_SIZE=at.page_size
        )

    def tokens(
        self, at: Setup, rows: Tensor, lens: Tensor, indptr: Tensor, out: Tensor,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """create_flashinfer_kv_indices_triton."""
        self._files[INDEX_KERNELS].create_flashinfer_kv_indices_triton[(at.batch, blocks or 1)](
            at.source, rows, lens, indptr, None, out, at.source.stride(0),
            TOKEN_BLOCK_PARALLEL=(blocks or 1) > 1,
        )  # fmt: skip

    def trtllm_mha(
        self, at: Setup, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """update_trtllm_mha_graph_metadata."""
        self._files["trtllm_mha_graph_metadata.py"].update_trtllm_mha_graph_metadata(
            req_pool_indices=rows, seq_lens=lens, req_to_token=at.source,
            cache_seqlens=lens_k, cu_seqlens_k=cu_k, page_table=out, bs=at.batch,
            seqlen_offset=at.drafts, max_seq_pages=out.shape[1], page_size=at.page_size,
        )  # fmt: skip

    def flash_attention(
        self, at: Setup, rows: Tensor, lens: Tensor, lens_k: Tensor, cu_k: Tensor, out: Tensor
    ) -> None:
        """normal_decode_set_metadata."""
        self._files["metadata.py"].normal_decode_set_metadata(
            lens_k, cu_k, out, at.source, rows, out.shape[1], lens, at.drafts, at.page_size
        )

    def aiter_unified(self, at: Setup, rows: Tensor, lens: Tensor, out: Tensor) -> None:
        """scatter_req_to_token_to_page_table_kernel."""
        file = self._files["aiter_unified_page_table.py"]
        grid = (at.batch, -(-out.shape[1] // 1024))
        file.scatter_req_to_token_to_page_table_kernel[grid](
            at.source, rows, lens, out, at.source.stride(0), out.stride(0), None, None,
            DRAFT_NUM=at.drafts, PAGE_SIZE=at.page_size, BLOCK_SIZE=1024, HAS_SWA=False,
        )  # fmt: skip


class DropIn(SGLang):
    """SGLang's own calls of its kernels, which the plugin's replacements answer.

    Args:
        folder: as `SGLang`'s; its files are loaded once more, so that those others hold stay as they are.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.title = f"SGLang's calls in {folder}, its kernels replaced by xkv's"
        self._replaced: set[str] = set()
        for file, module in self._files.items():
            for row in table.KERNELS:
                kernel = getattr(module, row.name, None)
                ours = None if kernel is None else row.codes.get(code_of(kernel.fn))
                if ours is not None:
                    replacing.swap(kernel, replacing.resolve(ours.launch))
                    self._replaced.add(file)

    def has(self, file: str) -> bool:
        """Whether a kernel in that file was replaced."""
        return file in self._replaced
