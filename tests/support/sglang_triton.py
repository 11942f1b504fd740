"""SGLang's Triton backend, as its published files have its methods, on stand-ins of what these read."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from engine_texts import CACHE, ROOT, Text, load
from packaging.version import Version

from xkv.integrations.sglang import table

RECORD = json.loads((ROOT / "docs" / "engines-support.json").read_text())["sglang"]
NAMES = [row.name for row in table.STEPS]
WIDTH, ROWS, MAX_BATCH = 40, 6, 5
GUARD = -7


def _known(version: str) -> bool:
    found = RECORD[version]
    return all(
        row.name in found and all(code in row.codes for _, code in found[row.name]) for row in table.STEPS
    )


VERSIONS = [version for version in sorted(RECORD, key=Version) if _known(version)]
# the last version of each set of texts
TEXTS = list({str([RECORD[v][name][0][1] for name in NAMES]): v for v in VERSIONS}.values())


def text(version: str, name: str) -> Text:
    (module, code), *_ = RECORD[version][name]
    found = Text("sglang", version, name, module, code)
    if not found.path.is_file():
        pytest.skip(f"no {CACHE.name} here with the engines' files: see ci/support.py")
    return found


@triton.jit
def num_kv_splits(
    num_kv_splits_ptr, seq_lens_ptr, num_seq, num_group, num_head, num_kv_head, max_kv_splits,
    device_core_count, MAX_NUM_SEQ: tl.constexpr,
):  # fmt: skip
    """Not SGLang's numbers, but such as depend on each argument."""
    i = tl.arange(0, MAX_NUM_SEQ)
    value = tl.load(seq_lens_ptr + i, mask=i < num_seq, other=0) + num_head * 3 + num_kv_head * 5
    value += max_kv_splits * 7 + device_core_count
    for g in range(num_group):
        tl.store(num_kv_splits_ptr + i * num_group + g, value, mask=i < num_seq)


@triton.jit
def num_kv_splits_uneven(
    num_kv_splits_ptr, seq_lens_ptr, num_seq, num_group, num_head, num_kv_head, max_kv_splits,
    device_core_count, MAX_NUM_SEQ: tl.constexpr, uneven_batch_ptr=None,
):  # fmt: skip
    i = tl.arange(0, MAX_NUM_SEQ)
    if uneven_batch_ptr is not None:
        tl.store(uneven_batch_ptr, num_seq)
    value = tl.load(seq_lens_ptr + i, mask=i < num_seq, other=0) + num_head * 3 + num_kv_head * 5
    value += max_kv_splits * 7 + device_core_count
    for g in range(num_group):
        tl.store(num_kv_splits_ptr + i * num_group + g, value, mask=i < num_seq)


class Kernel:
    """A Triton kernel that counts its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches, self.arg_names = kernel, 0, kernel.arg_names
        self.pre_run_hooks = getattr(kernel, "pre_run_hooks", True)

    def __getitem__(self, grid: Any) -> Any:
        self.launches += 1
        return self.kernel[grid]


def splits_kernel(uneven: bool) -> Any:
    return num_kv_splits_uneven if uneven else num_kv_splits


class Metadata:
    """In the place of SGLang's dataclass: what of it an extending step sets."""

    def __init__(self, *fields: Any, **others: Any) -> None:
        assert len(fields) == 13
        self.fields, self.others = fields, others


class Engine:
    """A version's methods in a class, with what they call."""

    def __init__(self, version: str, ours: bool) -> None:
        from sglang_standins import create_flashinfer_kv_indices_triton

        self.indices = Kernel(create_flashinfer_kv_indices_triton)
        self.splits = Kernel(splits_kernel(version == "0.5.23"))
        self.windows: list[Any] = []
        names = {
            "create_flashinfer_kv_indices_triton": self.indices, "get_num_kv_splits_triton": self.splits,
            "update_sliding_window_buffer": self._window, "KVLocPlan": None, "ForwardMode": None,
            "Optional": Any, "SpecInput": None, "ForwardBatch": None, "ForwardMetadata": Metadata,
        }  # fmt: skip
        members = {}
        for row in table.STEPS:
            method = load(text(version, row.name), **names)
            name = row.name.split(".")[1]
            host = SimpleNamespace(**{name: method})
            if ours:
                assert row.replace(host) is None
            members[name] = vars(host)[name]
        self.backend = type("TritonAttnBackend", (), members)

    def _window(self, indptr: Any, *args: Any, **kwargs: Any) -> Any:
        self.windows.append(args)
        return indptr, None, torch.ones(MAX_BATCH, dtype=torch.int64, device=indptr.device), None


class Translator:
    """SGLang's, where ids are not translated: 0.5.20 and 0.5.21 fill, 0.5.22 and 0.5.23 pack."""

    reads_are_translated = False

    def __init__(self, req_to_token: torch.Tensor, kernel: Kernel) -> None:
        self.req_to_token, self.kernel = req_to_token, kernel

    def _launch(self, rows: Any, lens: Any, indptr: Any, out: Any) -> None:
        self.kernel[(lens.numel(),)](
            self.req_to_token, rows, lens, indptr, None, out, self.req_to_token.stride(0)
        )

    def fill_packed_read_stream(
        self, *, req_pool_indices: Any, seq_lens: Any, indptr: Any, total_tokens: int, out: Any
    ) -> None:
        self._launch(req_pool_indices, seq_lens, indptr, out)

    def pack_read_stream(
        self, plan: Any, *, req_pool_indices: Any, seq_lens: Any, indptr: Any, out: Any
    ) -> None:
        self._launch(req_pool_indices, seq_lens, indptr, out)


