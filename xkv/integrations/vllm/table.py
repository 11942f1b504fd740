"""What of vLLM is replaced, as data; another text is compared (tests/test_vllm.py), then listed."""

from __future__ import annotations

from xkv.integrations.replacing import Kernel

_HERE = "xkv.integrations.vllm"

KERNELS = (
    Kernel("_copy_page_indices_kernel", frozenset({"761441f58b23"}), f"{_HERE}.indices:copy_page_indices"),
    Kernel(
        "_expand_page_indices_kernel", frozenset({"766c7aef1940"}), f"{_HERE}.indices:expand_page_indices"
    ),
    Kernel(
        "ComputeSlotMappingKernel.kernel", frozenset({"6ada694cc85f"}), f"{_HERE}.tables:slot_mapping",
        f"{_HERE}.tables:warm_slot_mapping",
    ),
    Kernel(
        "_gather_block_tables_kernel", frozenset({"f3f865e2dd54"}), f"{_HERE}.tables:gather_block_tables"
    ),
    Kernel("_compute_slot_mappings_kernel", frozenset({"eaf650dde443"}), f"{_HERE}.tables:slot_mappings"),
)  # fmt: skip

# where vLLM has had them so far
FIRST = ("v1",)
