"""Compiles the FlashInfer modules that the cases use into its package (``data/aot``), for a GPU node.

    PYTHONPATH=ci:SITE... python -m serve.flashinfer_ops [MODULE...]

Needs nvcc and torch, but no GPU. Compiles FA2 kernels only: ptxas needs 22 GB for each of the FA3 kernels.
Without these files FlashInfer compiles the same kernels when an engine starts, if nvcc is installed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any


def without_fa3() -> None:
    """Makes FlashInfer use its FA2 kernels on Hopper too, in this process; its indices are the same."""
    import flashinfer.utils

    flashinfer.utils.is_sm90a_supported = lambda *args, **kwargs: False


def specs() -> dict[str, Any]:
    """Returns FlashInfer's specs of the modules by case: gqa, ragged (DeepSeek's), mla."""
    import torch
    from flashinfer.jit.attention import modules

    half = [torch.bfloat16] * 3
    # newer versions have separate modules for unequal strides; a wrapper loads this one first
    make = getattr(modules, "_gen_batch_prefill_primary_module", modules.gen_batch_prefill_module)
    plain = (0, False, False, False)  # positions, window, soft cap, fp16 sums
    return {
        "gqa": lambda: make("fa2", *half, torch.int32, 128, 128, *plain),
        "ragged": lambda: make("fa2", *half, torch.int32, 192, 128, *plain),
        "mla": lambda: modules.gen_batch_mla_module("fa2", *half, torch.int32, 512, 64, False),
    }


def main(names: list[str]) -> int:
    """Compiles the modules one after the other."""
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    import flashinfer

    known = specs()
    for name in names or ["gqa"]:
        spec = known[name]()
        if spec.is_aot:
            print(f"{spec.name}: there already", flush=True)
            continue
        spec.build(verbose=False)
        made = Path(spec.jit_library_path)
        target = Path(flashinfer.__file__).parent / "data" / "aot" / spec.name / f"{spec.name}.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, target)
        print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
