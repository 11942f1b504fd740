"""From Triton's driver to what a launch gets: whole nodes, faked, of each vendor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import get_args

import nodes
import pytest
import triton.runtime
from nodes import Gpu

import xkv
from xkv import cuda, dispatch, rocm
from xkv.__main__ import main
from xkv.platforms import detect, tuning

MI300 = ("hip", "gfx942:sramecc+:xnack-", 64, 304)
MI350 = ("hip", "gfx950:sramecc+:xnack-", 64, 256)
MI200 = ("hip", "gfx90a:sramecc+:xnack-", 64, 104)
H100 = ("cuda", 90, 32, 132)
MLA = {"flashmla", "cutlass_mla", "trtllm_mla", "flashinfer_mla"}
SPECS = {
    "cuda": {
        *MLA, "trtllm_mha", "flash_attention", "flashinfer_decode", "flashinfer_prefill", "triton",
    },
    "hip": {
        "aiter_mla", "aiter_unified", "aiter_pa", "aiter_pa_ragged", "aiter_batch_prefill", "triton",
    },
}  # fmt: skip

# GPU; its arch; whose rows serve it; what the log says at which level
SERVED = [
    (H100, "sm90", "sm90", None),
    (("cuda", 100, 32, 148), "sm100", "sm100", None),
    (("cuda", 103, 32, 148), "sm103", "sm103", None),
    (("cuda", 120, 32, 188), "sm120", "sm120", None),
    (("cuda", 121, 32, 48), "sm121", "sm120", "INFO"),
    (("cuda", 89, 32, 142), "sm89", "sm90", "WARNING"),
    (("cuda", 210, 32, 200), "sm210", "sm90", "WARNING"),
    (MI300, "gfx942", "gfx942", None),
    (MI350, "gfx950", "gfx950", None),
    (("hip", "gfx941:sramecc+:xnack-", 64, 304), "gfx941", "gfx942", "INFO"),
    (MI200, "gfx90a", "gfx942", "WARNING"),
    (("hip", "gfx1201", 32, 64), "gfx1201", "gfx942", "WARNING"),
    (("hip", "gfx1250", 32, 256), "gfx1250", "gfx942", "WARNING"),
]
SAID = {
    "INFO": "xkv has no tuning rows for {}: using those of {}",
    "WARNING": "xkv does not know {}: using the tuning rows of {}",
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cache and no override, from a test before or from the machine at hand."""
    monkeypatch.delenv("XKV_ARCH", raising=False)
    nodes.forget(detect, dispatch)
    yield
    nodes.forget(detect, dispatch)


def rows(device: int) -> set[tuning.Tuning]:
    """The rows of a device, for every access pattern, at every batch size where another row may begin."""
    where = xkv.platform(device)
    batches = {1, 65536} | {(row.max_batch or 0) + 1 for row in dispatch.rows_of(where)[1]}
    return {dispatch.tuning_row(where, kind, n) for kind in get_args(tuning.AccessPattern) for n in batches}


@pytest.mark.parametrize(
    ("gpu", "arch", "serving", "level"), [pytest.param(*case, id=case[1]) for case in SERVED]
)
def test_what_a_gpu_gets(
    gpu: Gpu, arch: str, serving: str, level: str | None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    nodes.plug(monkeypatch, *[gpu] * 8)
    table = {"cuda": cuda, "hip": rocm}[gpu[0]].TUNING[serving]
    with caplog.at_level(logging.DEBUG, "xkv"):
        for device in range(8):
            where = xkv.platform(device)
            assert where == xkv.Platform(gpu[0], arch, gpu[2], gpu[3])
            assert dispatch.rows_of(where) == (serving, table)
            assert rows(device) == set(table)
            # a work group's limit, in the lanes that this GPU's warps have
            assert all(row.num_warps * where.warp_size <= 1024 for row in rows(device))
            assert {spec.name for spec in xkv.backends(device)} == SPECS[gpu[0]]
    # once a process, and not for each of the eight
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == (
        [(level, SAID[level].format(arch, serving))] if level else []
    )


def test_two_devices_of_different_archs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = nodes.plug(monkeypatch, MI200, MI350, MI300)
    with caplog.at_level(logging.DEBUG, "xkv"):
        for current in (1, 0, 2):
            machine.current = current
            assert [xkv.platform(n).arch for n in range(3)] == ["gfx90a", "gfx950", "gfx942"]
            assert xkv.platform() == xkv.platform("cuda") == xkv.platform(current)
            owners = [dispatch.rows_of(xkv.platform(n))[0] for n in range(3)]
            assert owners == ["gfx942", "gfx950", "gfx942"]
        assert rows(0) == rows(2)
    assert [r.getMessage() for r in caplog.records] == [SAID["WARNING"].format("gfx90a", "gfx942")]


def test_two_nvidia_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.plug(monkeypatch, ("cuda", 120, 32, 188), H100)
    assert rows(0) == set(cuda.TUNING["sm120"])
    assert rows(1) == set(cuda.TUNING["sm90"])
    assert not rows(0) & rows(1), "their provenance differs at least"


def test_another_arch_by_override(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    nodes.plug(monkeypatch, MI200)
    monkeypatch.setenv("XKV_ARCH", "gfx950")
    with caplog.at_level(logging.DEBUG, "xkv"):
        assert dispatch.rows_of(xkv.platform()) == ("gfx950", rocm.TUNING["gfx950"])
    assert xkv.platform().compute_units == 104
    assert caplog.records == []


@pytest.mark.parametrize("gpu", [H100, MI300])
def test_no_driver(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that needs a platform says the same one sentence; the CPU is still served."""
    nodes.plug(monkeypatch, gpu)
    monkeypatch.setattr(triton.runtime, "driver", nodes.NoDriver())
    for ask in (xkv.platform, xkv.backends):
        with pytest.raises(xkv.UnsupportedPlatformError, match=r"^triton .* has no driver for the GPU"):
            ask()
    assert main(["info"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("xkv info: triton ")
    assert err.count("\n") == 1
    assert {spec.name for spec in xkv.backends("cpu")} == SPECS["cuda"] | SPECS["hip"]


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = nodes.plug(monkeypatch)
    assert dispatch.rows_of(xkv.platform()) == ("cpu", tuning.CPU_ROWS)
    assert {spec.name for spec in xkv.backends()} == SPECS["cuda"] | SPECS["hip"]
    assert machine.asked == []


def test_info_on_such_a_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    nodes.plug(monkeypatch, MI300, MI350, MI200)
    with caplog.at_level(logging.CRITICAL, "xkv"):
        assert main(["info"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("GPU ")] == [
        "GPU 0: GPU gfx942:sramecc+:xnack- gfx942 (hip, 304 compute units)",
        "GPU 1: GPU gfx950:sramecc+:xnack- gfx950 (hip, 256 compute units)",
        "GPU 2: GPU gfx90a:sramecc+:xnack- gfx90a (hip, 104 compute units)",
    ]
    assert [line for line in lines if line.startswith("tuning rows")] == [
        "tuning rows of gfx942: its own",
        "tuning rows of gfx950: its own",
        "tuning rows of gfx90a: the vendor's default, those of gfx942; xkv does not know gfx90a",
    ]
