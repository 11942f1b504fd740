"""Aiter's Triton attention, from a checkout that XKV_AITER names, over xkv's metadata.

The kernels are Aiter's, and so is the code that launches them, with gfx942's configurations on every GPU:
stand-ins say which arch it is, and how many compute units it has. NVIDIA's back end gets no AMD option.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import triton.language as tl
from foreign import ARCH, EMULATED, imported, prepare
from poisoned import Step

import xkv

VARIABLE = "XKV_AITER"
ROOT = "aiter.ops.triton"
UNITS = 304  # MI300X
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def folder() -> Path:
    """Where the checkout is; skips where there is none."""
    found = os.environ.get(VARIABLE)
    if not found:
        pytest.skip(f"{VARIABLE} names no checkout of Aiter: see ci/readers.sh")
    at = Path(found, "aiter", "ops", "triton")
    if not (at / "attention" / "unified_attention.py").is_file():
        raise FileNotFoundError(f"{VARIABLE}={found!r} is no checkout of Aiter with {at.relative_to(found)}")
    return at


@functools.cache
def module(name: str, place: str) -> ModuleType:
    """A module of ``aiter.ops.triton.attention``, its kernels prepared for the place."""
    at = folder()
    packages = {"aiter": at, "aiter.ops": at, ROOT: at}
    for inner in ("attention", "_triton_kernels", "_triton_kernels.attention", "utils", "utils._triton"):
        packages[f"{ROOT}.{inner}"] = at.joinpath(*inner.split("."))
    no = lambda: False  # noqa: E731
    arch = {
        "get_arch": lambda: ARCH, "is_gluon_avail": no, "is_fp4_avail": no, "is_fp8_avail": lambda: True,
        "is_tdm_avail": no, "is_mx_scale_preshuffling_avail": no,
    }  # fmt: skip
    flash = f"{ROOT}._triton_kernels.flash_attn_triton_amd"
    standins = {
        f"{ROOT}.utils._triton.arch_info": arch,
        f"{ROOT}.utils.device_info": {"get_num_sms": lambda: UNITS, "get_num_xcds": lambda: 8},
        # the packages of these two bring quantization, and other attention, which no test here runs
        f"{ROOT}._triton_kernels.activation": {"_tanh": None},
        flash: {},
        f"{flash}.utils": {"get_arch": lambda: SimpleNamespace(name=ARCH, is_rdna=False, is_cdna=True)},
    }
    found = prepare(imported(f"{ROOT}.attention.{name}", packages, standins), place)
    if hasattr(found, "is_hip_"):
        found.is_hip_ = place == EMULATED or torch.version.hip is not None
    return found


def pair(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, each ``[pages, page_size, heads, dim]``."""
    keys, values = (x.contiguous() for x in step.cache.paged.unbind(2))
    return keys, values


