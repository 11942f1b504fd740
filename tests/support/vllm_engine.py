"""vLLM's real modules, from its wheel, without the hundred packages that a server needs.

XKV_ENGINES names a folder whose ``vllm-0.33.0`` holds the wheel, unpacked, and the package regex. Real are
the plugin loader, the dispatcher, both runners' block_table modules and the warmup of kernels. Two backends'
files and two more import all of a server: of those, the functions and classes named below alone are taken,
from the real files. Without vLLM's C++ there are no pinned buffers: `Staged` stands in for those.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.33.0"

FLASHINFER = "vllm.v1.attention.backends.flashinfer"
AITER = "vllm.v1.attention.backends.mla.rocm_aiter_mla"
V1 = "vllm.v1.worker.block_table"
V2 = "vllm.v1.worker.gpu.block_table"

# of these files only what is named
PARTS: dict[str, tuple[str, ...]] = {
    FLASHINFER: ("_copy_page_indices_kernel", "FlashInferMetadataBuilder._compute_flashinfer_kv_metadata"),
    AITER: ("_expand_page_indices_kernel",),
    "vllm.v1.attention.backends.utils": ("PAD_SLOT_ID",),
    "vllm.v1.utils": ("CpuGpuBuffer",),
}
# packages whose modules are real and whose own file is not run
SHELLS = ("vllm.model_executor", "vllm.model_executor.warmup")
# vLLM's C++, which is built for one torch; its CUDA platform imports it
EMPTY = ("vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch", "vllm._qutlass_C")


def folder() -> Path:
    """Where the wheel lies unpacked; skips where it does not."""
    engines = os.environ.get("XKV_ENGINES")
    if not engines:
        pytest.skip(f"XKV_ENGINES names no folder with vllm-{VERSION}")
    found = Path(engines, f"vllm-{VERSION}")
    if not (found / "vllm" / "plugins" / "__init__.py").is_file():
        pytest.skip(f"{found} does not hold vLLM's wheel")
    for name in ("regex",):
        if importlib.util.find_spec(name) is None and not (found / name).is_dir():
            pytest.skip(f"{found} lacks {name}, which vLLM's modules import")
    return found


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and makes what is not imported whole."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname not in (*PARTS, *SHELLS, *EMPTY, "vllm.distributed"):
            return None
        spec = importlib.util.spec_from_loader(fullname, self, is_package=fullname in SHELLS)
        if fullname in SHELLS:
            spec.submodule_search_locations = [str(self.root.joinpath(*fullname.split(".")))]
        return spec

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name == "vllm.distributed":
            module.get_dcp_group = module.get_pcp_group = _no_group
        elif name in PARTS:
            take(self.root.joinpath(*name.split(".")).with_suffix(".py"), PARTS[name], module)


def _no_group() -> None:
    raise AssertionError("no groups are initialized")


def take(path: Path, names: tuple[str, ...], module: ModuleType) -> None:
    """Runs those of a file's functions, classes and constants in a module; lines stay what they are."""
    from vllm.triton_utils import tl, triton

    vars(module).update(np=np, torch=torch, tl=tl, triton=triton, PIN_MEMORY=False, __file__=str(path))
    body: list[ast.stmt] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            own = [target.id for target in node.targets if isinstance(target, ast.Name)]
        else:
            own = [getattr(node, "name", "")]
        if any(name in names for name in own):
            body.append(node)
        elif isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if f"{node.name}.{getattr(m, 'name', '')}" in names]
            if methods:
                node.body, node.bases, node.decorator_list = methods, [], []
                body.append(node)
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + body, []), str(path), "exec"), vars(module))
    missing = [name for name in names if not hasattr(module, name.split(".")[0])]
    assert not missing, f"{path} has no {missing}"


def distribution(at: Path) -> None:
    """What pip would have written of xkv's entry points, from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    group = 'entry-points."vllm.general_plugins"'
    lines = text.split(f"[project.{group}]\n")[1].split("\n[")[0].strip().replace('"', "")
    info = at / "xkv_entry_points-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xkv-entry-points\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{lines}\n")


@contextmanager
def installed(*paths: Path, root: Path | None = None) -> Iterator[None]:
    """With these folders first on the path, and everything of vLLM's forgotten afterwards."""
    from xkv.integrations.patching import importing, logs

    before = dict(sys.modules), list(sys.path), list(sys.meta_path)
    environment = dict(os.environ)
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else vLLM does without Triton
    os.environ["VLLM_PLUGINS"] = "xkv"  # vLLM's own plugins import more
    sys.path[:0] = [str(path) for path in paths]
    if root is not None:
        sys.meta_path.insert(0, _StandIns(root))
    importlib.invalidate_caches()
    importing._waiting.clear()
    try:
        yield
    finally:
        importing._waiting.clear()
        logs._kept.clear()
        sys.path[:], sys.meta_path[:] = before[1], before[2]
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            del sys.modules[name]
        sys.modules.update({k: v for k, v in before[0].items() if k.split(".")[0] == "vllm"})
        os.environ.clear()  # importing vllm sets some
        os.environ.update(environment)


class Staged:
    """A tensor by the names that vLLM's pinned and staged ones have."""

    def __init__(self, size: Any, dtype: torch.dtype, device: Any = None, **_: Any) -> None:
        from conftest import GPUS

        self.gpu = torch.zeros(size, dtype=dtype, device="cuda" if GPUS else "cpu")


def modules() -> SimpleNamespace:
    """The engine's modules, imported."""
    found = SimpleNamespace(
        flashinfer=importlib.import_module(FLASHINFER), aiter=importlib.import_module(AITER),
        v1=importlib.import_module(V1), v2=importlib.import_module(V2),
    )  # fmt: skip
    found.v2.StagedWriteTensor = found.v2.UvaBackedTensor = Staged
    found.v2.FusedStagedWriter = lambda *_: None
    return found


_kept: dict[str, Any] = {}


@contextmanager
def with_plugin(dist: Path) -> Iterator[SimpleNamespace]:
    """The engine's modules, xkv loaded before them by vLLM's own loader; imported once a process.

    vLLM registers types and ops with torch, which takes none twice. ``lines`` is what the plugin logged.
    """
    root = folder()
    distribution(dist)
    with installed(ROOT, dist, root, root=root):
        sys.modules.update(_kept.get("modules", {}))
        import vllm.plugins

        lines: list[str] = _kept.setdefault("lines", [])
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("vllm.xkv")
        log.addHandler(handler)
        log.setLevel(logging.INFO)  # as vLLM sets its own
        if "found" not in _kept:
            vllm.plugins.load_general_plugins()
            _kept["found"] = modules()
            _kept["found"].lines = lines
        try:
            yield _kept["found"]
        finally:
            _kept["modules"] = {k: v for k, v in sys.modules.items() if k.split(".")[0] == "vllm"}
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)
