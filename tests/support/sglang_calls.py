"""Random calls of SGLang's index kernels, every buffer between guard words, and their comparison."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import sglang_parallel_calls
import sglang_sparse_calls
import sglang_step_calls
import torch
from sglang_batches import Batch, Call, any_pages

from xkv.cli.check.memory import guarded, guarded_1d, whole
from xkv.integrations.patching.replacing import Kernel, Launch


def flashmla(rng: random.Random, device: str) -> Call:
    x, page_size = any_pages(rng, device)
    start = None
    if rng.random() < 0.4:
        # of any start at page size 1; else of what the original is left to
        start = x.ints(0, 3, torch.int32) * page_size
        x.lens.sub_(start.max()).clamp_(min=0)
    out = x.table(-(-x.width // page_size) + rng.choice([0, 5]))
    blocks = -(-out.stride(0) // (4096 // page_size))
    args = {
        "req_to_token_ptr": x.ids, "req_pool_indices_ptr": x.pool, "page_kernel_lens_ptr": x.lens,
        "kv_start_idx": start, "kv_indices_ptr": out, "req_to_token_ptr_stride": x.ids.stride(0),
        "kv_indices_ptr_stride": out.stride(0), "PAGED_SIZE": page_size,
    }  # fmt: skip
    return Call((x.size, blocks), args, ("kv_indices_ptr",))


def _indptr(x: Batch, lens: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where rows begin, not always one right behind the other, and the room that all take."""
    at, found = 0, []
    for n in lens[: x.size].tolist():
        at += x.rng.choice([0, 0, 2])
        found.append(at)
        at += max(n, 0)
    return torch.tensor([*found, at], dtype=torch.int32, device=x.device), at


def flashinfer(rng: random.Random, device: str) -> Call:
    entry = rng.choice([1, 1, 16])
    x = Batch(rng, device, 16, rng.randint(20, 400))
    ids, start, mapping = x.ids, None, None
    if rng.random() < 0.5:
        start = x.ints(0, 9, torch.int32)
        x.lens.sub_(9).clamp_(min=0)
    if entry > 1:
        ids = x.ids[:, ::entry].contiguous() // entry
    if rng.random() < 0.4:
        mapping = x.mapping(lost=True)
    indptr, room = _indptr(x, x.lens)
    parallel = rng.random() < 0.5
    args = {
        "req_to_token_ptr": ids, "req_pool_indices_ptr": x.pool, "page_kernel_lens_ptr": x.lens,
        "kv_indptr": indptr, "kv_start_idx": start,
        "kv_indices_ptr": guarded_1d(room + 5, rng.choice([torch.int32, torch.int64]), device),
        "req_to_token_ptr_stride": ids.stride(0), "ENTRY_PAGE_SIZE": entry,
        "TOKEN_BLOCK_PARALLEL": parallel, "token_mapping": mapping,
    }  # fmt: skip
    return Call((x.size, 3) if parallel else (x.size,), args, ("kv_indices_ptr",))


def chunked(rng: random.Random, device: str) -> Call:
    x = Batch(rng, device, 16, rng.randint(20, 1500))
    start = x.ints(0, 9)
    x.lens.sub_(9).clamp_(min=0)
    indptr, room = _indptr(x, x.lens)
    args = {
        "req_to_token_ptr": x.ids, "req_pool_indices_ptr": x.pool, "chunk_start_idx_ptr": start,
        "chunk_seq_lens_ptr": x.lens, "chunk_cu_seq_lens_ptr": indptr,
        "chunk_kv_indices_ptr": guarded_1d(room + 5, torch.int32, device),
        "req_to_token_ptr_stride": x.ids.stride(0),
    }  # fmt: skip
    return Call((x.size,), args, ("chunk_kv_indices_ptr",))


