"""MetadataBuilder: every backend's contract and every mode."""

from __future__ import annotations

import pytest
import torch
from metadata_steps import CONTEXT, LENS, NAMES, PAGE_SIZES, SPECS, batch, check, check_queries, make

import xkv
from xkv.launch import verify

pytestmark = pytest.mark.usefixtures("every_backend")


@pytest.mark.parametrize(("name", "page_size"), PAGE_SIZES)
def test_decode(name: str, page_size: int, device: str) -> None:
    builder = make(name, device, page_size)
    rows, lens = batch(device)
    meta = builder.build(rows, lens)
    check(builder, meta, rows, [0] * 5, LENS)
    check_queries(builder, meta, [0, 1, 2, 3, 4, 5])
    assert meta.qo_indptr is meta.cu_seqlens_q
    assert meta.max_seq_len == CONTEXT
    builder.check()


@pytest.mark.parametrize("name", NAMES)
def test_modes(name: str, device: str) -> None:
    builder = make(name, device)
    rows, lens = batch(device)
    ragged = torch.tensor([3, 0, 7, 1, 2], device=device, dtype=torch.int32)
    begin = [0] * 5

    meta = builder.build(rows, lens, seq_lens_delta=4, query_lens=4)  # verify
    check(builder, meta, rows, begin, [n + 4 for n in LENS])
    check_queries(builder, meta, [0, 4, 8, 12, 16, 20])

    meta = builder.build(rows, lens, query_lens=ragged, query_lens_sign=1)  # ragged verify
    check(builder, meta, rows, begin, [n + int(q) for n, q in zip(LENS, ragged, strict=True)])
    check_queries(builder, meta, [0, 3, 3, 10, 11, 13])

    longer = [n + 9 for n in LENS[:4]] + [11]  # draft extend: the prefix and a window
    meta = builder.build(
        rows, torch.tensor(longer, device=device), query_lens=ragged, query_lens_sign=-1, seq_lens_delta=2
    )
    check(builder, meta, rows, begin, [n - int(q) + 2 for n, q in zip(longer, ragged, strict=True)])

    meta = builder.build(rows, lens, seq_lens_delta=ragged)  # a delta a row
    check(builder, meta, rows, begin, [n + int(q) for n, q in zip(LENS, ragged, strict=True)])

    for step in range(3):  # draft decode
        meta = builder.build(rows, lens, seq_lens_delta=step + 1)
        check(builder, meta, rows, begin, [n + step + 1 for n in LENS])

    P = builder.page_size
    start = torch.tensor([P, 0, 2 * P, 0, 0], device=device)  # a chunk
    meta = builder.build(rows, lens, kv_start=start)
    check(builder, meta, rows, start.tolist(), LENS)
    builder.check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mapped", [False, True])
