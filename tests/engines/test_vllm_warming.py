"""What is compiled at vLLM's start is what its steps launch; a start that cannot be warmed up goes on."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_vllm_step import engine, runner_and_batch  # noqa: F401  (a fixture)

from xkv.integrations.vllm import launching, lengths, warming
from xkv.launch import compile, launch
from xkv.params import Build


@pytest.mark.interpret
@pytest.mark.parametrize("seed", range(4))
def test_what_steps_launch_was_prepared(
    engine: SimpleNamespace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch, seed: int, device: str,
) -> None:  # fmt: skip
    prepared: set[Any] = set()
    launched: set[Any] = set()

    def prepare(self: Any, on: int, dtypes: Any, numbers: int, constexprs: Any) -> None:
        prepared.add((self._name, on, dtypes, numbers, constexprs))

    def launch(self: Any, on: int, grid: Any, tensors: Any, numbers: Any, constexprs: Any) -> None:
        dtypes = tuple(None if x is None else x.dtype for x in tensors)
        launched.add((self._name, on, dtypes, len(numbers), constexprs))

    monkeypatch.setattr(launching.Launcher, "prepare", prepare)
    monkeypatch.setattr(launching.Launcher, "__call__", launch)
    runner, batch = runner_and_batch(engine, seed, device)
    tables = runner.block_tables
    runner.input_buffers = SimpleNamespace(query_start_loc=batch.query_start_loc, positions=batch.positions)
    one = engine.v1.BlockTable(4, 2, 3, 8, False, tables.device, 1)
    old = SimpleNamespace(
        input_batch=SimpleNamespace(block_table=SimpleNamespace(block_tables=[one])),
        query_start_loc=SimpleNamespace(gpu=batch.query_start_loc), positions=batch.positions,
    )  # fmt: skip
    warming.block_tables(runner)
    warming.slot_mapping(old)
    runner.prepare_attn(batch)
    tables.gather_block_tables(batch.idx_mapping, 1)  # as speculators do
    tables.gather_block_tables(batch.idx_mapping, 1, num_computed_tokens=batch.query_start_loc)
    tables.compute_slot_mappings(batch.idx_mapping, batch.query_start_loc, batch.positions, 1)
    one.compute_slot_mapping(1, batch.query_start_loc, batch.positions[:1])
    assert {name for name, *_ in launched} == {"gather_and_slots", "gather_block_tables", "slot_mappings"}
    assert launched <= prepared


@pytest.mark.parametrize("ranks", [1, 4])
def test_lengths_of_a_rank_were_compiled(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[Build] = []
    monkeypatch.setattr(compile, "warm", lambda build, most: len(warmed.append(build) or warmed))
    out, lens = (torch.zeros(8, dtype=torch.int32) for _ in "ab")
    runner = SimpleNamespace(
        block_tables=SimpleNamespace(cp_size=ranks, cp_rank=1, cp_interleave=2),
        input_buffers=SimpleNamespace(dcp_local_seq_lens=out, seq_lens=lens),
    )
    warming.local_lengths(runner)
    with launch.compile_only() as builds:
        assert lengths.dcp_local_seq_lens((1,), out, lens, 4, 1, 2, 5, 8, 128)
    kinds = [(build.shard, build.writes_ids, build.access_pattern) for build in (*warmed, *builds)]
    assert len(kinds) == 1 + (ranks > 1)
    assert len(set(kinds)) == 1


def test_a_start_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "vllm.xkv")
    worker = SimpleNamespace(model_runner=SimpleNamespace(block_tables=object(), device=torch.device("cpu")))
    assert warming.kernel_warmup(lambda given, **more: (given, more), worker, a=1) == (worker, {"a": 1})
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("xkv compiles block_tables while serving, not at the start: AttributeError: ")