def trtllm_mha(rng: random.Random, device: str) -> Call:
    x, page_size = any_pages(rng, device)
    out, swa = x.table(-(-x.width // page_size)), rng.random() < 0.6
    args = {
        "req_to_token_ptr": x.ids, "req_pool_indices_ptr": x.pool, "seq_lens_ptr": x.lens,
        "full_to_swa_ptr": None, "page_table_ptr": out, "swa_page_table_ptr": None, "full_to_swa_numel": 0,
        "req_to_token_stride": x.ids.stride(0), "page_table_stride": out.stride(0),
        "PAGE_SIZE": page_size, "HAS_SWA": swa,
    }  # fmt: skip
    if swa:
        mapping = x.mapping(lost=True)
        args |= {"full_to_swa_ptr": mapping, "full_to_swa_numel": mapping.numel()}
        args["swa_page_table_ptr"] = guarded(*out.shape, out.stride(0), torch.int32, device)
    blocks = -(-out.shape[1] // (4096 // page_size))
    return Call((x.size, blocks), args, ("page_table_ptr", "swa_page_table_ptr"))


def scatter(rng: random.Random, device: str) -> Call:
    draft = rng.choice([0, 4])
    x, page_size = any_pages(rng, device, draft)
    out, swa = x.table(-(-x.width // page_size)), rng.random() < 0.5
    args = {
        "req_to_token_ptr": x.ids, "req_pool_indices_ptr": x.pool, "seq_lens_ptr": x.lens,
        "page_table_ptr": out, "req_to_token_stride": x.ids.stride(0), "page_table_stride": out.stride(0),
        "sw_page_table_ptr": guarded(*out.shape, out.stride(0), torch.int32, device) if swa else None,
        "swa_slot_mapping_ptr": x.mapping(lost=True) if swa else None,
        "DRAFT_NUM": draft, "PAGE_SIZE": page_size, "BLOCK_SIZE": 256, "HAS_SWA": swa,
    }  # fmt: skip
    return Call((x.size, -(-out.shape[1] // 256)), args, ("page_table_ptr", "sw_page_table_ptr"))


CALLS: dict[str, Callable[[random.Random, str], Call]] = {
    "create_flashmla_kv_indices_triton": flashmla,
    "create_flashinfer_kv_indices_triton": flashinfer,
    "create_chunked_prefix_cache_kv_indices": chunked,
    "create_trtllm_mha_kv_indices_triton": trtllm_mha,
    "scatter_req_to_token_to_page_table_kernel": scatter,
    **sglang_step_calls.CALLS,
    **sglang_parallel_calls.CALLS,
    **sglang_sparse_calls.CALLS,
}


def fits(kernel: Any, call: Call) -> bool:
    """Whether this version's kernel takes the call; arguments that it lacks, and that say nothing, go."""
    names = inspect.signature(kernel.fn).parameters
    if "pool_len" in names:  # its name up to SGLang 0.5.21
        call.args["pool_len"] = call.args.pop("row_stride")
    if "max_seqlen_k" in names:  # a table without gaps
        table = call.args["page_table_ptr"]
        call.args["page_table_ptr"], call.args["max_seqlen_k"] = table.contiguous(), table.shape[1]
        call.args.pop("page_table_row_stride")
    if "mult" in names:
        call.args["mult"] = 1
    for name in [name for name in call.args if name not in names]:
        value = call.args.pop(name)
        if isinstance(value, torch.Tensor) or value not in (None, 1, False):
            return False
    return True


def twin(call: Call) -> Call:
    """The same call on copies of what it writes, guard words included."""
    copies = {n: _copy(call.args[n]) for n in call.outs if call.args.get(n) is not None}
    return call._replace(args=call.args | copies)


def _copy(x: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(whole(x).clone(), x.shape, x.stride(), x.storage_offset())


def original(kernel: Any) -> Callable[[tuple[int, ...]], Callable[..., Any]]:
    """A replaced kernel's own call."""
    return lambda grid: type(kernel).xkv_base.__getitem__(kernel, grid)


def assert_same(got: Call, want: Call) -> None:
    for name in got.outs:
        if got.args.get(name) is not None:
            a, b = whole(got.args[name]).cpu(), whole(want.args[name]).cpu()
            assert torch.equal(a, b), f"{name} of {describe(got)}: {a.tolist()} and not {b.tolist()}"


def describe(call: Call) -> str:
    show = lambda x: (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x  # noqa: E731
    return f"{call.grid} { ({name: show(x) for name, x in call.args.items()}) }"


def newest(row: Kernel) -> Launch:
    """What is launched for the arguments that the kernel has today."""
    return next(launch for launch in row.codes.values() if launch.launch.endswith(f":{row.name}"))
