"""What xkv finds out about a device, when, how often, and what it says where it cannot run."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import nodes
import pytest
import torch
import triton.runtime

from xkv import Platform, UnsupportedPlatformError
from xkv.platforms import detect
from xkv.platforms.detect import platform


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cache and no override, from a test before or from the machine at hand."""
    monkeypatch.delenv("XKV_ARCH", raising=False)
    nodes.forget(detect)
    yield
    nodes.forget(detect)


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts GPUs behind torch.cuda and Triton's driver."""
    return functools.partial(nodes.plug, monkeypatch)


def refusal(*args: Any) -> str:
    """What `platform` says when it refuses: one sentence."""
    with pytest.raises(UnsupportedPlatformError) as info:
        platform(*args)
    message = str(info.value)
    assert "\n" not in message
    assert not re.search(r"\. |\.$", message), "more than a sentence"
    return message


H100 = ("cuda", 90, 32, 132)
MI300 = ("hip", "gfx942:sramecc+:xnack-", 64, 304)

FOUND = [
    (H100, Platform("cuda", "sm90", 32, 132)),
    (("cuda", 100, 32, 148), Platform("cuda", "sm100", 32, 148)),
    (("cuda", 103, 32, 148), Platform("cuda", "sm103", 32, 148)),
    (("cuda", 120, 32, 188), Platform("cuda", "sm120", 32, 188)),
    (("cuda", 89, 32, 142), Platform("cuda", "sm89", 32, 142)),
    (MI300, Platform("hip", "gfx942", 64, 304)),
    (("hip", "gfx950", 64, 256), Platform("hip", "gfx950", 64, 256)),
    (("hip", "gfx90a:sramecc+:xnack-", 64, 104), Platform("hip", "gfx90a", 64, 104)),
    (("hip", "gfx1201", 32, 64), Platform("hip", "gfx1201", 32, 64)),
]


@pytest.mark.parametrize(("gpu", "wanted"), FOUND, ids=lambda x: getattr(x, "arch", None))
def test_gpu(gpu: tuple[str, int | str, int, int], wanted: Platform, plug: Any) -> None:
    plug(gpu)
    assert platform() == wanted
    assert platform("cuda") is platform("cuda:0") is platform(0) is platform(torch.device("cuda"))
    assert wanted.arch in str(platform())
    assert str(wanted.compute_units) in str(platform())


def test_asked_once_a_device_and_not_before(plug: Any) -> None:
    machine = plug(H100, MI300, H100)
    assert platform("cpu") == detect.CPU
    assert machine.asked == []
    for _ in range(3):
        assert platform(1).arch == "gfx942"
    assert machine.asked == [1]
    for _ in range(3):
        assert platform().arch == "sm90"
        assert platform("cuda:1").arch == "gfx942"
    assert machine.asked == [1, 0]
    assert machine.current == 0


def test_current_device_is_looked_up_at_every_call(plug: Any) -> None:
    machine = plug(H100, MI300)
    assert platform().arch == "sm90"
    machine.current = 1
    assert platform().arch == platform("cuda").arch == "gfx942"
    assert platform(0).arch == "sm90"


def test_importing_platforms_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys, xkv.platforms.detect, xkv.platforms.tuning;"
        "assert not {'torch', 'triton'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_no_gpu(plug: Any) -> None:
    machine = plug()
    assert platform() == platform("cpu") == platform(torch.device("cpu")) == detect.CPU
    for device in ("cuda", "cuda:0", 0, torch.device("cuda")):
        message = refusal(device)
        assert message.startswith("device 'cuda:0' was asked for but torch ")
        assert torch.__version__ in message
        assert "finds no GPUs: install a torch built for this node" in message
    assert machine.asked == []


def test_device_beyond_the_last(plug: Any) -> None:
    plug(H100)
    message = refusal("cuda:1")
    assert message.startswith("device 'cuda:1' was asked for but torch ")
    assert "finds 1 GPU: " in message
    assert "visible devices" in message


def test_a_refusal_is_not_remembered(plug: Any) -> None:
    plug()
    refusal(0)
    plug(H100)
    assert platform(0).arch == "sm90"


@pytest.mark.parametrize("device", ["meta", "mps", "xpu:1"])
def test_other_devices(device: str) -> None:
    message = refusal(device)
    assert message.startswith(f"device {device!r} is not supported: ")
    assert "CUDA and ROCm" in message
    assert "move the tensors there" in message


def test_another_back_end_of_triton(plug: Any) -> None:
    plug(("xpu", "pvc", 16, 64))
    message = refusal()
    assert "back end 'xpu'" in message
    assert "supports 'cuda' and 'hip'" in message


