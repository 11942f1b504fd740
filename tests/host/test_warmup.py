"""Nothing compiles while serving: what a warm-up compiles is all there is."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest
import torch

import xkv
from xkv.launch import launch

cuda = pytest.mark.gpu


def table(device: str, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.arange(64 * 640, dtype=dtype, device=device).view(64, 640)


def test_on_a_cpu_there_is_nothing_to_do() -> None:
    source = table("cpu")
    out = torch.full((2, 10), -7, dtype=torch.int32)
    rows, lens = torch.tensor([1, 0]), torch.tensor([640, 3])
    assert xkv.warmup(xkv.build_page_table, source, rows, lens, page_size=64, out=out) == 0
    assert (out == -7).all()
    builder = xkv.MetadataBuilder("flashmla", source, max_batch_size=4, max_context_len=640)
    before = builder.build(rows, lens).page_table.clone()
    assert builder.warmup() == 0
    assert torch.equal(builder.build(rows, lens).page_table, before)


def test_a_wrong_call_is_refused_and_leaves_ops_as_they_were() -> None:
    source, rows, lens = table("cpu"), torch.tensor([1, 0]), torch.tensor([640, 3])
    with pytest.raises(ValueError, match="page_size must be a power of two"):
        xkv.warmup(xkv.build_page_table, source, rows, lens, page_size=3)
    assert xkv.build_page_table(source, rows, lens, page_size=64)[0, 9] == (640 + 9 * 64) // 64


@pytest.mark.compile
def test_constexprs_can_be_written_as_json() -> None:
    """Triton does, once anybody listens to what it compiles."""
    from xkv.kernel.entry import Config

    rest = [False] * (len(Config.__annotations__) - 9)
    one, same = (Config(64, 1, 64, 0, False, 256, 16, True, False, *rest) for _ in range(2))
    other = Config(64, 1, 64, 0, False, 256, 16, False, False, *rest)
    assert json.loads(json.dumps(one)) == one
    assert (one.PAGE_SIZE, one.BATCH_BLOCK, one.BALANCE, one.INT64_TILES) == (64, 16, True, False)
    assert one != other
    assert len({one, same, other}) == 2


@cuda
@pytest.mark.slow
def test_a_second_warmup_finds_everything() -> None:
    source = table("cuda")
    builder = xkv.MetadataBuilder("flashmla", source, max_batch_size=4, max_context_len=640)
    builder.warmup()
    assert builder.warmup() == 0
    again = xkv.MetadataBuilder("flashmla", source.clone(), max_batch_size=9, max_context_len=100)
    assert again.warmup() == 0  # another builder of the same arguments shares all of it


@cuda
@pytest.mark.slow
def test_nothing_compiles_or_loads_in_5000_steps() -> None:
    from xkv.cli.bench import compiles, inputs
    from xkv.cli.bench.cases import Case
    from xkv.cli.bench.sglang import SGLang
    from xkv.cli.bench.workloads import Workload

    load = Workload("64 x 4K in 32K", (4096,) * 64, 32768)
    at = inputs.make_inputs(Case("table", 64), load, inputs.make_sources([load], "cuda")[32768])
    with compiles.counted() as counts:
        (ours,) = compiles.serving(at, SGLang([]), counts, 5000)
    assert (ours.name, ours.steps, ours.compiles, ours.loads) == ("xkv", 5000, 0, 0)
    assert counts  # the warm-up's own were seen


@cuda
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["flashinfer_mla", "trtllm_mha", "flash_attention"])
def test_every_mode_of_a_warm_builder(backend: str) -> None:
    from xkv.cli.bench import compiles

    source = table("cuda")
    builder = xkv.MetadataBuilder(backend, source, max_batch_size=40, max_context_len=600, sliding_window=100)
    builder.warmup()
    with compiles.counted() as counts, compiles.loaded() as loads:
        for batch in (1, 3, 17, 40):
            for dtype in (torch.int32, torch.int64):
                rows = torch.arange(batch, dtype=dtype, device="cuda")
                lens, starts = rows * 13, rows * 13 // builder.page_size * builder.page_size
                for delta in (0, 3, rows // 9):
                    for query in (1, rows):
                        modes = {"seq_lens_delta": delta, "query_lens": query}
                        builder.build(rows, lens, **modes)
                        builder.build(rows, lens, **modes, kv_start=starts, window_kv_start=starts)
    assert not counts
    assert not loads
    builder.check()


@cuda
@pytest.mark.slow
@pytest.mark.parametrize("compact", [False, True])
def test_a_warm_translation(compact: bool) -> None:
    """Of other sizes, and of vectors of other dtypes."""
    from xkv.cli.bench import compiles

    source, rows = table("cuda"), torch.arange(3, device="cuda")
    options: dict[str, Any] = {"compact": compact, "source_page_size": 16, "page_size": 1}

    def translate(act: Any, tokens: int, lens: torch.dtype, to_req: torch.dtype) -> None:
        positions = torch.arange(tokens * 64, dtype=torch.int32, device="cuda").view(tokens, 64) % 999
        requests = torch.zeros(tokens, dtype=to_req, device="cuda")
        act(source, positions, seq_lens=rows.to(lens), token_to_req=requests, **options)

    translate(functools.partial(xkv.warmup, xkv.translate_positions), 3, torch.int64, torch.int64)
    with compiles.counted() as counts, compiles.loaded() as loads:
        for tokens in (1, 40, 300, 5000):
            for lens, to_req in itertools.product((torch.int32, torch.int64), repeat=2):
                translate(xkv.translate_positions, tokens, lens, to_req)
    assert not counts
    assert not loads


@cuda
@pytest.mark.slow
def test_after_a_warmup_a_capture_needs_no_first_call() -> None:
    source = table("cuda")
    rows, lens = torch.arange(5, device="cuda"), torch.tensor([640, 1, 64, 65, 0], device="cuda")
    out = torch.zeros(5, 10, dtype=torch.int32, device="cuda")
    xkv.warmup(xkv.build_page_table, source, rows, lens, page_size=64, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        xkv.build_page_table(source, rows, lens, page_size=64, out=out)
    assert not out.any()
    graph.replay()
    want = xkv.build_page_table(source.cpu(), rows.cpu(), lens.cpu(), page_size=64, max_seq_len=640)
    assert torch.equal(out.cpu(), want)


@cuda
@pytest.mark.slow
def test_warming_up_in_one_thread_does_not_stop_another() -> None:
    import threading

    source = table("cuda")
    rows, lens = torch.arange(5, device="cuda"), torch.full((5,), 640, device="cuda")
    out = torch.zeros(5, 10, dtype=torch.int32, device="cuda")
    with launch.compile_only() as builds:
        thread = threading.Thread(
            target=lambda: xkv.build_page_table(source, rows, lens, page_size=64, out=out)
        )
        thread.start()
        thread.join()
    assert not builds
    assert out.any()
