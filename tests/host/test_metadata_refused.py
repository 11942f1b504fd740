"""What MetadataBuilder refuses, in words, and that a build has written nothing then."""

from __future__ import annotations

import pytest
import torch
from metadata_steps import CONTEXT, batch, make, source

import xkv
from xkv import dispatch
from xkv.metadata import config
from xkv.platforms import detect

pytestmark = pytest.mark.usefixtures("every_backend")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backend": "flashmlaa"}, ValueError, "backend must be one of .*flashmla.*triton.* got 'flashmlaa'"),
        ({"page_size": 32}, ValueError, "page_size for 'flashmla' must be one of 64, got 32"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size must be from 1 to 65536, got 0"),
        ({"max_context_len": 10**6}, ValueError, "max_context_len must be from 1 to"),
        (
            {"source_page_size": 3},
            ValueError,
            "source_page_size must be a multiple or a divisor of page_size=",
        ),
        ({"source_page_size": 65_537}, ValueError, "source_page_size must be from 1 to 65536"),
        ({"sliding_window": 0}, ValueError, "sliding_window must be from 1"),
        ({"max_tokens": True}, TypeError, "max_tokens must be an int, got bool"),
        ({"page_map": torch.zeros(3)}, TypeError, "page_map must be int32 or int64"),
    ],
)
def test_constructor_errors(change, error, message, device: str) -> None:
    arguments = {"backend": "flashmla", "max_batch_size": 8, "max_context_len": CONTEXT, **change}
    with pytest.raises(error, match=message):
        xkv.MetadataBuilder(arguments.pop("backend"), source(device, 64), **arguments)


def test_foreign_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    hip = detect.Platform("hip", "gfx942", 64, 304)
    monkeypatch.setattr(config, "platform", lambda device: hip)
    with pytest.raises(ValueError, match="'flashmla' does not run on 'hip', which has: aiter_mla"):
        make("flashmla", "cpu")
    assert [s.name for s in dispatch.specs_of("hip").values()] == [
        "aiter_mla", "aiter_unified", "aiter_pa", "aiter_pa_ragged", "aiter_batch_prefill", "triton",
    ]  # fmt: skip
    assert "aiter_mla" not in dispatch.specs_of("cuda")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seq_lens": torch.zeros(9, dtype=torch.int64)}, ValueError, "at most max_batch_size=8 .* 9"),
        ({"req_pool_indices": torch.zeros(4, dtype=torch.int64)}, ValueError, "req_pool_indices must"),
        ({"seq_lens": torch.zeros(5)}, TypeError, "seq_lens must be int32 or int64, got torch.float32"),
        ({"seq_lens": torch.zeros(5, dtype=torch.int64, device="meta")}, ValueError, "seq_lens must be on"),
        ({"seq_lens_delta": 1.5}, TypeError, "seq_lens_delta must be an int"),
        ({"query_lens_sign": 1}, ValueError, "query_lens_sign needs query_lens as a tensor"),
        ({"query_lens_sign": 2}, ValueError, "query_lens_sign must be from -1 to 1, got 2"),
        ({"query_lens": -1}, ValueError, "query_lens must be from 0"),
        ({"kv_start": torch.zeros(3, dtype=torch.int64)}, ValueError, "kv_start must have 5 entries"),
        ({"window_kv_start": torch.zeros(5, dtype=torch.int64)}, ValueError, "window_kv_start needs"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be from 0"),
    ],
)
def test_build_errors_write_nothing(change, error, message, device: str) -> None:
    builder = make("flashmla", device)
    rows, lens = batch(device)
    before = builder.build(rows, lens).page_table.clone()
    wide = builder._views[0].out.clone()
    arguments = {"req_pool_indices": rows, "seq_lens": lens + 64}
    for name, value in change.items():
        keep = not isinstance(value, torch.Tensor) or value.device.type == "meta"
        arguments[name] = value if keep else value.to(device)
    with pytest.raises(error, match=message):
        builder.build(**arguments)
    assert torch.equal(builder._views[0].out, wide)
    assert torch.equal(builder.build(rows, lens).page_table, before)