class TestOverride:
    @pytest.mark.parametrize(
        ("gpu", "arch"),
        [
            (H100, "sm100"),
            (H100, "sm90"),
            (H100, "sm101"),
            (MI300, "gfx950"),
            (MI300, "gfx90a"),
            (MI300, "gfx1201"),
        ],
    )
    def test_changes_the_arch_alone(
        self, gpu: Any, arch: str, plug: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plug(gpu)
        found = platform()
        monkeypatch.setenv("XKV_ARCH", arch)
        kept = Platform(found.vendor, arch, found.warp_size, found.compute_units)
        assert dataclasses.replace(platform(), device_arch="") == kept
        assert platform().supports_pdl == found.supports_pdl  # the kernel is compiled for the device at hand
        monkeypatch.setenv("XKV_ARCH", "")
        assert platform() == found

    def test_is_cut_at_the_colon(self, plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        plug(MI300)
        monkeypatch.setenv("XKV_ARCH", "gfx950:sramecc+:xnack-")
        assert platform().arch == "gfx950"

    @pytest.mark.parametrize(("arch", "vendor", "warp_size"), [("sm90", "cuda", 32), ("gfx942", "hip", 64)])
    def test_on_the_cpu_any_arch_can_be_asked_for(
        self, arch: str, vendor: str, warp_size: int, plug: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plug()
        monkeypatch.setenv("XKV_ARCH", arch)
        assert platform() == Platform(vendor, arch, warp_size, detect.CPU.compute_units)

    @pytest.mark.parametrize(
        ("gpu", "arch"),
        [
            (H100, "gfx942"),
            (MI300, "sm90"),
            *((H100, x) for x in ("cpu", "hopper", "90", "sm_90", "SM90", "sm", "sm90 ", ":")),
            *((MI300, x) for x in ("cpu", "mi300", "942", "gfx", "GFX942", "gfx-942")),
        ],
        ids=str,
    )
    def test_that_does_not_fit(self, gpu: Any, arch: str, plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        plug(gpu)
        found = platform()
        monkeypatch.setenv("XKV_ARCH", arch)
        message = refusal()
        assert message.startswith(f"XKV_ARCH={arch!r} does not fit the device found, {found}: ")
        assert "such as 'sm90' or 'gfx942', or unset it" in message


class TestInstall:
    def test_no_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        message = refusal()
        assert message.startswith("torch is not installed, and xkv never installs it: ")
        for advice in (
            "pip install torch",
            "AMD's torch and triton",
            f"torch {detect.MIN_TORCH} or newer",
        ):
            assert advice in message

    @pytest.mark.parametrize("version", ["2.8.1", "2.8.0a0+git1b2c3d4", "1.13.1+rocm5.2"])
    def test_old_torch(self, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "__version__", version)
        message = refusal("cpu")
        assert message.startswith(f"torch {version} is too old: xkv needs ")
        assert "upgrade torch" in message

    @pytest.mark.parametrize("version", ["2.9.0a0+git1b2c3d4", "2.11.0+rocm7.1", "3.0", "2.10.0.dev1"])
    def test_new_torch(self, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "__version__", version)
        assert platform("cpu") == detect.CPU

    def test_no_triton(self, plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        plug(H100)
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.setitem(sys.modules, "triton.runtime", None)
        message = refusal()
        assert message.startswith(f"triton is not installed beside torch {torch.__version__}: ")
        assert "on AMD comes from AMD" in message
        assert platform("cpu") == detect.CPU, "the CPU needs no triton"

    def test_old_triton(self, plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = plug(MI300)
        monkeypatch.setattr(triton, "__version__", "3.3.1+rocm")
        message = refusal()
        assert message.startswith("triton 3.3.1+rocm is too old: xkv needs ")
        assert "upgrade torch" in message
        assert machine.asked == []

    def test_triton_of_the_other_vendor(self, plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Triton then finds 0 active drivers, the usual end of a pip install over AMD's build."""

        plug(MI300)
        monkeypatch.setattr(triton.runtime, "driver", nodes.NoDriver())
        message = refusal()
        assert message.startswith(f"triton {triton.__version__} has no driver for the GPU that torch")
        assert "install the triton that this torch was built with" in message


@pytest.mark.gpu
def test_this_machine() -> None:
    found = platform()
    assert found == platform("cuda")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    assert found.compute_units == properties.multi_processor_count
    if torch.version.hip:
        assert found.vendor == "hip"
        assert found.arch == properties.gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability()
        assert found == Platform("cuda", f"sm{major}{minor}", 32, found.compute_units)