def make(engine: Engine, seed: int, device: str, **others: Any) -> Any:
    """A backend with a graph's buffers, all but their first entries' guards."""
    rng = random.Random(seed)
    self = engine.backend()
    new = lambda n, dtype, value=GUARD: torch.full((n,), value, dtype=dtype, device=device)  # noqa: E731
    ids = [[rng.randrange(1 << 20) for _ in range(WIDTH)] for _ in range(ROWS)]
    self.req_to_token = torch.tensor(ids, dtype=torch.int32, device=device)
    self.kv_index_translator = Translator(self.req_to_token, engine.indices)
    self.kv_indptr = new(MAX_BATCH + 3, torch.int32)
    self.kv_indptr[0] = 0
    self.cuda_graph_kv_indices = new(MAX_BATCH * WIDTH, torch.int64)
    self.cuda_graph_num_kv_splits = new(MAX_BATCH + 2, torch.int32)
    self.cuda_graph_window_num_kv_splits = new(MAX_BATCH + 2, torch.int32)
    self.cuda_graph_window_kv_indices = None
    self.cuda_graph_uneven_batch = new(1, torch.int32)
    self.window_kv_indptr = new(MAX_BATCH + 1, torch.int32)
    self.sliding_window_size, self.dcp_size, self.token_to_kv_pool = None, 1, None
    self.static_kv_splits = self.enable_deterministic = False
    self.split_tile_size, self._translate_kv_loc = None, None
    self.qo_indptr = new(MAX_BATCH + 3, torch.int64)
    self.qo_indptr[0] = 0
    self.device, self.max_context_len, self.dllm_attention = torch.device(device), WIDTH, None
    self.use_sliding_window_kv_pool = False
    self.kv_index_translator.is_translating = False
    self.device_core_count, self.num_head, self.num_kv_head, self.max_kv_splits = 132, 8, 2, 8
    vars(self).update(others)
    return self


def batch_of(seed: int, device: str, lens_dtype: torch.dtype) -> tuple[int, torch.Tensor, torch.Tensor]:
    rng = random.Random(f"batch {seed}")
    batch = rng.randint(1, MAX_BATCH)
    low = rng.choice([0, 1])
    rows = torch.tensor([rng.randrange(ROWS) for _ in range(batch)], device=device)
    lens = torch.tensor([rng.randint(low, WIDTH) for _ in range(batch)], dtype=lens_dtype, device=device)
    return batch, rows, lens


DECODE = SimpleNamespace(is_decode_or_idle=lambda: True, is_target_verify=lambda: False)


def buffers(self: Any) -> list[torch.Tensor]:
    return [
        self.kv_indptr, self.cuda_graph_kv_indices, self.cuda_graph_num_kv_splits,
        self.cuda_graph_window_num_kv_splits, self.cuda_graph_uneven_batch, self.window_kv_indptr,
    ]  # fmt: skip


def run_decode(self: Any, *given: Any) -> None:
    method = getattr(
        type(self)._apply_cuda_graph_metadata, "xkv_original", type(self)._apply_cuda_graph_metadata
    )
    names = method.__code__.co_varnames[: method.__code__.co_argcount]
    plan = {"plan": None} if "plan" in names else {}
    batch, rows, lens = given
    self._apply_cuda_graph_metadata(
        **plan, bs=batch, req_pool_indices=rows, seq_lens=lens, forward_mode=DECODE, spec_info=None
    )


def run_fill(self: Any, batch: int, rows: Any, lens: Any, out: Any) -> Any:
    method = getattr(
        type(self)._fill_kv_indptr_and_indices, "xkv_original", type(self)._fill_kv_indptr_and_indices
    )
    plan = [None] if "plan" in method.__code__.co_varnames else []
    return self._fill_kv_indptr_and_indices(*plan, batch, lens, rows, out)


def extending(rows: Any, lens: Any, queries: list[int], mode: str = "EXTEND", **others: Any) -> Any:
    """A ForwardBatch of a step that extends: lengths are those of the prefixes."""
    no = lambda *args, **kwargs: False  # noqa: E731
    extend_seq_lens = torch.tensor(queries, dtype=torch.int32, device=rows.device)
    fields = {
        "forward_mode": SimpleNamespace(
            name=mode, is_decode_or_idle=no, is_target_verify=no, is_draft_extend=no, is_draft_extend_v2=no
        ),
        "batch_size": len(queries), "spec_info": None, "req_pool_indices": rows, "extend_prefix_lens": lens,
        "extend_prefix_lens_cpu": lens.tolist(), "extend_seq_lens": extend_seq_lens,
        "extend_seq_lens_cpu": queries, "out_cache_loc": torch.zeros(3), "kv_loc_plan": None,
    }  # fmt: skip
    return SimpleNamespace(**(fields | others))