def test_sliding_window(name: str, mapped: bool, device: str) -> None:
    P = SPECS[name].page_size
    size = 9 * 1024 + 128
    window_map = torch.arange(size, device=device).flip(0) // P * P + torch.arange(size, device=device) % P
    window_map[::P] = torch.where(torch.arange(size, device=device)[::P] % (3 * P) == 0, -1, window_map[::P])
    options = {"window_token_map": window_map} if mapped else {}
    builder = make(name, device, sliding_window=100, **options)
    rows, lens = batch(device)
    meta = builder.build(rows, lens)
    check(builder, meta, rows, [0] * 5, LENS)
    begins = [max(n - 100, 0) for n in LENS]
    assert meta.window is not None
    check(builder, meta.window, rows, begins, LENS, window_map if mapped else None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_page_id_source(name: str, block_size: int, device: str) -> None:
    builder = make(name, device, source_page_size=block_size)
    rows, lens = batch(device)
    check(builder, builder.build(rows, lens), rows, [0] * 5, LENS)
    builder.check()


def test_page_map(device: str) -> None:
    page_map = torch.arange(200, device=device).flip(0)
    builder = make("flashmla", device, page_map=page_map)
    rows, lens = batch(device)
    meta = builder.build(rows, lens)
    want = [199 - t // 64 for t in builder.req_to_token[rows[0], :300:64].tolist()]
    assert meta.page_table[0, :5].tolist() == want


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padding", ["row 0, length 1", "length 0"])
def test_padded_rows_are_tolerated(name: str, padding: str, device: str) -> None:
    """Pool index 0 (stale) and length 1, or length 0: only valid ids, and lengths that agree."""
    builder = make(name, device)
    builder.req_to_token[0] = 128 * 63 + 1  # whatever the padding row holds
    rows = torch.tensor([4, 0, 0], device=device)
    lens = torch.tensor([200, *([1, 1] if "1" in padding[-1] else [0, 0])], device=device)
    for buffer in (builder._views[0].out, builder._views[0].cache_seqlens):
        if buffer is not None:
            buffer.fill_(7777)
    meta = builder.build(rows, lens)
    check(builder, meta, rows, [0] * 3, lens.tolist())
    if name == "flashmla":
        assert (meta.page_table[:, 0] < 7777).all()
    builder.check()


def test_contracts_of_shape(device: str) -> None:
    rows, lens = batch(device, [5, 6])
    for name, P in PAGE_SIZES:
        spec = SPECS[name]
        builder = make(name, device, P)
        meta = builder.build(rows, lens)
        if spec.form == "table":
            width = meta.page_table.shape[1]
            assert width * P >= CONTEXT
            assert width % max(spec.width_tokens // P, 1) == 0
            assert width * P < CONTEXT + max(spec.width_tokens, P)  # not wider than the rule asks
            if spec.packed:
                assert meta.page_table.stride(0) == width
            assert meta.page_table.dtype is getattr(torch, spec.id_dtype)
        else:
            assert meta.kv_indices.dtype is getattr(torch, spec.id_dtype)
            assert meta.kv_indptr.dtype is torch.int32


def test_live_view_where_the_host_knows(device: str) -> None:
    builder = make("aiter_mla", device)
    rows, lens = batch(device)
    assert builder.build(rows, lens, max_tokens=sum(LENS)).kv_indices.shape == (sum(LENS),)
    assert builder.build(rows, lens).kv_indices.shape == (8 * CONTEXT,)


def test_buffers_keep_their_addresses(device: str) -> None:
    builder = make("trtllm_mla", device)
    first = builder.build(*batch(device))
    kept = {k: getattr(first, k).data_ptr() for k in ("page_table", "cache_seqlens", "cu_seqlens_k")}
    for lens in ([1], [900] * 8, LENS):
        meta = builder.build(*batch(device, lens))
        assert {k: getattr(meta, k).data_ptr() for k in kept} == kept


def test_a_step_like_the_last_serves_its_like_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is given, the last step's vectors being alike is not enough."""
    builder = make("flashinfer_mla", device)
    rows, lens = batch(device)
    builder.build(rows, lens)
    last = builder._recent[False]
    monkeypatch.setattr(last, "guard", lambda *_: True)
    starts = torch.tensor([3, 0, 64, 64, 0], device=device)
    queries = torch.tensor([1, 2, 0, 3, 1], device=device)
    for asked, begins, more in (
        ({"kv_start": starts}, starts.tolist(), [0] * 5),
        ({"query_lens": queries, "query_lens_sign": 1}, [0] * 5, queries.tolist()),
        ({"seq_lens_delta": queries}, [0] * 5, queries.tolist()),
    ):
        meta = builder.build(rows, lens, **asked)
        check(builder, meta, rows, begins, [n + k for n, k in zip(LENS, more, strict=True)])
        assert builder._recent[False] is last
    with pytest.raises(TypeError, match="query_lens_sign must be an int, got bool"):
        builder.build(rows, lens, query_lens_sign=False)
    meta = builder.build(rows, lens, seq_lens_delta=2)
    check(builder, meta, rows, [0] * 5, [n + 2 for n in LENS])
    assert builder._recent[False] is last


def test_mixed_dtypes(device: str) -> None:
    builder = make("flash_attention", device)
    rows, lens = batch(device)
    for a in (torch.int32, torch.int64):
        for b in (torch.int32, torch.int64):
            check(builder, builder.build(rows.to(a), lens.to(b)), rows, [0] * 5, LENS)


def test_empty_batch(device: str) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    for name in NAMES:
        builder = make(name, device)
        check_queries(builder, builder.build(none, none), [0])


def test_status_names_the_row(device: str) -> None:
    builder = make("flashmla", device)
    rows, lens = batch(device)
    rows[2] = 99
    lens[3] = 10**6
    builder.build(rows, lens)
    with pytest.raises(xkv.StatusError, match="row 2: BAD_ROW"):
        builder.check()
    builder.check()  # cleared
    rows[2] = 0
    builder.build(rows, lens)
    with pytest.raises(xkv.StatusError, match="row 3: BAD_LENGTH"):
        builder.check()


def test_check_mode(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XKV_CHECK", "1")
    builder = make("trtllm_mla", device, sliding_window=70)
    rows, lens = batch(device)
    builder.build(rows, lens)
    lens[1] = -1
    with pytest.raises(xkv.StatusError, match="row 1: BAD_LENGTH"):
        builder.build(rows, lens)
    lens[1] = 5
    builder.build(rows, lens)  # usable again
    honest = verify.launch.run

    def faulty(build):
        honest(build)
        build.views[0].out[2, 1] += 1

    monkeypatch.setattr(verify.launch, "run", faulty)
    with pytest.raises(verify.MismatchError, match=r"views\[0\].out: \d+ at \[2, 1\]"):
        builder.build(rows, lens)