def unified(
    step: Step, meta: xkv.Metadata, place: str, path: str, window: int | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """``unified_attention``; path: "2d", or "3d", which splits rows into segments."""
    aiter = module("unified_attention", place)
    keys, values = pair(step)
    out = torch.full_like(step.query, torch.nan)
    # the choice depends on the units of the GPU and on a bound of the lengths
    aiter.get_num_sms = lambda: UNITS if path == "3d" else 0
    assert meta.page_table is not None
    launched = []
    for name in ("2d", "3d"):
        kernel = getattr(aiter, f"kernel_unified_attention_{name}")
        _listed(kernel, launched, name)
    aiter.unified_attention(
        q=step.query, k=keys, v=values, out=out, cu_seqlens_q=meta.cu_seqlens_q,
        max_seqlen_q=step.max_query, seqused_k=meta.cache_seqlens,
        max_seqlen_k=max(meta.max_seq_len, 1024), softmax_scale=step.query.shape[-1] ** -0.5, causal=True,
        window_size=(-1 if window is None else window - 1, -1), block_table=meta.page_table, softcap=0.0,
        q_descale=None, k_descale=None, v_descale=None, alibi_slopes=slopes,
    )  # fmt: skip
    assert launched == [path]
    return out


def _listed(kernel: Any, launched: list[str], name: str) -> None:
    """Has the kernel's launches listed, under this name."""
    run = getattr(kernel.run, "__wrapped__", kernel.run)

    @functools.wraps(run)
    def listed(*args: Any, **kwargs: Any) -> Any:
        launched.append(name)
        return run(*args, **kwargs)

    kernel.run = listed


def pa_decode(
    step: Step, meta: xkv.Metadata, place: str, version: str, slopes: torch.Tensor | None = None
) -> torch.Tensor:
    """``paged_attn_decode_v1``, or v2, which splits rows; other kernels where a group has one head."""
    aiter = module("pa_decode", place)
    # [pages, heads, page_size, dim]
    keys, values = (x.transpose(1, 2).contiguous() for x in pair(step))
    out = torch.full_like(step.query, torch.nan)
    parts = []
    if version == "v2":
        if place != "gpu":
            aiter._SEQ_PARTITION_SIZE = 64  # so that small rows have several
        parts = [-(-meta.max_seq_len // aiter._SEQ_PARTITION_SIZE)]
    getattr(aiter, f"paged_attn_decode_{version}")(
        out, step.query, keys, values, meta.page_table, meta.cache_seqlens, meta.max_seq_len,
        TYPES[step.query.dtype], keys.shape[1], step.query.shape[-1] ** -0.5, slopes, 1.0, 1.0, *parts,
    )  # fmt: skip
    return out


def _vectorized(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys as ``[pages, heads, dim / x, page_size, x]``, values as ``[pages, heads, dim, page_size]``."""
    keys, values = pair(step)
    x = 16 // keys.element_size()
    pages, page_size, heads, dim = keys.shape
    keys = keys.view(pages, page_size, heads, dim // x, x).permute(0, 2, 3, 1, 4).contiguous()
    return keys, values.permute(0, 2, 3, 1).contiguous()


def chunked(
    step: Step, meta: xkv.Metadata, place: str, prefill_only: bool, window: int | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """``chunked_prefill_paged_decode``: a kernel for rows of one query token, and pa_prefill's for others."""
    aiter = module("pa_prefill" if prefill_only else "chunked_pa_prefill", place)
    if not prefill_only:  # has imported that anew
        aiter.context_attention_fwd = module("pa_prefill", place).context_attention_fwd
    keys, values = (x.contiguous() for x in step.new.unbind(1))
    # of a row without query tokens its kernel for one reads and writes such a token, behind the last
    room = torch.nn.functional.pad(step.query, (0, 0, 0, 0, 0, 1), value=torch.nan)
    query, out = room[:-1], torch.full_like(room, torch.nan)[:-1]
    one = torch.ones(1, device=step.device)
    more: Any = {"kv_cache_dtype": "auto", "k_scale": one, "v_scale": one, "sliding_window": window}
    more |= {"alibi_slopes": slopes, "sm_scale": step.query.shape[-1] ** -0.5}
    inputs = (query, keys, values, out)
    where = (meta.page_table, meta.cu_seqlens_q, meta.cache_seqlens, step.max_query)
    keys_paged, values_paged = _vectorized(step)
    if prefill_only:
        aiter.context_attention_fwd(
            *inputs, **more, k_cache=keys_paged, v_cache=values_paged, b_loc=where[0],
            b_start_loc=where[1], b_seq_len=where[2], max_input_len=where[3],
        )  # fmt: skip
    else:
        aiter.chunked_prefill_paged_decode(
            *inputs, **more, key_cache=keys_paged, value_cache=values_paged, block_table=where[0],
            query_start_loc=where[1], seq_lens=where[2], max_query_len=where[3],
        )  # fmt: skip
    return out


def extend(step: Step, meta: xkv.Metadata, place: str) -> torch.Tensor:
    """``extend_attention_fwd``: the prefix by CSR, the query tokens' keys and values beside it."""
    aiter = module("extend_attention", place)
    keys, values = (x.contiguous() for x in step.new.unbind(1))
    out = torch.full_like(step.query, torch.nan)
    aiter.extend_attention_fwd(
        step.query, keys, values, out, *(x.flatten(0, 1) for x in pair(step)),
        meta.qo_indptr, meta.kv_indptr, meta.kv_indices, None, True, None, step.max_query,
        sm_scale=step.query.shape[-1] ** -0.5,
    )  # fmt: skip
    return out


SPLITS = 4


def mla_decode(step: Step, meta: xkv.Metadata, place: str, latent: int) -> torch.Tensor:
    """``mla_decode.decode_attention_fwd`` over a table, which Aiter's own kernel makes of a CSR stream."""
    aiter = module("mla_decode", place)
    table, lens = meta.page_table, meta.cache_seqlens
    if table is None:
        batch, width = len(step.lens), -(-meta.max_seq_len // step.page_size)
        table = torch.full((batch, width), -1, dtype=torch.int32, device=step.device)
        aiter.csr_to_dense_block_table(meta.kv_indices, meta.kv_indptr, table, width, batch)
    tokens = step.cache.paged.flatten(0, 1)[:, None]
    out, logits, _ = _mla_outputs(step, latent)
    lse = torch.empty(out.shape[:2], device=step.device)
    aiter.decode_attention_fwd(
        step.query, tokens, tokens[..., :latent], out, lse, table, lens, logits, SPLITS,
        step.query.shape[-1] ** -0.5, page_size=step.page_size,
    )  # fmt: skip
    return out


def mla_decode_rope(step: Step, meta: xkv.Metadata, place: str, latent: int) -> torch.Tensor:
    """``decode_attention_fwd_grouped_rope`` over CSR, the rotation having been applied before."""
    aiter = module("mla_decode_rope", place)
    tokens = step.cache.paged.flatten(0, 1)[:, None]
    out, logits, nothing = _mla_outputs(step, latent)
    aiter.decode_attention_fwd_grouped_rope(
        step.query, tokens, tokens[..., :latent], out, meta.kv_indptr, meta.kv_indices, None, latent,
        step.query.shape[-1] - latent, nothing, nothing, logits, SPLITS, step.query.shape[-1] ** -0.5,
    )  # fmt: skip
    return out


def _mla_outputs(step: Step, latent: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = torch.full_like(step.query[..., :latent], torch.nan)
    logits = torch.full((*out.shape[:2], SPLITS, latent + 1), torch.nan, device=step.device)
    return out, logits, torch.zeros(1, device=step.device)


def mla(step: Step, meta: xkv.Metadata, place: str, latent: int) -> torch.Tensor:
    """``mla.mla_decode_fwd``, or ``mla_prefill_fwd`` where rows have different numbers of query tokens."""
    aiter = module("mla", place)
    aiter.get_num_sms = lambda: UNITS
    out = torch.full_like(step.query[..., :latent], torch.nan)
    run = aiter.mla_prefill_fwd if step.mode == "mixed" else aiter.mla_decode_fwd
    run(
        step.query, step.cache.paged[:, :, None], out, meta.cu_seqlens_q, meta.cache_seqlens,
        meta.max_seq_len, meta.page_table, step.query.shape[-1] ** -0.5, latent,
        step.query.shape[-1] - latent, True, None, None,
    )  # fmt: skip
    return out
