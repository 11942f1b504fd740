"""The cheap launch: the same launch, and the front door where it is not to be trusted."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import building
import pytest
import torch
import triton
from cases import CASES, make
from launchers import Compiled, Launcher, Nested

import xkv
from xkv import reference
from xkv.launch import compile, launch, triton_launcher
from xkv.params import TABLE


class _Renamed(Launcher):
    def __call__(self, grid, stream, function, packed):
        raise AssertionError("not the call we know")


class _Twice(Launcher):
    def __call__(self, *args):
        self.launch(*args)
        self.launch(*args)


class _Hidden(Launcher):
    """The stream is not handed on as it came: nothing tells where it would go."""

    def __call__(self, gridX, gridY, gridZ, stream, *args):
        self.launch(gridX, gridY, gridZ, str(stream), *args)


class _Rearranged(Launcher):
    def __call__(self, gridX, gridY, gridZ, stream, function, *args):
        self.launch(gridX, gridY, gridZ, stream, function, *reversed(args))


class _Scratch(Launcher):
    """Allocates for each launch, by its grid."""

    def __call__(self, gridX, gridY, gridZ, *args):
        self.launch(gridX, gridY, gridZ, bytearray(gridX * gridY), *args)


class _Bare:
    """No launcher of the driver's in it at all."""

    def __call__(self, *args):
        raise AssertionError("not the call we know")


@pytest.mark.parametrize("kind", [Launcher, Nested])
def test_what_triton_calls_is_recorded(kind: type[Launcher]) -> None:
    run = kind()
    call = triton_launcher.record(Compiled(run), 3)
    assert call is not None
    assert not run.calls  # recording launches nothing
    before = list(call.args)
    for at, size in zip((*call.grid_at, call.stream_at), (3, 2, 1, 99), strict=True):
        before[at] = size
    given = ([4, None, "C"],) if call.nested else (4, None, "C")
    call.launcher(*before, *given)
    run(3, 2, 1, 99, 7, ("packed",), None, None, None, 4, None, "C")
    ours, tritons = run.calls
    if call.nested:
        ours, tritons = (*ours[:-1], *ours[-1]), (*tritons[:-1], *tritons[-1])
    assert ours == tritons


@pytest.mark.parametrize("broken", [_Renamed, _Twice, _Hidden, _Rearranged, _Scratch, _Bare, lambda: None])
def test_an_unknown_call_is_not_made(broken) -> None:
    assert triton_launcher.record(Compiled(broken()), 3) is None


def test_no_launcher_at_all() -> None:
    assert triton_launcher.record(object(), 3) is None


@pytest.mark.compile
@pytest.mark.parametrize(("vendor", "name"), [("nvidia", "CudaLauncher"), ("amd", "HIPLauncher")])
def test_triton_has_a_call_we_know(vendor: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launchers of both back ends of the Triton at hand; else every launch would fall back."""
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=None))  # there is no GPU
    driver = importlib.import_module(f"triton.backends.{vendor}.driver")
    cls = getattr(driver, name)
    run = cls.__new__(cls)  # __init__ would look for a GPU
    calls: list[tuple[object, ...]] = []
    names = set(cls.__call__.__code__.co_names) | set().union(
        *(c.co_names for c in cls.__call__.__code__.co_consts if hasattr(c, "co_names"))
    )
    # what __init__ sets, as for a kernel without scratch memory
    vars(run).update({n: 0 for n in names if not hasattr(cls, n)}, launch=lambda *a: calls.append(a))
    call = triton_launcher.record(Compiled(run), 4)
    assert call is not None
    before = list(call.args)
    for at, size in zip((*call.grid_at, call.stream_at), (3, 2, 1, 99), strict=True):
        before[at] = size
    args = [1, None, 2, "C"]
    call.launcher(*before, *([args] if call.nested else args))
    run(3, 2, 1, 99, 7, ("packed",), None, None, None, *args)
    ours, tritons = ([*map(_listed, one)] for one in calls)
    assert ours == tritons


@pytest.mark.compile
def test_the_flag_of_programmatic_dependent_launch_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where Triton's launcher puts what a kernel is compiled with."""
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=None))
    driver = importlib.import_module("triton.backends.nvidia.driver")
    run = driver.CudaLauncher.__new__(driver.CudaLauncher)
    names = {n for n in driver.CudaLauncher.__call__.__code__.co_names if not hasattr(driver.CudaLauncher, n)}
    vars(run).update(dict.fromkeys(names, 0), launch_pdl=True)
    call = triton_launcher.record(Compiled(run), 4)
    assert call is not None
    assert call.pdl_at is not None
    assert call.args[call.pdl_at] is True
    run.launch_pdl = False
    without = triton_launcher.record(Compiled(run), 4)
    assert without is not None
    assert without.pdl_at is None
    assert without.args[call.pdl_at] is False


@pytest.mark.parametrize(
    ("pdl_at", "capturing", "flag"), [(1, False, True), (1, True, False), (None, True, "")]
)
def test_a_captured_launch_does_without_it(pdl_at: int | None, capturing: bool, flag: object) -> None:
    launched: list[tuple[object, ...]] = []
    compiled = launch.CompiledLaunch.__new__(launch.CompiledLaunch)
    compiled._one_device, compiled._device = True, 0
    compiled._stream, compiled._stream_at = lambda device: 77, 0
    compiled._launcher = lambda *args: launched.append(args)
    compiled._pdl_at, compiled._capturing = pdl_at, lambda: capturing
    compiled.launch([0, "", "more"])
    assert launched == [(77, flag, "more")]


def _listed(x: object) -> object:
    return list(x) if isinstance(x, tuple) else x


