"""Compiles what the cases use of FlashInfer into its package, so that a GPU node need not: ``data/aot``.

    PYTHONPATH=ci:SITE... python -m serve.flashinfer_ops [MODULE...]

For a machine with nvcc and torch; a GPU is not needed. FA2 kernels alone: ptxas takes 22 GB for each of the
FA3 ones. Without these files FlashInfer compiles the same at an engine's start, if nvcc is there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any


def without_fa3() -> None:
    """FlashInfer's FA2 kernels also on Hopper, in this process; the indices that it is given are the same."""
    import flashinfer.utils

    flashinfer.utils.is_sm90a_supported = lambda *args, **kwargs: False


def specs() -> dict[str, Any]:
    """FlashInfer's own descriptions of them, by the case that wants them: gqa, ragged (DeepSeek's), mla."""
    import torch
    from flashinfer.jit.attention import modules

    half = [torch.bfloat16] * 3
    # newer versions split what has unequal strides off; this is what a wrapper loads first
    make = getattr(modules, "_gen_batch_prefill_primary_module", modules.gen_batch_prefill_module)
    plain = (0, False, False, False)  # positions, window, soft cap, fp16 sums
    return {
        "gqa": lambda: make("fa2", *half, torch.int32, 128, 128, *plain),
        "ragged": lambda: make("fa2", *half, torch.int32, 192, 128, *plain),
        "mla": lambda: modules.gen_batch_mla_module("fa2", *half, torch.int32, 512, 64, False),
    }


def main(names: list[str]) -> int:
    """Compiles them one after the other."""
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
