"""The cheap launch: the same launch, and the front door where it is not to be trusted."""

from __future__ import annotations

import threading
import time

import building
import pytest
import torch
from cases import CASES, make

import xkv
from xkv import launch, reference
from xkv.build import TABLE


class _Launcher:
    """A launcher as Triton 3.6 to 3.9 have it."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, gridX, gridY, gridZ, stream, function, *args):
        self.calls.append((gridX, gridY, gridZ, stream, function, *args))


class _Renamed(_Launcher):
    def __call__(self, grid, stream, function, *args):
        raise AssertionError("not the call we know")


class _Compiled:
    function, packed_metadata = 7, ("packed",)

    def __init__(self, run: object) -> None:
        self.run = run


def test_the_private_call() -> None:
    run = _Launcher()
    call = launch._cheap(_Compiled(run), "config")
    call(3, 2, 1, 99, [5, None, 6])
    assert run.calls == [(3, 2, 1, 99, 7, ("packed",), None, None, None, 5, None, 6, "config")]


@pytest.mark.parametrize("broken", [_Compiled(_Renamed()), _Compiled(None), object()])
def test_an_unknown_call_is_not_made(broken: object) -> None:
    assert launch._cheap(broken, "config") is None


@pytest.mark.compile
@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_triton_has_the_call_we_know(vendor: str) -> None:
    """The launchers of both back ends of the Triton at hand, unless it must fall back."""
    import importlib

    driver = importlib.import_module(f"triton.backends.{vendor}.driver")
    launcher = getattr(driver, {"nvidia": "CudaLauncher", "amd": "HIPLauncher"}[vendor])
    run = launcher.__new__(launcher)  # __init__ would look for a GPU
    assert launch._cheap(_Compiled(run), "config") is not None


def test_hooks_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chain:
        def __init__(self, *calls: object) -> None:
            self.calls = list(calls)

    knobs = launch._knobs()
    monkeypatch.setattr(knobs, "launch_enter_hook", Chain())
    monkeypatch.setattr(knobs, "launch_exit_hook", Chain())
    assert not launch._hooked()
    monkeypatch.setattr(knobs, "launch_exit_hook", Chain(print))
    assert launch._hooked()
    monkeypatch.setattr(knobs, "launch_exit_hook", None)  # as some versions have it
    assert not launch._hooked()
    monkeypatch.setattr(knobs, "launch_enter_hook", print)
    assert launch._hooked()


def _prepared() -> tuple[launch.Prepared, object, object]:
    from xkv import dispatch

    build = make(CASES["skewed"], TABLE, 16, 1, torch.int32, "cuda")
    want = building.twin(build)
    reference.run(want)
    where = xkv.platform("cuda")
    return launch.Prepared(build, dispatch.tuning_row(where, "page", 6), where), build, want


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["cheap", "hooked", "unknown call"])
def test_every_route_builds_the_same(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, build, want = _prepared()
    assert prepared._fast is not None
    if route == "hooked":
        seen = []
        enter = launch._knobs().launch_enter_hook
        enter.add(seen.append)
        try:
            prepared()
        finally:
            enter.remove(seen.append)
        assert len(seen) == 1
    else:
        if route == "unknown call":
            prepared._fast = None
        prepared()
    building.assert_same(build, want)


@pytest.mark.gpu
def test_threads_and_streams() -> None:
    """Each thread its own builder and stream; results equal the oracle's in all of them."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            table = (torch.randperm(600, device="cuda")[:, None] * 64 + torch.arange(64, device="cuda"))
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


@pytest.mark.gpu
def test_cheaper_than_the_front_door() -> None:
    prepared, build, _ = _prepared()
    args = build.arguments()

    def each(call) -> float:
        times = []
        for _ in range(7):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(200):
                call()
            times.append((time.perf_counter() - start) / 200)
        return sorted(times)[3]

    door = each(
        lambda: launch._front_door(0, prepared._grid, args, prepared._config, prepared._warps)
    )
    assert each(prepared) < 0.5 * door
