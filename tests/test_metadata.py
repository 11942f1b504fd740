"""MetadataBuilder: every backend's contract, every mode, every error; graphs on a GPU."""

from __future__ import annotations

import random
from types import SimpleNamespace

import building
import pytest
import torch

import xkv
from xkv import dispatch, metadata, oracle, platforms
from xkv.captured import CapturedBuild

NAMES = sorted(dispatch.specs_of("cpu"))
PAGE_SIZES = [(name, p) for name in NAMES for p in dispatch.specs_of("cpu")[name].page_sizes if p <= 128]
CONTEXT = 1000
LENS = [300, 0, 897, 64, 1]


@pytest.fixture(autouse=True)
def every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both vendors' specs on whatever is present: building them needs no vendor."""
    monkeypatch.setattr(metadata, "platform", lambda device: platforms.CPU)


def source(device: str, unit: int, source_page_size: int = 1) -> torch.Tensor:
    width = -(-(CONTEXT + 4) // source_page_size)
    return building.paged_source(
        random.Random(0), 9, width, max(unit, source_page_size), source_page_size, torch.int32, device
    )


def make(name: str, device: str, page_size: int | None = None, **options: object):
    unit = page_size or dispatch.specs_of("cpu")[name].page_size
    table = source(device, unit, options.get("source_page_size", 1))
    return xkv.MetadataBuilder(
        name, table, max_batch_size=8, max_context_len=CONTEXT, page_size=page_size, **options
    )


def batch(device: str, lens: list[int] = LENS) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor([(3 * n + 1) % 9 for n in range(len(lens))], device=device)
    return rows, torch.tensor(lens, device=device)


def tokens(table: torch.Tensor, row: int, begin: int, end: int, unit: int = 1) -> list[int]:
    """Where the tokens [begin, end) of a source row lie: the formula, one by one."""
    entries = table[row].tolist()
    return [entries[t // unit] * unit + t % unit for t in range(begin, end)]


def check(builder, meta, rows, begins: list[int], ends: list[int], window_map=None) -> None:
    """All that the metadata holds against lists made token by token."""
    spec, P = builder.spec, builder.page_size
    begins = [b // P * P if b < e else e for b, e in zip(begins, ends, strict=True)]
    lens = [e - b for b, e in zip(begins, ends, strict=True)]
    slots = [
        tokens(builder.req_to_token, int(r), b, e, builder.source_page_size)
        for r, b, e in zip(rows, begins, ends, strict=True)
    ]
    if window_map is not None:
        slots = [[int(window_map[t]) for t in row] for row in slots]
    pages = [[t // P if t >= 0 else spec.fill_id for t in row[::P]] for row in slots]
    if spec.form == "table":
        for b, row in enumerate(pages):
            assert meta.page_table[b, : len(row)].tolist() == row
            tile = spec.tail_tile(P)
            if tile is not None:
                end = -(-max(len(row), 1) // tile) * tile
                assert meta.page_table[b, len(row) : end].tolist() == [0] * (end - len(row))
    else:
        flat = [p for row in pages for p in row]
        assert meta.kv_indices[: len(flat)].tolist() == flat
        sums = [sum(map(len, pages[:n])) for n in range(len(pages) + 1)]
        assert meta.kv_indptr.tolist() == sums
    for name, want in (
        ("cache_seqlens", lens),
        ("cu_seqlens_k", [sum(lens[:n]) for n in range(len(lens) + 1)]),
        ("kv_last_page_len", [max((n - 1) % P + 1 if n else 0, spec.min_last_page_len) for n in lens]),
    ):
        if name in spec.outputs:
            assert getattr(meta, name).tolist() == want, name


@pytest.mark.parametrize(("name", "page_size"), PAGE_SIZES)
def test_decode(name: str, page_size: int, device: str) -> None:
    builder = make(name, device, page_size)
    rows, lens = batch(device)
    meta = builder.build(rows, lens)
    check(builder, meta, rows, [0] * 5, LENS)
    assert meta.cu_seqlens_q.tolist() == [0, 1, 2, 3, 4, 5]
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
    assert meta.cu_seqlens_q.tolist() == [0, 4, 8, 12, 16, 20]

    meta = builder.build(rows, lens, query_lens=ragged, query_lens_sign=1)  # ragged verify
    check(builder, meta, rows, begin, [n + int(q) for n, q in zip(LENS, ragged, strict=True)])
    assert meta.cu_seqlens_q.tolist() == [0, 3, 3, 10, 11, 13]

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

    start = torch.tensor([130, 0, 64, 63, 0], device=device)  # a chunk
    meta = builder.build(rows, lens, kv_start=start)
    check(builder, meta, rows, start.tolist(), LENS)
    builder.check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mapped", [False, True])
def test_sliding_window(name: str, mapped: bool, device: str) -> None:
    P = dispatch.specs_of("cpu")[name].page_size
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
    want = [199 - t // 64 for t in tokens(builder.req_to_token, int(rows[0]), 0, 300)[::64]]
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
        spec = dispatch.specs_of("cpu")[name]
        builder = make(name, device, P)
        meta = builder.build(rows, lens)
        if spec.form == "table":
            width = meta.page_table.shape[1]
            assert width * P >= CONTEXT
            assert width % max(spec.width_tokens // P, 1) == 0
            assert width * P < CONTEXT + max(spec.width_tokens, P)  # not wider than the rule asks
            if spec.packed:
                assert meta.page_table.stride(0) == width
            assert meta.page_table.dtype is torch.int32
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
    last = builder._recent
    monkeypatch.setattr(last, "like", lambda *_: True)
    starts = torch.tensor([3, 0, 64, 64, 0], device=device)
    queries = torch.tensor([1, 2, 0, 3, 1], device=device)
    for asked, begins, more in (
        ({"kv_start": starts}, starts.tolist(), [0] * 5),
        ({"query_lens": queries, "query_lens_sign": 1}, [0] * 5, queries.tolist()),
        ({"seq_lens_delta": queries}, [0] * 5, queries.tolist()),
    ):
        meta = builder.build(rows, lens, **asked)
        check(builder, meta, rows, begins, [n + k for n, k in zip(LENS, more, strict=True)])
        assert builder._recent is last
    with pytest.raises(TypeError, match="query_lens_sign must be an int, got bool"):
        builder.build(rows, lens, query_lens_sign=False)
    meta = builder.build(rows, lens, seq_lens_delta=2)
    check(builder, meta, rows, [0] * 5, [n + 2 for n in LENS])
    assert builder._recent is last


def test_mixed_dtypes(device: str) -> None:
    builder = make("flash_attention", device)
    rows, lens = batch(device)
    for a in (torch.int32, torch.int64):
        for b in (torch.int32, torch.int64):
            check(builder, builder.build(rows.to(a), lens.to(b)), rows, [0] * 5, LENS)


def test_empty_batch(device: str) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    for name in NAMES:
        meta = make(name, device).build(none, none)
        assert meta.cu_seqlens_q.tolist() == [0]


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
    honest = oracle.launch.run

    def faulty(build):
        honest(build)
        build.views[0].out[2, 1] += 1

    monkeypatch.setattr(oracle.launch, "run", faulty)
    with pytest.raises(oracle.MismatchError, match=r"views\[0\].out: at \[2, 1\]"):
        builder.build(rows, lens)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backend": "flashmlaa"}, ValueError, "'flashmlaa' is unknown.*flashmla.*triton"),
        ({"page_size": 32}, ValueError, "page_size for 'flashmla' must be one of 64, got 32"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size must be from 1 to 65536, got 0"),
        ({"max_context_len": 10**6}, ValueError, "max_context_len must be from 1 to"),
        ({"source_page_size": 3}, ValueError, "source_page_size must be a power of two"),
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
    hip = platforms.Platform("hip", "gfx942", 64, 304)
    monkeypatch.setattr(metadata, "platform", lambda device: hip)
    with pytest.raises(ValueError, match="'flashmla' does not run on 'hip'; there: aiter_mla"):
        make("flashmla", "cpu")
    assert [s.name for s in dispatch.specs_of("hip").values()] == ["aiter_mla", "aiter_unified", "triton"]
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
        ({"kv_start": torch.zeros(3, dtype=torch.int64)}, ValueError, "kv_start must have one entry"),
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


def test_capture_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="capture needs a builder on a GPU"):
        make("flashmla", "cpu").capture(4)


def test_what_a_replay_copies_in() -> None:
    """On a CPU, with a graph that does nothing: padded, and never wrapped."""
    captured = object.__new__(CapturedBuild)
    captured.batch_size, captured._pad_seq_len = 4, 9
    captured.metadata = make("triton", "cpu").build(*batch("cpu"))
    captured._graph = SimpleNamespace(replay=lambda: None)
    for dtype in (torch.int32, torch.int64):
        captured.req_pool_indices, captured.seq_lens = torch.full((2, 4), 7, dtype=dtype)
        captured.replay()
        assert captured.seq_lens.tolist() == [7] * 4
        captured.replay(torch.tensor([3], dtype=torch.int32), torch.tensor([5], dtype=torch.int32))
        assert captured.req_pool_indices.tolist() == [3, 0, 0, 0]
        assert captured.seq_lens.tolist() == [5, 9, 9, 9]
    captured.seq_lens = captured.seq_lens.int()
    with pytest.raises(TypeError, match=r"seq_lens must be torch\.int32 as the buffer is"):
        captured.replay(torch.tensor([1]), torch.tensor([2**32 + 5]))
    assert captured.seq_lens.tolist() == [5, 9, 9, 9]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [{}, {"seq_lens_delta": 4, "query_lens": 4}], ids=["decode", "verify"])
def test_captured_and_replayed(name: str, mode: dict[str, int]) -> None:
    """One capture a padded batch size; among them Aiter, page size 1, no window: the decode case that
    SGLang leaves unwritten (sglang #34833, #40410)."""
    builder = make(name, "cuda", sliding_window=100 if name == "triton" else None)
    captured = {size: builder.capture(size, pad_seq_len=0, **mode) for size in (2, 8)}
    generator = random.Random(0)
    for _ in range(6):
        size = generator.choice([1, 2, 5, 8])
        lens = [generator.randint(0, CONTEXT - 4) for _ in range(size)]
        padded = 2 if size <= 2 else 8
        rows, seq_lens = batch("cuda", lens)
        meta = captured[padded].replay(rows, seq_lens)
        rows = torch.cat([rows, rows.new_zeros(padded - size)])
        ends = [n + mode.get("seq_lens_delta", 0) for n in lens + [0] * (padded - size)]
        check(builder, meta, rows, [0] * padded, ends)
        if meta.window is not None:
            check(builder, meta.window, rows, [max(n - 100, 0) for n in ends], ends)
    with pytest.raises(ValueError, match="at most the 2 entries that were captured, got 3"):
        captured[2].replay(*batch("cuda", [1, 2, 3]))
    builder.check()


@pytest.mark.gpu
def test_captured_on_the_engines_own_buffers() -> None:
    """A replay is one launch then, and reads what the engine has written by now."""
    builder = make("flashmla", "cuda")
    rows, lens = (torch.zeros(8, dtype=torch.int32, device="cuda") for _ in range(2))
    captured = builder.capture(4, req_pool_indices=rows[:4], seq_lens=lens[:4])
    plain = builder.capture(4)
    for values in ([5, 64, 0, 65], [CONTEXT, 1, 2, 3]):
        new_rows, new_lens = batch("cuda", values)
        rows[:4], lens[:4] = new_rows, new_lens
        check(builder, captured.replay(), new_rows, [0] * 4, values)
        check(builder, plain.replay(new_rows, new_lens), new_rows, [0] * 4, values)
        plain.seq_lens.zero_()
        check(builder, plain.replay(), new_rows, [0] * 4, [0] * 4)
    captured.replay(*(x.int() for x in batch("cuda", [7])))
    assert lens[:5].tolist() == [7, 0, 0, 0, 0]
    with pytest.raises(TypeError, match=r"seq_lens must be torch\.int32 as the buffer is"):
        captured.replay(*(x.long() for x in batch("cuda", [7])))
    with pytest.raises(TypeError, match="req_pool_indices must be a torch"):
        captured.replay(seq_lens=lens[:4])
    with pytest.raises(ValueError, match="seq_lens must have batch_size entries, 4, got 8"):
        builder.capture(4, seq_lens=lens)
    builder.check()
