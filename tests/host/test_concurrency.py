"""Threads, streams, processes, two GPUs, and calls that are cut short: everything equals the definition."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import standins
import test_op_calls
import torch
from conftest import GPUS, INTERPRETED
from test_op_calls import made  # noqa: F401 - a fixture

import xkv
from xkv.launch import launch

TOKENS, PAGE = 256, 64  # flashmla's page size
ROWS = 6
# the interpreter runs one kernel at a time, and an interrupt in it is Triton's
pytestmark = pytest.mark.skipif(INTERPRETED, reason="threads and interrupts: not in Triton's interpreter")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")


class Engine:
    """A table, a builder and buffers of one engine, and what they must come to."""

    def __init__(self, seed: int, device: str) -> None:
        self.rng, self.device = random.Random(seed), device
        pages = torch.randperm(ROWS * TOKENS // PAGE, generator=torch.Generator().manual_seed(seed))
        self.table = (pages[:, None] * PAGE + torch.arange(PAGE)).view(ROWS, TOKENS).to(torch.int32)
        self.source = self.table.to(device)
        sizes = {"max_batch_size": ROWS, "max_context_len": TOKENS}
        self.pages = xkv.MetadataBuilder("flashmla", self.source, **sizes)
        self.tokens = xkv.MetadataBuilder("triton", self.source, **sizes)
        self.out = torch.empty(ROWS, TOKENS // PAGE, dtype=torch.int32, device=device)

    def step(self, batch: int) -> None:
        """A step of random rows and lengths, compared with a loop over its tokens."""
        rows = [self.rng.randrange(ROWS) for _ in range(batch)]
        lens = [self.rng.randint(0, TOKENS) for _ in range(batch)]
        given = torch.tensor(rows, device=self.device), torch.tensor(lens, device=self.device)
        table = self.pages.build(*given)
        stream = self.tokens.build(*given)
        xkv.build_page_table(self.source, *given, page_size=PAGE, out=self.out[:batch])
        want = [self.table[r, :n:PAGE].div(PAGE, rounding_mode="floor").tolist() for r, n in
                zip(rows, lens, strict=True)]  # fmt: skip
        for got in (table.page_table, self.out):
            assert [got[b, : len(row)].tolist() for b, row in enumerate(want)] == want
        tokens = [t for r, n in zip(rows, lens, strict=True) for t in self.table[r, :n].tolist()]
        assert stream.kv_indices[: len(tokens)].tolist() == tokens
        assert stream.kv_indptr.tolist() == [sum(lens[:b]) for b in range(batch + 1)]


def steps(seed: int, device: str, count: int) -> None:
    engine = Engine(seed, device)
    for _ in range(count):
        engine.step(engine.rng.randint(1, ROWS))


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Runs ``work(n)`` in so many threads at once; raises what one of them raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(n: int) -> None:
        try:
            start.wait()
            work(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def test_threads(device: str) -> None:
    """Each with its own builders and stream; they share the ops' launch cache."""

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
            steps(seed, device, 20)

    in_threads(work, 4)


def test_threads_launch_their_own_pointers(made: test_op_calls.Made) -> None:  # noqa: F811
    """One entry for calls of one signature from many threads: no call's pointers reach another's launch."""
    xkv.build_page_table(*test_op_calls.inputs()[:3], page_size=64, out=test_op_calls.inputs()[3])
    kept = [test_op_calls.inputs() for _ in range(8)]

    def work(n: int) -> None:
        source, rows, lens, out = kept[n]
        for _ in range(100):
            xkv.build_page_table(source, rows, lens, page_size=64, out=out)

    in_threads(work, 8)
    launched = made.launched
    names = ("src_ptr", "rows_ptr", "lens_ptr", "out_ptr")
    found = [tuple(test_op_calls.value(call, name) for name in names) for call in launched]
    assert set(found) == {tuple(x.data_ptr() for x in given) for given in kept}
    assert all(found.count(pointers) == 100 for pointers in set(found))


@pytest.mark.gpu
def test_two_builders_on_two_streams() -> None:
    """Builds of one overlap those of the other, and neither sees the other's rows."""
    engines = [Engine(seed, "cuda") for seed in (1, 2)]
    streams = [torch.cuda.Stream() for _ in engines]
    expected, got = [], []
    for turn in range(40):
        for engine, stream in zip(engines, streams, strict=True):
            batch = 1 + turn % ROWS
            rows = torch.tensor([(turn + b) % ROWS for b in range(batch)], device="cuda")
            lens = torch.tensor([(turn * 37 + b * 91) % (TOKENS + 1) for b in range(batch)], device="cuda")
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000)  # makes an overlap likelier; what must come out needs none
                got.append(engine.tokens.build(rows, lens).kv_indptr.clone())
                got.append(engine.pages.build(rows, lens).cache_seqlens.clone())
            expected += [[0, *lens.cumsum(0).tolist()], lens.tolist()]
    torch.cuda.synchronize()
    assert [x.tolist() for x in got] == expected


