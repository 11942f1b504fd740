"""vLLM's kernels that xkv knows, as data, and how to tell that an installed one is among them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import NamedTuple

from xkv.integrations.codes import code

VERSIONS = ("0.33.0",)


class Known(NamedTuple):
    """One kernel of vLLM's and what is launched in its place.

    Attributes:
        module: where vLLM defines it.
        name: in that module, as vLLM's `register_kernels` wants it.
        codes: `code` of each form that xkv was compared with.
        launch: ``module:function`` of xkv; it takes the grid and the kernel's arguments.
        warmup: ``module:function`` of xkv, where vLLM compiles the kernel at its start; else "".
    """

    module: str
    name: str
    codes: tuple[str, ...]
    launch: str
    warmup: str = ""


_HERE = "xkv.integrations.vllm"
KERNELS = (
    Known(
        "vllm.v1.attention.backends.flashinfer", "_copy_page_indices_kernel",
        ("761441f58b23",), f"{_HERE}.indices:copy_page_indices",
    ),
    Known(
        "vllm.v1.attention.backends.mla.rocm_aiter_mla", "_expand_page_indices_kernel",
        ("766c7aef1940",), f"{_HERE}.indices:expand_page_indices",
    ),
    Known(
        "vllm.v1.worker.block_table", "ComputeSlotMappingKernel.kernel",
        ("6ada694cc85f",), f"{_HERE}.tables:slot_mapping", f"{_HERE}.tables:warm_slot_mapping",
    ),
    Known(
        "vllm.v1.worker.gpu.block_table", "_gather_block_tables_kernel",
        ("f3f865e2dd54",), f"{_HERE}.tables:gather_block_tables",
    ),
    Known(
        "vllm.v1.worker.gpu.block_table", "_compute_slot_mappings_kernel",
        ("eaf650dde443",), f"{_HERE}.tables:slot_mappings",
    ),
)  # fmt: skip


def why_not(package: Path, kernel: Known) -> str | None:
    """Why an installed kernel is none that xkv knows, or None. Imports nothing of vLLM's.

    Args:
        package: vLLM's folder.
        kernel: the kernel.
    """
    path = package.joinpath(*kernel.module.split(".")[1:]).with_suffix(".py")
    if not path.is_file():
        return "this vLLM has no such module"
    lines = path.read_text().splitlines(keepends=True)
    name = kernel.name.rsplit(".", 1)[-1]
    found = [n for n, line in enumerate(lines) if line.lstrip().startswith(f"def {name}(")]
    if len(found) != 1:
        return "this vLLM has no such kernel" if not found else f"its module has {len(found)} of that name"
    have = code("".join(inspect.getblock(lines[found[0] :])))
    return None if have in kernel.codes else f"its code, {have}, is not one that xkv knows"
