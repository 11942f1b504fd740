"""Builds in graphs of their own, replayed with other batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import GPUS
from metadata_steps import CONTEXT, NAMES, batch, check, make
from torch._subclasses.fake_tensor import FakeTensorMode

from xkv.metadata.graph import CapturedBuild

pytestmark = pytest.mark.usefixtures("every_backend")


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
    with pytest.raises(TypeError, match=r"seq_lens must be torch\.int32, like the captured buffer"):
        captured.replay(torch.tensor([1]), torch.tensor([2**32 + 5]))
    assert captured.seq_lens.tolist() == [5, 9, 9, 9]


class OtherGPU:
    """torch.cuda where GPU 0 is current, as far as a capture asks: what was done, and on which GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.capturing = 0, None
        self.log: list[tuple[str, int, int | None]] = []
        fakes = {"CUDAGraph": SimpleNamespace, "Stream": lambda device: device.index}
        for name, value in {**fakes, "device": self.device, "graph": self.graph}.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: object, stream: int = 0) -> Iterator[None]:
        """Without a stream it is torch's own, on the GPU that was captured first: 0."""
        self.capturing = stream
        yield
        self.capturing = None

    def build(self, rows: torch.Tensor, lens: torch.Tensor, **options: object) -> None:
        assert rows.device == lens.device
        assert not options
        self.log.append((str(rows.device), self.current, self.capturing))


@pytest.mark.skipif(GPUS > 0, reason="torch asks for it then; for two: test_concurrency.py")
def test_captured_on_a_gpu_that_is_not_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is what goes to the stream of the capture: that must be the builder's GPU's."""
    gpu = OtherGPU(monkeypatch)
    with FakeTensorMode():
        CapturedBuild(gpu.build, torch.device("cuda", 1), 4, 0, None, None, {})
    assert gpu.log == [("cuda:1", 1, None), ("cuda:1", 1, 1)]
    assert gpu.current == 0


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
    with pytest.raises(ValueError, match="at most the captured batch_size=2 entries, got 3"):
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
    with pytest.raises(TypeError, match=r"seq_lens must be torch\.int32, like the captured buffer"):
        captured.replay(*(x.long() for x in batch("cuda", [7])))
    with pytest.raises(TypeError, match="req_pool_indices must be a torch"):
        captured.replay(seq_lens=lens[:4])
    with pytest.raises(ValueError, match="seq_lens must have batch_size entries, 4, got 8"):
        builder.capture(4, seq_lens=lens)
    builder.check()
