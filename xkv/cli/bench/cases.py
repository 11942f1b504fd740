"""What `python -m xkv bench` builds, and whose it is: data alone, so that a record is read without torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

SGLANG = "sglang-0.5.23"  # whom all ratios are to
SGLANG_512 = "sglang-0.5.12"
READ_TABLE = "read_table"
TOKEN_BLOCKS = "token_blocks"
PLUGIN = "xkv_plugin"
OURS = "xkv"
REPLAY = "xkv_replay"
LEAST = "least"
# Measured beside the providers: SGLANG a second time, a torch add_.
AGAIN = "again"
ADD = "torch_add"

SectionName = Literal["table", "csr", "steps"]
SUITES = ("ops", "steps")

PAGES = "sglang/kernels/ops/attention"
KV_INDICES = f"{PAGES}/kv_indices.py"
MHA = f"{PAGES}/trtllm_mha_graph_metadata.py"
FLASH = f"{PAGES}/metadata.py"
UNIFIED = f"{PAGES}/aiter_unified_page_table.py"

DRAFTS = 4  # tokens of a verify


class Section(NamedTuple):
    """One of the tables.

    Attributes:
        title: for the reader.
        providers: by name, what each is.
        columns: what of a provider has a column: the keys of `records.Point.times`.
        derived: the properties of `records.Point` that have one too.
        labels: the fields of `records.Point` that a row begins with.
        panel: the one of these that has a panel of its own for each value in the figure.
        note: what else a reader should know.
    """

    title: str
    providers: dict[str, str]
    columns: tuple[str, ...]
    derived: tuple[str, ...]
    labels: tuple[str, ...]
    panel: str
    note: str = ""


_READ_TABLE = "SGLang 0.5.23's build_kv_read_table (csr: _packed), through a map of the pool's pages"
_LEAST = "the fastest of a few kernels that do just this, and check nothing; without load balancing"
_DEVICE = ("device_us", "back_us")
_DERIVED = ("over_sglang", "over_best", "over_least")
_POINT = ("workload", "page_size")
SECTIONS: dict[SectionName, Section] = {
    "table": Section(
        "page tables",
        {
            SGLANG: "SGLang 0.5.23's create_flashmla_kv_indices_triton, grid by the table's width",
            SGLANG_512: "SGLang 0.5.12's, before PR #27320: one program a request",
            READ_TABLE: _READ_TABLE,
            OURS: "xkv.build_page_table",
            LEAST: _LEAST,
        },
        _DEVICE, _DERIVED, _POINT, "page_size",
    ),
    "csr": Section(
        "CSR indices, prefix sums and last page lengths",
        {
            SGLANG: "SGLang 0.5.23's create_flashinfer_kv_indices_triton, one program a request",
            TOKEN_BLOCKS: "the same with TOKEN_BLOCK_PARALLEL, programs by kv_indices_num_token_blocks",
            READ_TABLE: _READ_TABLE,
            OURS: "xkv.build_kv_indices",
            LEAST: _LEAST,
        },
        _DEVICE, _DERIVED, _POINT, "page_size",
        "SGLang's: torch ops for the sums (and, at page 64, the last page lengths), then one kernel, for a"
        " stream of single tokens: what SGLang gives these backends at any page size",
    ),
    "steps": Section(
        "whole metadata steps",
        {
            SGLANG: "what SGLang 0.5.23's backend issues for a step: its kernels and torch ops",
            PLUGIN: "the same, its kernels replaced by xkv's plugin",
            OURS: "one MetadataBuilder.build",
            REPLAY: "CapturedBuild.replay() of one",
        },
        ("launches", *_DEVICE, "host_us"), ("over_sglang",),
        ("workload", "backend", "page_size", "mode"), "workload",
    ),
}  # fmt: skip


class Case(NamedTuple):
    """What is built: of a section, at a page size; in "steps" for a backend in a mode.

    Attributes:
        section: one of SECTIONS.
        page_size: tokens of a page.
        backend: what MetadataBuilder is asked for, and the function of `sequences`; "" for a single op.
        drafts: draft tokens of a verify; 0: decode.
        file: where SGLang's kernel is; "": it has none.
        prefix: ids and lengths end before the draft tokens.
        id_dtype: of what is built.
        note: what else a reader should know.
    """

    section: SectionName
    page_size: int
    backend: str = ""
    drafts: int = 0
    file: str = KV_INDICES
    prefix: bool = False
    id_dtype: str = "int32"
    note: str = ""

    @property
    def mode(self) -> str:
        """For the reader."""
        return f"verify {self.drafts}" if self.drafts else "decode" if self.backend else ""

    @property
    def delta(self) -> int:
        """Tokens that the mode adds to every length."""
        return 0 if self.prefix else self.drafts


def _step(backend: str, size: int, *modes: int, file: str = KV_INDICES, note: str = "") -> list[Case]:
    """A case for each number of draft tokens."""
    return [Case("steps", size, backend, drafts, file, note=note) for drafts in modes]


_TOKENS = "SGLang gives this backend single tokens whatever its page size"
_IN_GRAPH = "SGLang records its kernel in the forward step's graph, as a build may be"
STEPS = (
    *_step("flashmla", 64, 0, note="SGLang's casts the lengths again in every layer"),
    *_step("flashmla", 64, DRAFTS, note="SGLang's casts and adds again in every layer"),
    *_step("cutlass_mla", 128, 0, note="SGLang 0.5.13's; it casts the lengths in every layer"),
    *_step("trtllm_mla", 64, 0, DRAFTS),
    *_step("trtllm_mha", 64, 0, DRAFTS, file=MHA, note=_IN_GRAPH),
    *_step("flash_attention", 64, 0, DRAFTS, file=FLASH),
    *_step("flashinfer_mla", 64, 0, DRAFTS, note=_TOKENS),
    *_step("flashinfer_mla", 1, 0, DRAFTS),
    Case("steps", 1, "triton", id_dtype="int64"),
    Case("steps", 1, "triton", DRAFTS, prefix=True, id_dtype="int64"),
    *_step("aiter_mla", 1, 0, DRAFTS),
    *_step("aiter_unified", 16, 0, file=""),
    *_step("aiter_unified", 16, DRAFTS, file=UNIFIED, note="SGLang's adds to the lengths in every layer"),
)  # fmt: skip


def cases(suite: str, page_sizes: Iterable[int]) -> list[Case]:
    """What a suite builds: single ops at these page sizes, CSR at 64 and 1 alone; steps at their own."""
    if suite == "steps":
        return list(STEPS)
    sizes = tuple(page_sizes)
    return [Case("table", n) for n in sizes] + [Case("csr", n) for n in sizes if n in (64, 1)]
