"""Every text that the plugins replace, from the published wheels, beside xkv's launch for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sglang_calls
import torch
import vllm_calls
from engine_texts import CACHE, ROOT, Text, first_and_last, load

from xkv.cli.check.memory import whole
from xkv.integrations.patching import replacing
from xkv.integrations.sglang import draft
from xkv.integrations.sglang import table as sglang
from xkv.integrations.vllm import table as vllm

RECORD = json.loads((ROOT / "docs" / "engines-support.json").read_text())
CASES = 4
SGLANG = list(first_and_last("sglang", RECORD["sglang"], sglang.KERNELS))
METHODS = list(first_and_last("sglang", RECORD["sglang"], sglang.METHODS))
VLLM = list(first_and_last("vllm", RECORD["vllm"], vllm.KERNELS))


def by_text(texts: list[Text]) -> pytest.MarkDecorator:
    ids = [f"{text.name}-{text.engine}-{text.version}" for text in texts]
    return pytest.mark.parametrize("text", texts, ids=ids)


def here(text: Text) -> None:
    if not text.path.is_file():
        pytest.skip(f"no {CACHE.name} here with the engines' files: see ci/support.py")


def replaced(text: Text, rows: Any) -> tuple[Any, Callable[..., bool]]:
    here(text)
    kernel = load(text)
    row = next(row for row in rows if row.name == text.name)
    assert row.replace(SimpleNamespace(**{text.name.rsplit(".")[-1]: kernel})) is None
    return kernel, kernel.xkv_launch


@pytest.mark.interpret
@by_text(SGLANG)
def test_sglang_s_kernel(text: Text, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "PREPARED_AT", 1)
    kernel, launch = replaced(text, sglang.KERNELS)
    rng, served, tried = random.Random(f"{text}"), 0, 0
    while tried < CASES:
        call = sglang_calls.CALLS[text.name](rng, device)
        if "full_to_swa_numel" not in kernel.arg_names:
            call.args.pop("full_to_swa_numel", None)
        if not sglang_calls.fits(kernel, call):
            continue
        want = sglang_calls.twin(call)
        sglang_calls.original(kernel)(want.grid)(**want.args)
        given = [call.args[name] for name in kernel.arg_names if name in call.args]
        if launch(call.grid, *given) if tried % 2 else launch(call.grid, **call.args):
            sglang_calls.assert_same(call, want)
            served += 1
        tried += 1
    assert served >= CASES // 2, "the original ran nearly always"


@pytest.mark.interpret
@by_text(VLLM)
def test_vllm_s_kernel(text: Text, device: str) -> None:
    kernel, launch = replaced(text, vllm.KERNELS)
    served, names = 0, kernel.arg_names
    for seed in range(2 * CASES):
        theirs, ours = (
            vllm_calls.CALLS[text.name](random.Random(f"{text.name} {seed}"), device, names) for _ in range(2)
        )
        sglang_calls.original(kernel)(theirs.grid)(*[theirs.args[name] for name in names])
        given = {name: ours.args[name] for name in names}
        if launch(ours.grid, *given.values()) if seed % 2 else launch(ours.grid, **given):
            for a, b in zip(ours.written, theirs.written, strict=True):
                assert torch.equal(whole(a), whole(b)), seed
            served += 1
    assert served >= CASES, "the original ran nearly always"


CONTEXT, PAGE = 512, 32


def backend(device: str) -> SimpleNamespace:
    """As much of a TRTLLM MLA backend as its metadata methods read, with a graph's buffers."""
    rng = random.Random(3)
    ids = torch.tensor([[rng.randrange(40) * PAGE for _ in range(CONTEXT)] for _ in range(5)])
    new = lambda *shape: torch.full(shape, -9, dtype=torch.int32, device=device)  # noqa: E731
    meta = SimpleNamespace(seq_lens_k=new(4), block_kv_indices=new(4, CONTEXT // PAGE), seq_lens_q=new(4))
    return SimpleNamespace(
        req_to_token=ids.int().to(device), page_size=PAGE, num_draft_tokens=4, _v2p_page_table=None,
        _kernel_page_multiplier=1, decode_cuda_graph_metadata={4: meta},
        kv_index_translator=SimpleNamespace(is_translating=False),
        rows=torch.tensor([4, 0, 2, 2], device=device), lens=torch.tensor([1, 500, 33, 64], device=device),
    )  # fmt: skip


def mode(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        is_target_verify=lambda: name == "verify", is_decode_or_idle=lambda: name == "decode",
        is_draft_extend_v2=lambda: False, is_draft_extend=lambda include_v2: False,
    )  # fmt: skip


@pytest.mark.interpret
@pytest.mark.parametrize("what", ["decode", "verify"])
@by_text(METHODS)
def test_sglang_s_method(text: Text, what: str, device: str) -> None:
    here(text)
    names = ("create_flashmla_kv_indices_triton", "get_num_kv_index_blocks_flashmla")
    launched: list[Any] = []
    module = RECORD["sglang"][text.version][names[0]][0][0]
    file = Text("sglang", text.version, names[0], module, "")
    stood = {
        name: load(file._replace(name=name))
        for name in names
        if f"def {name}(" in file.path.read_text()  # 0.5.12 asks for no number of blocks
    }
    kernel = stood[names[0]]

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            launched.append(grid)
            return kernel[grid]

    stood[names[0]] = Kernel()
    parallel = SimpleNamespace(dcp_enabled=False)
    theirs = load(text, get_parallel=lambda: parallel, ForwardMode=None, KVLocPlan=None, **stood)
    row = next(row for row in sglang.METHODS if row.name == text.name)
    around = replacing.resolve(row.around)
    arguments = theirs.__code__.co_varnames[: theirs.__code__.co_argcount]
    found = []
    for run in (theirs, lambda *args, **kwargs: around(theirs, *args, **kwargs)):
        self = backend(device)
        meta = self.decode_cuda_graph_metadata[4]
        if "global_seq_lens_k" in theirs.__code__.co_names:
            meta.global_seq_lens_k = torch.full_like(meta.seq_lens_k, -9)
        given = {
            "plan": None, "bs": 4, "batch_size": 4, "max_blocks": 20, "req_pool_indices": self.rows,
            "seq_lens": self.lens, "device": torch.device(device), "forward_mode": mode(what),
        }  # fmt: skip
        launched.clear()
        result = run(self, *[given[name] for name in arguments[1:]])
        tensors = [result, meta.seq_lens_k, meta.block_kv_indices, getattr(meta, "global_seq_lens_k", None)]
        found.append(([x for x in tensors if x is not None], len(launched)))
    (want, theirs_launched), (got, ours_launched) = found
    assert theirs_launched == 1
    # what writes no lengths in decode is left to theirs
    assert ours_launched == int(
        "bs" in arguments and what == "decode" and not hasattr(meta, "global_seq_lens_k")
    )
    if what == "decode" and hasattr(meta, "global_seq_lens_k"):
        want, got = want[:-1], got[:-1]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
