"""What the plugin compiles as SGLang starts: all that its backends' calls come to; no start fails for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from xkv.integrations.patching import importing
from xkv.integrations.sglang import context_parallel, kv_indices, metadata, page_tables, triton_steps, warmup
from xkv.launch import compile, launch
from xkv.params import Build

IDS = torch.arange(4 * 256, dtype=torch.int32).view(4, 256)
ROWS, LENS = torch.tensor([1, 0]), torch.tensor([70, 3])
INT32 = {"dtype": torch.int32}


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[Build]:
    builds: list[Build] = []

    def warm(build: Build, max_batch: int | None) -> int:
        assert max_batch is None
        builds.append(build)
        return 1

    monkeypatch.setattr(compile, "warm", warm)
    return builds


def backend(name: str, *bases: str, within: str = warmup._WITHIN, **fields: Any) -> Any:
    kinds = tuple(type(base, (), {"__module__": f"{within}.it"}) for base in bases)
    self = type(name, kinds, {"__module__": f"{within}.it"})()
    vars(self).update({"req_to_token": IDS} | fields)
    return self


def signature(build: Build) -> Any:
    """What a compiled kernel depends on."""
    kinds = [compile._argument_signature(x) for x in compile.named_arguments(build).values()]
    return (
        build.form,
        build.page_size,
        build.pad_value is not None,
        build.indptr_is_input,
        build.access_pattern,
        build.shard and build.shard.size,
        *kinds,
    )


def calls(act: Callable[[], Any]) -> list[Any]:
    with launch.compile_only() as builds:
        act()
    assert builds
    return [signature(build) for build in builds]


def triton_call() -> None:
    self = SimpleNamespace(req_to_token=IDS, kv_indptr=torch.zeros(3, **INT32))
    for lens in (LENS, LENS.int()):
        out = torch.empty(73, dtype=torch.int64)
        triton_steps.fill_kv_indptr_and_indices(lambda self, bs, seq_lens, req_pool_indices, kv_indices: None,
                                                self, 2, lens, ROWS, out)  # fmt: skip


def stream_call(dtype: torch.dtype) -> None:
    for start in (None, LENS.int()):
        kv_indices.create_flashinfer_kv_indices_triton(
            (2,),
            IDS,
            ROWS,
            LENS,
            torch.tensor([0, 70, 73], **INT32),
            start,
            torch.empty(73, dtype=dtype),
            256,
        )


def table_call(page_size: int) -> None:
    out = torch.empty(2, 4, **INT32)
    page_tables.create_flashmla_kv_indices_triton((2,), IDS, ROWS, LENS, None, out, 256, 4, page_size)


def mha_call(mapping: Any) -> None:
    out, two = torch.empty(2, 4, **INT32), None if mapping is None else torch.empty(2, 4, **INT32)
    sums = torch.zeros(3, **INT32)
    for q_mode in (0, 1, 2):
        metadata.update_trtllm_mha_graph_metadata_kernel(
            (2,), ROWS, LENS, IDS, mapping, None, LENS.int(), torch.empty(2, **INT32), sums, sums.clone(),
            out, two, None, 2, 3, 4, 5, 0, 0, 256, 4, 4, 64, mapping is not None, False, q_mode, 1, 1,
        )  # fmt: skip


def rank_indices_call() -> None:
    for start in (None, LENS.int()):
        context_parallel.create_triton_kv_indices_for_dcp_triton(
            (2,), IDS, ROWS, LENS.int(), torch.tensor([0, 70, 73], **INT32), start,
            torch.empty(73, dtype=torch.int64), 256, 4, 1,
        )  # fmt: skip


def rank_table_call(page_size: int, v2p: Any) -> None:
    context_parallel.create_mla_kv_page_table_for_dcp(
        (2, 1), IDS, ROWS, LENS, torch.empty(2, 4, **INT32), v2p, 256, 4, page_size, 4, 3, 64, v2p is not None
    )


def ragged_call() -> None:
    rows, sums, out = torch.empty(4, 8, **INT32), torch.zeros(3, **INT32), torch.empty(9, **INT32)
    context_parallel.compact_dcp_verify_token_table_to_ragged((2,), rows, LENS.int(), sums, out, 8, 2, 1)


V2P = torch.arange(64)
RANKS: dict[str, Any] = {"dcp_world_size": 4}
VIRTUAL = {"kv_index_translator": SimpleNamespace(full_v2p_table=V2P)}
CASES = [
    (backend("TritonAttnBackend", sliding_window_size=None), triton_call),
    (backend("TritonAttnBackend", sliding_window_size=8), lambda: stream_call(torch.int64)),
    (backend("TritonAttnBackend", num_draft_tokens=4), lambda: stream_call(torch.int32)),
    (backend("FlashInferAttnBackend"), lambda: stream_call(torch.int32)),
    (backend("FlashMLABackend", "FlashInferMLAAttnBackend"), lambda: table_call(64)),
    (backend("FlashMLABackend", "FlashInferMLAAttnBackend"), lambda: stream_call(torch.int32)),
    (backend("CutlassMLABackend"), lambda: table_call(128)),
    (backend("TRTLLMMLABackend", page_size=32), lambda: table_call(32)),
    (backend("TRTLLMHAAttnBackend", page_size=64), lambda: mha_call(None)),
    (
        backend("TRTLLMHAAttnBackend", page_size=64, token_to_kv_pool=SimpleNamespace(
            full_to_swa_index_mapping=torch.arange(2000))),
        lambda: mha_call(torch.arange(2000)),
    ),
    (backend("TritonAttnBackend", dcp_size=4), rank_indices_call),
    (backend("AiterAttnBackend", **RANKS), lambda: rank_table_call(1, None)),
    (backend("AiterAttnBackend", **RANKS), ragged_call),
    (
        backend("TRTLLMMLABackend", page_size=64, **VIRTUAL, **RANKS),
        lambda: rank_table_call(64, V2P),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("made", "call"), CASES, ids=[f"{n} {type(x).__name__}" for n, (x, _) in enumerate(CASES)]
)
def test_calls_are_warmed_up(made: Any, call: Callable[[], Any], warmed: list[Build]) -> None:
    outer = backend("HybridAttnBackend", decode_backend=made)
    del outer.req_to_token  # what only holds others needs no table
    assert warmup.warm(SimpleNamespace(attn_backend=outer, model=object())) == len(warmed) > 0
    known = {signature(build) for build in warmed}
    assert not [x for x in calls(call) if x not in known]


def test_flashinfer_s_table_is_in_what_updates_its_indices(warmed: list[Build]) -> None:
    made = backend("FlashInferAttnBackend", indices_updater_decode=SimpleNamespace(req_to_token=IDS))
    del made.req_to_token
    assert warmup.warm(SimpleNamespace(attn_backend=made)) == 2


def test_ranks_that_the_module_of_a_backend_knows(
    warmed: list[Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend("TRTLLMMLABackend", page_size=64)
    count = warmup.warm(SimpleNamespace(attn_backend=made))
    module = ModuleType(type(made).__module__)
    module.get_parallel = lambda: SimpleNamespace(dcp_size=2)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert warmup.warm(SimpleNamespace(attn_backend=made)) == count + 1
    assert warmed[-1].shard is not None
    assert warmed[-1].shard.size == 2


def test_what_fails_is_said_and_the_engine_starts(
    warmed: list[Build], caplog: pytest.LogCaptureFixture
) -> None:
    broken = backend("TritonAttnBackend", req_to_token=None)
    foreign = backend("TritonAttnBackend", within="elsewhere")
    runner = SimpleNamespace(a=broken, b=backend("CutlassMLABackend"), c=foreign)
    with caplog.at_level(logging.INFO, "sglang.xkv"):
        assert warmup.warm(runner) == 1
    warning, info = (record.getMessage() for record in caplog.records)
    assert warning.startswith("xkv does not warm up for TritonAttnBackend: AttributeError: ")
    assert info.startswith("xkv compiled or loaded 1 kernels for CutlassMLABackend in ")


@pytest.mark.parametrize("name", [*warmup._METHODS, "another"])
def test_it_comes_after_the_backends(
    name: str, warmed: list[Build], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(self: Any) -> str:
        self.attn_backend = backend("CutlassMLABackend")
        return "as before"

    module = ModuleType(warmup._RUNNER)
    module.__spec__ = SimpleNamespace(_initializing=False)  # type: ignore[assignment]
    module.ModelRunner = type("ModelRunner", (), {name: init})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, warmup._RUNNER, module)
    with caplog.at_level(logging.INFO, "sglang.xkv"):
        warmup.at_start()
        warmup.at_start()  # again: changes nothing
    assert getattr(module.ModelRunner(), name)() == "as before"
    assert len(warmed) == (name != "another")
    assert any("does not warm up" in line for line in caplog.messages) == (name == "another")


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XKV_DISABLE", "1")
    importing._waiting.pop(warmup._RUNNER, None)
    warmup.at_start()
    assert warmup._RUNNER not in importing._waiting