@pytest.mark.gpu
@two_gpus
def test_another_gpu_is_current() -> None:
    """Ops, builders and graphs work where their tensors are, in the first call and in cached ones."""
    for current, device in ((0, "cuda:1"), (1, "cuda:0")):
        with torch.cuda.device(current):
            steps(3, device, 20)
            engine = Engine(4, device)
            captured = engine.tokens.capture(4)
            lens = torch.tensor([5, 0, 256], device=device)
            meta = captured.replay(torch.tensor([1, 2, 0], device=device), lens)
            torch.cuda.synchronize(device)
            assert meta.kv_indptr.tolist() == [0, 5, 5, 261, 261]
            assert torch.cuda.current_device() == current


@pytest.mark.gpu
@two_gpus
def test_a_thread_for_each_gpu() -> None:
    in_threads(lambda n: steps(n, f"cuda:{n % 2}", 30), 4)


# Processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_after_use() -> None:
    """On a CPU: parent and children go on, each for itself."""
    engine = Engine(5, "cpu")
    engine.step(3)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=engine.step, args=(n,)) for n in (1, 4, 6)]
    for child in children:
        child.start()
    engine.step(5)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_spawned(device: str) -> None:
    Engine(6, device).step(4)
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=steps, args=(seed, device, 3)) for seed in (7, 8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]


FORK = """
import os, sys
sys.path[:0] = [".", "host", "support"]
import torch, xkv
xkv.build_page_table, xkv.MetadataBuilder, xkv.Status, xkv.warmup
assert not torch.cuda.is_initialized(), "xkv touched the GPU on import"
children = []
for seed in (1, 2):
    pid = os.fork()
    if pid == 0:
        import test_concurrency
        test_concurrency.steps(seed, "cuda", 10)
        os._exit(0)
    children.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@pytest.mark.gpu
def test_forked_before_cuda_is_initialised() -> None:
    """As a server that imports first and forks its workers: importing and looking up touches no GPU."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=Path(__file__).parents[1], env=standins.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# Calls that are cut short

PACKAGE = str(Path(xkv.__file__).parent)


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which pytest takes for its own."""


def interrupted_at(line: int, call: Callable[[], Any]) -> bool:
    """Makes the call, and interrupts it before the n-th line of the package that it runs, if there is one."""
    left = line

    def local(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupted
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: local if frame.f_code.co_filename.startswith(PACKAGE) else None)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("warm", [False, True], ids=["first build", "later build"])
def test_interrupted_anywhere(warm: bool, device: str) -> None:
    """An interrupt at any line leaves builders and ops as good as they were."""
    line, engine = 1, Engine(9, device)
    rows, lens = (torch.tensor(x, device=device) for x in ([3, 1, 5], [70, 256, 1]))

    def call() -> None:
        engine.pages.build(rows, lens, query_lens=2)
        engine.tokens.build(rows, lens, seq_lens_delta=0)
        xkv.build_page_table(engine.source, rows, lens, page_size=PAGE, out=engine.out[:3])

    while True:
        if warm:
            engine.step(3)
        else:
            engine = Engine(9, device)
        if not interrupted_at(line, call):
            break
        engine.step(3)
        engine.step(2)
        line += 1 if line < 40 else 7
    assert line > 20


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
def test_a_launch_that_fails(
    error: type[BaseException], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes through as it is; the next call builds."""
    engine = Engine(10, device)
    rows, lens = (torch.tensor(x, device=device) for x in ([3, 1, 5], [70, 256, 1]))

    def fail(*_: Any) -> None:
        raise error("planted")

    calls: list[Callable[[], Any]] = [
        lambda: engine.pages.build(rows, lens), lambda: engine.tokens.build(rows, lens),
        lambda: xkv.build_page_table(engine.source, rows, lens, page_size=PAGE, out=engine.out[:3]),
    ]  # fmt: skip
    for turn in range(3):  # before anything is prepared, and after
        for call in calls:
            with monkeypatch.context() as patch:
                patch.setattr(launch, "run", fail)
                patch.setattr(launch.CompiledLaunch, "launch", fail)
                with pytest.raises(error, match="planted"):
                    call()
        engine.step(3 - turn % 2)
