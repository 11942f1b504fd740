"""What of vLLM is replaced, as data; another text is compared (tests/engines), then listed."""

from __future__ import annotations

from ..patching.replacing import ANY, Function, Kernel, Launch, Replacement


def _launch(launch: str, warmup: str = "") -> Launch:
    return Launch(*(path and f".vllm.{path}" for path in (launch, warmup)))


KERNELS = (
    Kernel("_copy_page_indices_kernel", {"761441f58b23": _launch("indices:copy_page_indices")}),
    Kernel(
        "_expand_page_indices_kernel",
        {
            "766c7aef1940": _launch("indices:expand_page_indices"),
            "f8b631a89dfe": _launch("earlier:expand_page_indices_without_tail"),
            "a1208728cf53": _launch("earlier:expand_page_indices_of_whole_rows"),
        },
    ),
    Kernel(
        "ComputeSlotMappingKernel.kernel",
        {
            "6ada694cc85f": _launch("tables:slot_mapping", "tables:warm_slot_mapping"),
            "ce94b4307942": _launch(
                "earlier:slot_mapping_of_kernel_blocks", "earlier:warm_slot_mapping_of_kernel_blocks"
            ),
        },
    ),
    Kernel(
        "_gather_block_tables_kernel",
        {
            "f3f865e2dd54": _launch("tables:gather_block_tables"),
            "53e318941071": _launch("earlier:gather_block_tables_without_window"),
        },
    ),
    Kernel(
        "ConvertReqIndexToGlobalIndexKernel.sparse_mla_index_remap_kernel",
        {
            "c6569047ecf8": _launch("sparse:sparse_mla_index_remap_kernel"),
            "b1e6b971a54a": _launch("earlier:sparse_mla_index_remap_without_mapping"),
        },
    ),
    Kernel("_token_request_mapping_kernel", {"cf87a9f7d929": _launch("sparse:token_request_mapping")}),
    Kernel("_dcp_local_seq_lens_kernel", {"7c3007d81a17": _launch("lengths:dcp_local_seq_lens")}),
    Kernel(
        "_compute_slot_mappings_kernel",
        {
            "eaf650dde443": _launch("tables:slot_mappings"),
            "f9a6d82b9d38": _launch("earlier:slot_mappings_of_kernel_blocks"),
            "5738c3296da5": _launch("earlier:slot_mappings_of_sharded_groups"),
        },
    ),
)

METHODS = (
    # model runner V2's, around the two kernels above
    Function(
        "GPUModelRunner.prepare_attn", frozenset({"53c40ecb21f9"}), ".vllm.step:prepare_attn"
    ),
    # model runner V1's, around `ComputeSlotMappingKernel`
    Function(
        "BlockTable.compute_slot_mapping", frozenset({"4ced1698b184"}),
        ".vllm.step:compute_slot_mapping",
    ),
)  # fmt: skip

# of any text: it is called as it is, and ours compile after it
HOOKS = (Function("kernel_warmup", ANY, ".vllm.warming:kernel_warmup"),)

REPLACED: tuple[Replacement, ...] = (*KERNELS, *METHODS, *HOOKS)

# where vLLM has had them so far
FIRST = ("v1", "model_executor/warmup")
