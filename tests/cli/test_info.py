"""`python -m xkv info`, on this machine and on faked ones."""

from __future__ import annotations

import importlib.metadata
import logging
import platform as python
import sys
import types

import pytest
import torch

import xkv
from xkv import cuda, dispatch, rocm
from xkv.__main__ import main
from xkv.platforms.detect import Platform

H100 = Platform("cuda", "sm90", 32, 132)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Makes torch see these platforms as its GPUs."""
    monkeypatch.delenv("XKV_ARCH", raising=False)

    def fake(*found: Platform) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Model {i}")
        monkeypatch.setattr("xkv.platforms.detect._detect", lambda index: found[index])

    return fake


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    """Runs info and returns what it prints, the columns of each line one space apart."""

    def run() -> list[str]:
        assert main(["info"]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def distributions(monkeypatch: pytest.MonkeyPatch):
    """Fakes who owns the folder triton, and what torch requires."""

    def fake(owners: dict[str, str], required: list[str] | None) -> None:
        def requires(name: str) -> list[str] | None:
            assert name == "torch"
            if required is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return required

        # importlib says a name twice where two of its files point to the folder
        named = {"triton": [*owners, *owners], "other": ["another"]}
        monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: named)
        monkeypatch.setattr(importlib.metadata, "version", owners.__getitem__)
        monkeypatch.setattr(importlib.metadata, "requires", requires)

    return fake


def warnings(lines: list[str]) -> list[str]:
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def test_versions_of_this_machine(printed) -> None:
    import triton

    lines = printed()
    assert f"xkv {xkv.__version__}" in lines
    assert f"python {python.python_version()}" in lines
    assert f"triton {triton.__version__}" in lines
    (line,) = (line for line in lines if line.startswith("torch "))
    assert line.startswith(f"torch {torch.__version__} (")
    if torch.version.hip or torch.version.cuda:
        assert (torch.version.hip or torch.version.cuda) in line
    else:
        assert line.endswith("(built without CUDA and HIP)")


@pytest.mark.parametrize(
    ("toolkit", "number", "said"),
    [("cuda", "12.9", "(CUDA 12.9)"), ("hip", "7.1.2", "(HIP 7.1.2)")],
)
def test_toolkit(toolkit: str, number: str, said: str, printed, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, toolkit, number)
    assert f"torch {torch.__version__} {said}" in printed()


def test_no_gpu(printed, gpus) -> None:
    gpus()
    lines = printed()
    assert f"no GPU {xkv.platform('cpu')}" in lines
    assert any(line.startswith("tuning rows of cpu: used under TRITON_INTERPRET=1") for line in lines)


@pytest.mark.parametrize(
    "found", [Platform("cuda", "sm90", 32, 132), Platform("hip", "gfx942", 64, 304), None]
)
def test_backends(found: Platform | None, printed, gpus) -> None:
    """Those of the vendor, on a CPU of both."""
    gpus(*[found] * 2 if found else [])
    lines = printed()
    vendor = found.vendor if found else "cpu"
    at = lines.index(f"attention backends of {vendor}")
    assert lines[at + 1] == "backend form page_sizes ids outputs"
    specs = dispatch.specs_of(vendor)
    for line, spec in zip(lines[at + 2 :], specs.values(), strict=False):
        assert line.startswith(f"{spec.name} {spec.form} ")
        assert line.endswith(f" {spec.id_dtype} {', '.join(spec.outputs)}")
        sizes = line.removeprefix(f"{spec.name} {spec.form} ").split(" int")[0]
        first, _, last = sizes.partition(" to ")
        among = (
            [1 << n for n in range(11) if int(first) <= 1 << n <= int(last)]
            if last
            else [*map(int, first.split(", "))]
        )
        assert among == [*spec.page_sizes]
    assert lines[at + 2 + len(specs)] == ""
    assert sum(line.startswith("attention backends of") for line in lines) == 1


def test_every_gpu(printed, gpus) -> None:
    gpus(H100, H100, Platform("cuda", "sm120", 32, 188))
    lines = printed()
    assert "GPU 0: Model 0 sm90 (cuda, 132 compute units)" in lines
    assert "GPU 1: Model 1 sm90 (cuda, 132 compute units)" in lines
    assert "GPU 2: Model 2 sm120 (cuda, 188 compute units)" in lines
    titles = [line for line in lines if line.startswith("tuning rows")]
    assert titles == ["tuning rows of sm90: its own", "tuning rows of sm120: its own"]


ORIGINS = [
    (Platform("cuda", "sm100", 32, 148), "its own", cuda.TUNING["sm100"]),
    (Platform("hip", "gfx942", 64, 304), "its own", rocm.TUNING["gfx942"]),
    (Platform("cuda", "sm101", 32, 20), "those of its family, sm100", cuda.TUNING["sm100"]),
    (Platform("hip", "gfx940", 64, 304), "those of its family, gfx942", rocm.TUNING["gfx942"]),
    (
        Platform("cuda", "sm75", 32, 40),
        f"the vendor's default, those of {cuda.DEFAULT_ARCH}; xkv does not know sm75",
        cuda.TUNING[cuda.DEFAULT_ARCH],
    ),
    (
        Platform("hip", "gfx1100", 32, 96),
        f"the vendor's default, those of {rocm.DEFAULT_ARCH}; xkv does not know gfx1100",
        rocm.TUNING[rocm.DEFAULT_ARCH],
    ),
]


@pytest.mark.parametrize(("found", "origin", "rows"), [pytest.param(*o, id=o[0].arch) for o in ORIGINS])
def test_tuning_rows(found: Platform, origin: str, rows, printed, gpus, caplog) -> None:
    """Every row of the table that serves the arch is there once, with its batches, and no other."""
    gpus(found)
    with caplog.at_level(logging.CRITICAL, "xkv"):
        lines = printed()
    at = lines.index(f"tuning rows of {found.arch}: {origin}")
    table = lines[at + 2 :]
    assert len(table) == len(rows)
    assert lines[at + 1].startswith("access_pattern batch num_page_per_block num_warps ")
    for pattern in ("contiguous", "ragged", "expand", "strided_near", "strided_far"):
        least = 1
        for row in (row for row in rows if row.access_pattern == pattern):
            span = f"{least} and more" if row.max_batch is None else f"{least} to {row.max_batch}"
            (line,) = (line for line in table if line.startswith(f"{pattern} {span} "))
            assert line.startswith(f"{pattern} {span} {row.num_page_per_block} {row.num_warps} ")
            assert line.endswith(f" {row.provenance}")
            assert dispatch.tuning_row(found, pattern, least) == row
            least = (row.max_batch or 0) + 1


def test_arch_by_environment(printed, gpus, monkeypatch) -> None:
    gpus(H100)
    monkeypatch.setenv("XKV_ARCH", "sm120")
    lines = printed()
    assert "XKV_ARCH 'sm120'" in lines
    assert "GPU 0: Model 0 sm120 (cuda, 132 compute units)" in lines
    assert "tuning rows of sm120: its own" in lines


def test_two_tritons(printed, distributions) -> None:
    owners = {"triton": "3.6.0", "pytorch-triton-rocm": "3.5.1"}
    distributions(owners, ["filelock", 'Pytorch_Triton_ROCm==3.5.1; platform_system == "Linux"'])
    (warning,) = warnings(printed())
    assert warning.startswith("pytorch-triton-rocm 3.5.1 and triton 3.6.0 lie over one another")
    assert "torch requires pytorch-triton-rocm: pip uninstall triton, then reinstall pytorch-" in warning


@pytest.mark.parametrize("required", [None, [], ["numpy"], ["triton", "triton-rocm"]])
def test_two_tritons_and_torch_does_not_say_which(required, printed, distributions) -> None:
    distributions({"triton-rocm": "3.6.0", "triton": "3.5.0"}, required)
    (warning,) = warnings(printed())
    assert warning.startswith("triton 3.5.0 and triton-rocm 3.6.0 lie over one another")
    assert "uninstall the one that did not come with torch" in warning


@pytest.mark.parametrize("owners", [{}, {"triton": "3.6.0"}])
def test_one_triton_is_no_reason_to_warn(owners: dict[str, str], printed, distributions) -> None:
    distributions(owners, ["triton"])
    assert warnings(printed()) == []


def test_this_machine_has_one_triton(printed) -> None:
    owners = set(importlib.metadata.packages_distributions()["triton"])
    assert len(warnings(printed())) == (len(owners) > 1)


def test_triton_that_is_missing_or_broken(printed, gpus, monkeypatch) -> None:
    gpus()
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton not installed" in printed()
    folder = types.ModuleType("triton")
    folder.__path__ = ["/tmp/triton"]
    monkeypatch.setitem(sys.modules, "triton", folder)
    assert "triton has no version: ['/tmp/triton'] is not it" in printed()


@pytest.mark.parametrize("error", [ImportError, OSError, ModuleNotFoundError])
def test_triton_that_does_not_import(error: type[Exception], printed, gpus, monkeypatch) -> None:
    real = importlib.import_module

    def load(name: str):
        if name == "triton":
            raise error("libtriton.so: cannot open")
        return real(name)

    gpus()
    monkeypatch.setattr(importlib, "import_module", load)
    assert "triton does not import: libtriton.so: cannot open" in printed()
