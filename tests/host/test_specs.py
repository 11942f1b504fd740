"""BackendSpec: what is refused by field, and what a spec of the user's own gets of a builder."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from metadata_steps import CONTEXT, LENS, OWN, SPECS, batch, make, source

import xkv
from xkv import dispatch
from xkv.launch import compile
from xkv.params import OUTPUTS
from xkv.platforms.specs import FORM_OUTPUTS

pytestmark = pytest.mark.usefixtures("every_backend")
TABLE: dict[str, Any] = {
    "name": "mine", "form": "table", "page_sizes": (16, 64), "page_size": 64, "outputs": ("cache_seqlens",),
}  # fmt: skip
CSR = TABLE | {"form": "csr", "outputs": ("kv_indptr",)}
REFUSED = [
    ({"name": 3}, TypeError, "name of BackendSpec 3 must be a str, got int"),
    ({"name": ""}, ValueError, "name of BackendSpec '' must not be empty"),
    ({"why": None}, TypeError, "why of BackendSpec 'mine' must be a str, got NoneType"),
    ({"form": ["csr"]}, TypeError, "form .* must be a str, got list"),
    ({"form": "ragged"}, ValueError, "form .* must be 'table' or 'csr', got 'ragged'"),
    ({"page_sizes": [64]}, TypeError, "page_sizes .* must be a tuple of ints, got list"),
    ({"page_sizes": ()}, ValueError, "page_sizes .* must not be empty"),
    ({"page_sizes": (64, 48)}, ValueError, "page_sizes .* must be powers of two from 1 to 1024, got .*48"),
    ({"page_sizes": (2048, 64)}, ValueError, "page_sizes .* must be powers of two from 1 to 1024"),
    ({"page_sizes": (True, 64)}, ValueError, "page_sizes .* must be powers of two"),
    ({"page_size": 32}, ValueError, "page_size .* must be one of its page_sizes, 16, 64, got 32"),
    ({"page_sizes": (1,), "page_size": True}, ValueError, "page_size .* must be one of its page_sizes, 1"),
    ({"outputs": ["cache_seqlens"]}, TypeError, "outputs .* must be a tuple of str, got list"),
    (
        {"outputs": ("seq_lens",)},
        ValueError,
        "outputs .* must be some of kv_last_page_len, .* got .'seq_lens'",
    ),
    ({"outputs": ("kv_indptr",)}, ValueError, "outputs .* as form is 'table'"),
    ({"outputs": ("cache_seqlens",) * 2}, ValueError, "outputs .* each once"),
    ({"outputs": ("kv_start_offset",)}, ValueError, "outputs .* must be some of"),
    ({"id_dtype": "int16"}, ValueError, "id_dtype .* must be 'int32' or 'int64', got 'int16'"),
    ({"id_dtype": torch.int32}, ValueError, "id_dtype .* must be 'int32' or 'int64', got torch.int32"),
    ({"width_tokens": 0}, ValueError, "width_tokens .* must be from 1 to 65536, got 0"),
    ({"width_tokens": 100}, ValueError, "width_tokens .* must be a power of two, got 100"),
    ({"width_tokens": 64.0}, TypeError, "width_tokens .* must be an int, got float"),
    ({"packed": 1}, TypeError, "packed .* must be a bool, got int"),
    ({"pad_to_tokens": -64}, ValueError, "pad_to_tokens .* must be from 0"),
    ({"pad_to_tokens": 48}, ValueError, "pad_to_tokens .* must be a power of two, got 48"),
    ({"pad_to_tokens": 64}, ValueError, "width_tokens .* must be at least pad_to_tokens, 64, .* got 1"),
    ({"pad_id": 1 << 31}, ValueError, "pad_id .* must be from -2147483648 to 2147483647"),
    ({"pad_entries": 256}, ValueError, "pad_entries .* must be 0, as form is 'table', not 'csr', got 256"),
    ({"min_seq_len": 17}, ValueError, "min_seq_len .* must be from 0 to 16, got 17"),
    ({"min_last_page_len": True}, TypeError, "min_last_page_len .* must be an int, got bool"),
    ({"skips_tokens": None}, TypeError, "skips_tokens .* must be a bool, got NoneType"),
    ({"window_is_prefix_only": 0}, TypeError, "window_is_prefix_only .* must be a bool, got int"),
]
REFUSED_CSR = [
    ({"outputs": ("cu_seqlens_k",)}, ValueError, "outputs .* must be some of kv_indptr, .* as form is 'csr'"),
    ({"width_tokens": 64}, ValueError, "width_tokens .* must be 1, as form is 'csr', not 'table', got 64"),
    ({"packed": True}, ValueError, "packed .* must be False, as form is 'csr'"),
]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [(TABLE | change, *rest) for change, *rest in REFUSED]
    + [(CSR | change, *rest) for change, *rest in REFUSED_CSR],
)
def test_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        xkv.BackendSpec(**fields)


def test_every_field_is_refused_in_some_case() -> None:
    tried = {name for change, *_ in REFUSED for name in change}
    assert tried == {field.name for field in dataclasses.fields(xkv.BackendSpec)}


def test_what_is_alike_is_accepted() -> None:
    for fields in (TABLE, CSR):
        assert xkv.BackendSpec(**fields).why == ""
    # one page holds the padding, or the width is rounded up to it
    assert xkv.BackendSpec(**TABLE | {"pad_to_tokens": 16}).pad_to_multiple_of(16) == 1
    assert xkv.BackendSpec(**TABLE | {"pad_to_tokens": 64, "width_tokens": 128}).width(100, 16) == 8
    assert xkv.BackendSpec(**TABLE | {"pad_id": -1, "min_seq_len": 16}).pad_id == -1
    assert len({*SPECS.values()}) == len(SPECS)  # specs can be hashed


def test_outputs_are_those_of_a_build() -> None:
    assert {name for names in FORM_OUTPUTS.values() for name in names} == {*OUTPUTS} - {
        "kv_start_offset", "empty_rows",
    }  # fmt: skip
    assert all(hasattr(xkv.Metadata, name) for names in FORM_OUTPUTS.values() for name in names)


# Of the user's own. tests/host/test_metadata.py and test_metadata_bounds.py run them in every mode.


def test_it_is_taken_as_it_is(device: str) -> None:
    for spec in OWN.values():
        assert make(spec.name, device).spec is spec
        for vendor in ("cuda", "hip", "cpu"):  # it is no vendor's
            assert dispatch.backend(spec, vendor) is spec
    twin = dataclasses.replace(SPECS["flashmla"], outputs=("cache_seqlens",))  # the name decides nothing
    meta = xkv.MetadataBuilder(twin, source(device, 64), max_batch_size=8, max_context_len=CONTEXT).build(
        *batch(device)
    )
    assert (meta.cu_seqlens_k, meta.cu_seqlens_q) == (None, None)
    assert meta.cache_seqlens.tolist() == LENS


@pytest.mark.parametrize("backend", [None, 3, xkv.BackendSpec, SPECS["triton"].__dict__])
def test_neither_a_name_nor_a_spec(backend: object) -> None:
    with pytest.raises(TypeError, match="backend must be a str or a BackendSpec, got"):
        xkv.MetadataBuilder(backend, source("cpu", 64), max_batch_size=8, max_context_len=CONTEXT)  # type: ignore[arg-type]


def test_a_page_size_that_it_has_not() -> None:
    with pytest.raises(ValueError, match="page_size for 'own csr' must be one of 1, 4, got 2"):
        make("own csr", "cpu", 2)


def test_warmup_of_a_builder_compiles_its_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed = []
    monkeypatch.setattr(compile, "warm", lambda build, most: warmed.append(build) or 1)
    assert make("own csr", "cpu").warmup() == len(warmed) == 8
    view = warmed[0].views[0]
    assert (view.kv_indptr is not None, view.cu_seqlens_q) == (True, None)
    assert (warmed[0].pad_value, warmed[0].pad_to_multiple_of) == (5, 4)


# What lies behind a stream


@pytest.mark.parametrize("page_size", [1, 16])
def test_entries_behind_a_stream(page_size: int, device: str) -> None:
    """CK's batch prefill reads up to 256 entries past the last live one: they are there, and valid ids."""
    builder = make("aiter_batch_prefill", device, page_size, max_tokens=sum(LENS))
    rows, lens = batch(device)
    for meta in (builder.build(rows, lens), builder.build(rows, lens - lens // 2)):
        ids = meta.kv_indices
        begin = ids.storage_offset() + int(meta.kv_indptr[-1])
        assert begin + 256 <= ids.untyped_storage().nbytes() // ids.element_size()
        behind = torch.as_strided(ids, (256,), (1,), begin).tolist()
        assert all(0 <= page < builder.req_to_token.max() // page_size + 1 for page in behind)
    assert not torch.as_strided(ids, (256,), (1,), len(ids)).any()  # past what a build can write
    builder.check()


def test_a_full_stream_is_cut_before_what_lies_behind(device: str) -> None:
    builder = make("aiter_batch_prefill", device, max_tokens=100)
    meta = builder.build(*batch(device))
    assert meta.kv_indices.shape == (100,)
    assert meta.kv_indptr.tolist() == [0, 100, 100, 100, 100, 100]
    assert not torch.as_strided(meta.kv_indices, (256,), (1,), 100).any()
    with pytest.raises(xkv.StatusError, match="row 0: TRUNCATED"):
        builder.check()


# Rows without tokens, of backends that read at least one


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.min_seq_len])
def test_capacity_for_rows_without_tokens(name: str, device: str) -> None:
    """Their entries have room beside ``max_tokens`` of others, at every page size."""
    for page_size in SPECS[name].page_sizes:
        builder = make(name, device, page_size, max_tokens=5)
        rows, _ = batch(device, [0] * 8)
        meta = builder.build(rows, torch.tensor([5, *[0] * 7], device=device))
        builder.check()
        least, pad_id = builder.spec.min_seq_len, builder.spec.pad_id
        if builder.spec.form == "csr":
            starts = meta.kv_indptr.tolist()
            pages = -(-5 // page_size)
            assert starts == [0, *range(pages, pages + 8)]
            assert meta.kv_indices[pages : starts[-1]].tolist() == [pad_id] * 7
        else:
            assert meta.page_table[1:, 0].tolist() == [pad_id] * 7
        if meta.cache_seqlens is not None:
            assert meta.cache_seqlens.tolist() == [max(5, least), *[least] * 7]


def test_capacity_of_a_stream() -> None:
    """No batch of so many tokens has more entries."""
    draw = random.Random(0)
    for _ in range(2000):
        form, page_size = "csr", 1 << draw.randrange(5)
        spec = xkv.BackendSpec(
            "drawn", form, (page_size,), page_size, (), min_seq_len=draw.choice([0, 1, page_size]),
            pad_to_tokens=draw.choice([0, 1, 16, 64]),
        )  # fmt: skip
        lens = [draw.choice([0, 1, draw.randrange(70)]) for _ in range(draw.randrange(1, 9))]
        starts = [draw.randrange(n + 1) for n in lens]
        entries = sum(
            -(-max(n - at // page_size * page_size, spec.min_seq_len) // page_size) if at < n else
            int(spec.min_seq_len > 0)
            for n, at in zip(lens, starts, strict=True)
        )  # fmt: skip
        most = max(sum(n - at for n, at in zip(lens, starts, strict=True)), 1)
        padded = -(-max(entries, 1) // (spec.pad_to_multiple_of(page_size) or 1))
        padded *= spec.pad_to_multiple_of(page_size) or 1
        assert spec.entries(most, len(lens), page_size) >= (padded if spec.pad_to_tokens else entries)