class _Chain:
    def __init__(self, *calls: object) -> None:
        self.calls = list(calls)


def test_watchers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs, _ = triton_launcher._hooks()
    monkeypatch.setattr(knobs, "launch_enter_hook", _Chain())
    monkeypatch.setattr(knobs, "launch_exit_hook", _Chain())
    monkeypatch.setattr(knobs, "debug", False)
    assert not triton_launcher.launch_hooks_active()
    for name, value in (
        ("launch_exit_hook", _Chain(print)), ("launch_enter_hook", _Chain(print)),
        ("launch_enter_hook", print), ("debug", True),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(knobs, name, value)
            assert triton_launcher.launch_hooks_active()
    monkeypatch.setattr(knobs, "launch_exit_hook", None)  # as some versions have it
    assert not triton_launcher.launch_hooks_active()
    monkeypatch.setattr(triton_launcher, "_hooks", lambda: (knobs, [print]))
    assert triton_launcher.launch_hooks_active()


def test_a_kernel_that_another_thread_is_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's has its launcher before its function: nobody may see it between."""
    shut_out: list[bool] = []

    def try_the_lock() -> None:
        got = compile.LOADING.acquire(blocking=False)
        if got:
            compile.LOADING.release()
        shut_out.append(not got)

    class Loading:
        function, packed_metadata, _run = None, (), None

        @property
        def run(self):
            if self._run is None:
                self._run = Launcher()
                other = threading.Thread(target=try_the_lock)
                other.start()
                other.join()
                self.function = 7
            return self._run

    kernel = Loading()
    jit = SimpleNamespace(warmup=lambda *_, **__: kernel)
    monkeypatch.setattr(compile, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    calls: list[object] = []
    threads = [
        threading.Thread(target=lambda n=n: calls.append(compile.compiled(0, jit, f"config {n}", {}, [])))
        for n in (1, 1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call.args[4] for call in calls] == [7, 7, 7]
    assert shut_out == [True]


def _prepared() -> tuple[launch.CompiledLaunch, object, object]:
    build = make(CASES["skewed"], TABLE, 16, 1, torch.int32, "cuda")
    want = building.twin(build)
    reference.run(want)
    return launch.prepare(build), build, want


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["cheap", "hooked", "debug", "unknown call"])
def test_every_route_builds_the_same(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, build, want = _prepared()
    assert prepared.fast_path
    seen: list[object] = []
    enter = triton_launcher._hooks()[0].launch_enter_hook
    if route == "hooked":
        enter.add(seen.append)
    elif route == "debug":
        monkeypatch.setattr(triton_launcher._hooks()[0], "debug", True)
    elif route == "unknown call":
        prepared.fast_path = False
    try:
        prepared.run(build)
    finally:
        enter.remove(seen.append)
    assert len(seen) == (route == "hooked")
    building.assert_same(build, want)


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["hooked", "cheap"])
def test_ops_and_builders_take_either_route(route: str) -> None:
    """Also if a hook is added after the call was cached, and removed again."""
    table = torch.arange(6400, dtype=torch.int32, device="cuda").view(4, 1600)
    rows, lens = torch.arange(4, device="cuda"), torch.tensor([1600, 0, 3, 700], device="cuda")
    builder = xkv.MetadataBuilder("flashmla", table, max_batch_size=4, max_context_len=1600)
    out = torch.full((4, 25), -7, dtype=torch.int32, device="cuda")
    seen: list[object] = []
    enter = triton_launcher._hooks()[0].launch_enter_hook
    for turn in range(4):
        if route == "hooked" and turn == 2:
            enter.add(seen.append)
        try:
            now = lens.roll(turn)
            xkv.build_page_table(table, rows, now, page_size=64, out=out.fill_(-7))
            meta = builder.build(rows, now)
        finally:
            enter.remove(seen.append)
        for b in range(4):
            pages = -(-int(now[b]) // 64)
            want = table[b, : pages * 64 : 64] // 64
            assert torch.equal(out[b, :pages], want)
            assert (out[b, pages:] == -7).all()
            assert torch.equal(meta.page_table[b, :pages], want)
    assert len(seen) == (2 if route == "hooked" else 0)


@pytest.mark.gpu
def test_threads_and_streams() -> None:
    """Each thread its own builder and stream; results equal the oracle's in all of them."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            table = torch.randperm(600, device="cuda")[:, None] * 64 + torch.arange(64, device="cuda")
            table = table.view(6, -1).to(torch.int32)
            builder = xkv.MetadataBuilder("flashmla", table, max_batch_size=6, max_context_len=6400)
            with torch.cuda.stream(torch.cuda.Stream()):
                for n in range(50):
                    rows = torch.randperm(6, device="cuda")
                    lens = torch.randint(0, 6400, (6,), device="cuda")
                    meta = builder.build(rows, lens)
                    for b in range(6):
                        pages = -(-int(lens[b]) // 64)
                        want = table[rows[b], : pages * 64 : 64] // 64
                        assert torch.equal(meta.page_table[b, :pages], want), (seed, n, b)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def calls_of(call: Callable[[], object]) -> int:
    """How many calls of Python and C functions a call makes."""
    count = 0

    def seen(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.gpu
def test_cheaper_than_the_front_door() -> None:
    """By the calls that each makes: how long they take depends on what else the machine does."""
    prepared, build, _ = _prepared()
    for cheap in (True, False):  # what either does the first time alone
        prepared.fast_path = cheap
        prepared.run(build)
    front = calls_of(lambda: prepared.run(build))
    prepared.fast_path = True
    assert calls_of(lambda: prepared.launch(prepared.call)) < 0.5 * front
