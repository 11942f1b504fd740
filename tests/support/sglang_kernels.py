"""SGLang's Triton decode and extend attention, from a wheel that XKV_ENGINES has unpacked, over our metadata.

The kernels are SGLang's, and so is the code that launches them. Stand-ins say on which GPU: where gfx942
machine code is executed, and on AMD, they take the configurations of AMD.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from foreign import EMULATED, imported, prepare
from poisoned import Step

import xkv

VERSION = "0.5.23"
SPLITS = 8


def folder() -> Path:
    """Where the package is; skips where it is not."""
    engines = os.environ.get("XKV_ENGINES")
    if not engines:
        pytest.skip(f"XKV_ENGINES names no folder with sglang-{VERSION}: see ci/readers.sh")
    found = Path(engines, f"sglang-{VERSION}", "sglang")
    if not (found / "kernels" / "ops" / "attention" / "decode_attention.py").is_file():
        pytest.skip(f"{found} holds no kernels of SGLang {VERSION}")
    return found


@functools.cache
def module(name: str, place: str) -> ModuleType:
    """A module of ``sglang.kernels.ops.attention``, its kernels prepared for the place."""
    at, is_hip = folder(), place == EMULATED or torch.version.hip is not None
    packages = {"sglang": at}
    for inner in ("kernels", "kernels.ops", "kernels.ops.attention", "srt"):
        packages[f"sglang.{inner}"] = at.joinpath(*inner.split("."))
    no = lambda: False  # noqa: E731
    off = SimpleNamespace(get=no)
    standins = {
        "sglang.srt.environ": {
            "envs": SimpleNamespace(
                SGLANG_TRITON_FP8_PREFILL_ATTN=off, SGLANG_TRITON_COMPACT_EXTEND_ATTENTION=off
            )
        },
        "sglang.srt.utils": {
            "is_hip": lambda: is_hip, "is_cuda": lambda: place == "gpu" and not is_hip,
            "is_gfx95_supported": no, "is_gfx1250_supported": no, "get_device_core_count": lambda _: 304,
        },
    }  # fmt: skip
    return prepare(imported(f"sglang.kernels.ops.attention.{name}", packages, standins), place)


def buffers(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, each ``[slots, heads, dim]``."""
    keys, values = (x.flatten(0, 1).contiguous() for x in step.cache.paged.unbind(2))
    return keys, values


def decode(step: Step, meta: xkv.Metadata, place: str, latent: int | None = None) -> torch.Tensor:
    """``decode_attention_fwd``; with a latent, MLA, whose keys hold the values."""
    if latent is None:
        keys, values = buffers(step)
    else:
        keys = step.cache.paged.flatten(0, 1)[:, None]
        values = keys[..., :latent]
    batch, heads, dim = *step.query.shape[:2], values.shape[-1]
    out = torch.full((batch, heads, dim), torch.nan, dtype=step.query.dtype, device=step.device)
    logits = torch.full((batch, heads, SPLITS, dim), torch.nan, device=step.device)
    lse = torch.full((batch, heads, SPLITS), torch.nan, device=step.device)
    splits = torch.arange(batch, dtype=torch.int32, device=step.device) % SPLITS + 1
    module("decode_attention", place).decode_attention_fwd(
        step.query, keys, values, out, meta.kv_indptr, meta.kv_indices, logits, lse, splits, SPLITS,
        step.query.shape[-1] ** -0.5, 1.0, 1.0, has_mla=latent is not None,
    )  # fmt: skip
    return out


def extend(
    step: Step, meta: xkv.Metadata, place: str, window: int | None = None, latent: int | None = None
) -> torch.Tensor:
    """``extend_attention_fwd``: the prefix by CSR, the query tokens' keys and values beside it.

    With a window, a query token sees so many before it.
    """
    if latent is None:
        cached = buffers(step)
        new = tuple(x.contiguous() for x in step.new.unbind(1))
    else:
        keys, added = step.cache.paged.flatten(0, 1)[:, None], step.new[:, None]
        cached, new = (keys, keys[..., :latent]), (added, added[..., :latent].contiguous())
    out = torch.full(
        (*step.query.shape[:2], new[1].shape[-1]), torch.nan, dtype=step.query.dtype, device=step.device
    )
    module("extend_attention", place).extend_attention_fwd(
        step.query, *new, out, *cached, meta.qo_indptr, meta.kv_indptr, meta.kv_indices, None, True, None,
        step.max_query, 1.0, 1.0, sm_scale=step.query.shape[-1] ** -0.5,
        sliding_window_size=-1 if window is None else window,
    )  # fmt: skip
    return out
