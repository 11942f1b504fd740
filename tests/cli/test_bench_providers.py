"""`python -m xkv bench`: every provider of every case against the oracle, and what the oracle sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang_standins
import torch
from benching import PEERS, TINY, make_inputs, needs_peers

import xkv
from xkv.cli.bench import inputs, kernels, least, oracle, predecessor, providers
from xkv.cli.bench.cases import (
    DRAFTS,
    KV_INDICES,
    OURS,
    PLUGIN,
    READ_TABLE,
    REPLAY,
    SECTIONS,
    SGLANG,
    SGLANG_512,
    STEPS,
    TOKEN_BLOCKS,
    Case,
    cases,
)  # fmt: skip
from xkv.cli.bench.inputs import Inputs, Step
from xkv.cli.bench.providers import Provider
from xkv.cli.bench.sglang import Plugin, SGLang
from xkv.cli.bench.workloads import Workload
from xkv.integrations.patching.codes import code_of
from xkv.integrations.sglang import table
from xkv.launch import compile

K = 1024
OPS = cases("ops", (64, 16, 1))
EDGES = Workload("edges", (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 700, K - DRAFTS), K)
LOADS = (*TINY, EDGES, Workload("full", (K - DRAFTS,), K), Workload("drawn", (90,) * 7, K, spread=True))
# slow in the interpreter, where a step says no more than an op
CASES = (*OPS, *(() if compile.interpreted() else STEPS))
named = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.section}-{case.backend}-{case.page_size}-{case.mode}"
)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps; of a builder on the CPU, a replay is a build."""
    capture = xkv.MetadataBuilder.capture

    def capture_or_build(self: xkv.MetadataBuilder, size: int, **options: Any) -> Any:
        if self.req_to_token.device.type == "cuda":
            return capture(self, size, **options)
        return SimpleNamespace(replay=lambda: self.build(**options))

    monkeypatch.setattr(inputs, "LAUNCHES", 2 if compile.interpreted() else 3)
    monkeypatch.setattr(xkv.MetadataBuilder, "capture", capture_or_build)


def test_cases() -> None:
    """Every backend has a decode, a verify wherever SGLang has one; every section's providers are there.

    But for some of GQA, for which SGLang's ops are not written down.
    """
    gqa = {"flashinfer_decode", "flashinfer_prefill", "aiter_pa", "aiter_pa_ragged", "aiter_batch_prefill"}
    names = {spec.name for spec in xkv.backends("cpu")} - gqa
    assert {case.backend for case in STEPS if not case.drafts} == names
    assert {case.backend for case in STEPS if case.drafts} == names - {"cutlass_mla"}
    assert len(set(STEPS)) == len(STEPS)
    dtypes = {spec.name: spec.id_dtype for spec in xkv.backends("cpu")}
    assert all(case.id_dtype == dtypes[case.backend] for case in STEPS)
    assert [(case.section, case.page_size) for case in cases("ops", (64, 16))] == [
        ("table", 64), ("table", 16), ("csr", 64),
    ]  # fmt: skip
    for section in SECTIONS.values():
        assert {SGLANG, OURS} <= set(section.providers)
        assert section.panel in section.labels


WHO = {
    "table": [SGLANG, SGLANG_512, READ_TABLE, OURS],
    "csr": [SGLANG, TOKEN_BLOCKS, READ_TABLE, OURS],
    "steps": [SGLANG, OURS, REPLAY],
}


def made(at: Inputs, *folders: Path) -> dict[str, Provider]:
    if at.case.backend and at.case.backend not in {spec.name for spec in xkv.backends(at.source.device)}:
        pytest.skip(f"{at.case.backend} is for another platform")
    found = providers.makers(at, SGLang(folders), Plugin(folders))
    return {name: make() for name, make in found.items()}


@named
def test_all_against_the_oracle(case: Case, stubs: Path, device: str) -> None:
    assert SGLang([stubs]).missing == []
    for load in LOADS[:2] if compile.interpreted() else LOADS:
        at = make_inputs(case, load, device)
        found = made(at, stubs)
        assert list(found) == WHO[case.section]
        assert {name: oracle.difference(at, each) for name, each in found.items()} == dict.fromkeys(found, "")


@named
def test_xkv_alone(case: Case, device: str) -> None:
    """Without any peer: in the reference, the interpreter or on a GPU."""
    sglang = SGLang([])
    assert sglang.missing == list(sglang.files)
    at = make_inputs(case, TINY[0], device)
    found = made(at)
    # what aiter_unified issues for a decode is torch alone
    own = [SGLANG] * (not case.file)
    assert list(found) == [*own, *(name for name in WHO[case.section] if name.startswith("xkv"))]
    assert {oracle.difference(at, each) for each in found.values()} == {""}


@needs_peers
@pytest.mark.kernel
@named
def test_sglang_s_kernels_against_the_oracle(case: Case, device: str) -> None:
    assert PEERS
    at = make_inputs(case, EDGES, device)
    for name, each in made(at, Path(PEERS)).items():
        assert (name, oracle.difference(at, each)) == (name, "")


@pytest.fixture
def replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-ins where SGLang has its kernels, as texts that the plugin knows."""
    (tmp_path / Path(KV_INDICES).name).write_bytes(Path(sglang_standins.__file__).read_bytes())
    assert not Plugin([tmp_path]).has(KV_INDICES)
    code = {x.fn.__name__: code_of(x.fn) for x in vars(sglang_standins).values() if hasattr(x, "fn")}
    rows = [row._replace(codes={code[row.name]: next(iter(row.codes.values()))}) for row in table.KERNELS]
    monkeypatch.setattr(table, "KERNELS", tuple(rows))
    return tmp_path


@pytest.mark.kernel
@pytest.mark.parametrize("backend", ["flashmla", "flashinfer_mla"])
def test_the_plugin_answers_sglang_s_calls(backend: str, replaced: Path, device: str) -> None:
    case = next(case for case in STEPS if case.backend == backend)
    at = make_inputs(case, TINY[0], device)
    found = made(at, replaced)
    assert list(found) == [SGLANG, PLUGIN, OURS, REPLAY]
    assert {oracle.difference(at, each) for each in found.values()} == {""}
    assert not Plugin([replaced]).has("")


def put(index: int | tuple[int, int], value: int = -3) -> Any:
    def how(x: torch.Tensor) -> torch.Tensor:
        x[index] = value
        return x

    return how


LEN, TABLE, CSR = "kv_last_page_len", Case("table", 64), Case("csr", 64)
STEP = {case.backend: case for case in reversed(STEPS) if not case.drafts}
SPOIL = [
    (TABLE, "page_table", put((1, 0)), "page_table: live entry 11 is -3, not"),
    (TABLE, "page_table", put((1, 1)), ""),
    # what a call leaves out is not taken from the call before it
    (TABLE, "page_table", put((4, 1), -7), "page_table: live entry 16 is -7, not"),
    (TABLE, "page_table", lambda x: x[:, :10], "page_table: there are 10 columns, too few"),
    (CSR, "kv_indices", put(16), "kv_indices: live entry 16 is -3, not"),
    (CSR, "kv_indices", put(17), ""),
    (CSR, "kv_indices", lambda x: x[:16], "kv_indices: (16,) torch.int32, not (17,) torch.int32"),
    (CSR, "kv_indptr", put(0, 1), "kv_indptr: live entry 0 is 1, not 0"),
    (CSR, "kv_indptr", put(5, 1), "kv_indptr: live entry 5 is 1, not 17"),
    (CSR, LEN, put(3, 2), "kv_last_page_len: live entry 3 is 2, not 1"),
    (STEP["flashmla"], "page_table", put((0, 10)), "page_table: live entry 10 is -3, not"),
    (STEP["flashmla"], "page_table", put((0, 11)), ""),
    (STEP["flashmla"], "cache_seqlens", put(1), "cache_seqlens: live entry 1 is -3, not 1"),
    (STEP["flashmla"], "cache_seqlens", lambda x: x.long(), "cache_seqlens: (5,) torch.int64, not (5,)"),
    (STEP["flashmla"], "page_table", lambda x: None, "there is neither page_table nor kv_indices"),
    (STEP["trtllm_mha"], "cu_seqlens_k", put(2), "cu_seqlens_k: live entry 2 is -3, not 701"),
    (STEP["trtllm_mha"], "cu_seqlens_q", put(2), "cu_seqlens_q: live entry 2 is -3, not 2"),
    (STEP["triton"], "kv_indices", put(956), "kv_indices: live entry 956 is -3"),
    (STEP["triton"], "kv_indices", put(957), ""),
    (STEP["triton"], "kv_indices", lambda x: x.int(), "kv_indices: (957,) torch.int32, not (957,) "),
    (STEP["flashinfer_mla"], "kv_indptr", lambda x: x[1:], "kv_indptr: (5,) torch.int32, not (6,) torch"),
    (STEP["aiter_mla"], LEN, put(0), "kv_last_page_len: live entry 0 is -3, not 1"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "name", "how", "said"), SPOIL)
def test_the_oracle_sees(case: Case, name: str, how: Any, said: str, stubs: Path) -> None:
    at = make_inputs(case, TINY[0], "cpu")
    each = made(at, stubs)[SGLANG if case.backend else OURS]

    def spoilt(step: Step) -> Any:
        results = each.call(step)
        results = dict(each.results or results)
        return results | {name: how(results[name])}

    found = oracle.difference(at, dataclasses.replace(each, call=spoilt, results=None))
    assert found.startswith(f"step 0: {said}") if said else not found


def test_the_oracle_sees_what_is_not_there() -> None:
    at = make_inputs(STEP["flashmla"], TINY[0], "cpu")
    ours = made(at)[OURS]
    call = ours.call

    def less(step: Step) -> Any:
        built = call(step)
        return {name: getattr(built, name) for name in ours.fields if name != "cache_seqlens"}

    assert oracle.difference(at, dataclasses.replace(ours, call=less)) == "step 0: there is no cache_seqlens"


def test_every_step_is_compared() -> None:
    at = make_inputs(STEP["flashmla"], TINY[0], "cpu")
    ours, first = made(at)[OURS], at.steps[0]
    stale = dataclasses.replace(ours, call=lambda step: ours.call(first))
    assert oracle.difference(at, stale).startswith("step 1: page_table: live entry ")


@pytest.mark.kernel
@pytest.mark.parametrize("case", OPS, ids=lambda case: f"{case.section}-{case.page_size}")
def test_the_kernels_of_least(case: Case, device: str) -> None:
    """All of them build the point; a width that is no multiple of 4 too."""
    for load in (*TINY, Workload("odd", (150, 33), 161 * case.page_size + 1)):
        at = make_inputs(case, load, device)
        found = least.candidates(at, made(at)[OURS].results or {})
        assert len(found) == 8
        assert {name: oracle.difference(at, each) for name, each in found.items()} == dict.fromkeys(found, "")


@pytest.mark.kernel
def test_least_sums_a_batch_in_chunks(device: str) -> None:
    at = make_inputs(CSR, Workload("many", (3, 70) * 130, 90), device)
    found = least.candidates(at, made(at)[OURS].results or {})
    assert least.candidates(make_inputs(STEPS[0], TINY[1], device), {}) == {}  # whole steps have none
    one = dataclasses.replace(at, steps=at.steps[:1])
    assert oracle.difference(one, found["programs a row: 1, 512 entries, 4 warps"]) == ""


@pytest.mark.kernel
def test_the_kernel_before(device: str) -> None:
    """It changes nothing; its kernel does add: another value than 0 arrives."""
    lens = torch.arange(700, device=device)
    predecessor.add(lens)
    predecessor.early(lens, use_pdl=False)
    assert torch.equal(lens, torch.arange(700, device=device))
    kernels.early_add[(1,)](lens, 3, 2, TILE=8, USE_PDL=False)
    assert lens[:4].tolist() == [3, 4, 2, 3]
