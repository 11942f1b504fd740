"""SGLang's backends' own methods with our kernels, our one launch, and docs/*.patch: ci/engines.sh.

The methods are taken out of the backends' files: importing those needs every attention library.
"""

from __future__ import annotations
import __future__

import ast
import importlib.util
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from building import paged_source
from test_sglang_engine import both, kernel, launches, loaded, version

import xkv
from xkv.integrations.sglang import methods, replace, table

_ = loaded  # the plugin is loaded here, too
pytestmark = pytest.mark.kernel
PATCHES = Path(__file__).resolve().parent.parent / "docs"
NEW = version == "0.5.23"
CONTEXT = 1024


def only(*versions: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(version not in versions, reason=f"SGLang {version} has it otherwise")


def file_of(backend: str) -> Path:
    spec = importlib.util.find_spec("sglang.srt.layers.attention")
    return Path(spec.submodule_search_locations[0]) / f"{backend}_backend.py"


def method(path: Path, cls: str, name: str, **names: Any) -> Callable[..., Any]:
    """A method as a function whose globals are these names alone."""
    (found,) = (x for x in ast.parse(path.read_text()).body if getattr(x, "name", "") == cls)
    (node,) = (x for x in found.body if getattr(x, "name", "") == name)
    code = compile(
        ast.Module([node], []), str(path), "exec", flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
    )  # fmt: skip
    names |= {"torch": torch, "xkv": xkv}
    exec(code, names)
    return names[name]


def kernels(page_size: int = 64) -> dict[str, Any]:
    """The names that backends import from the kernels' module, and triton's cdiv."""
    import triton

    it = kernel("create_flashmla_kv_indices_triton")
    module = importlib.import_module(it.fn.__module__)
    names = ("get_num_kv_index_blocks_flashmla", "get_num_page_per_block_flashmla")
    return {name: getattr(module, name) for name in names} | {
        "create_flashmla_kv_indices_triton": it, "PAGE_SIZE": page_size, "triton": triton,
        "get_parallel": lambda: SimpleNamespace(dcp_enabled=False),
    }  # fmt: skip


def mode(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        is_target_verify=lambda: name == "verify", is_decode_or_idle=lambda: name == "decode",
        is_draft_extend_v2=lambda: name == "extend", is_draft_extend=lambda include_v2: name == "extend",
    )  # fmt: skip


class Backend(SimpleNamespace):
    """As much of a backend as its metadata methods read, on a random batch."""

    def __init__(self, device: str, page_size: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        plain = SimpleNamespace(is_translating=False, reads_are_translated=False)
        ids = paged_source(rng, 5, CONTEXT, page_size, 1, torch.int32, device).contiguous()
        super().__init__(
            req_to_token=ids, page_size=page_size, num_draft_tokens=4, kv_index_translator=plain,
            device=device, max_context_len=CONTEXT - 4, num_q_heads=16, is_fp8_kvcache=False,
        )  # fmt: skip
        ints = lambda low, high: torch.tensor([rng.randint(low, high) for _ in range(6)]).to(device)  # noqa: E731
        self.bs, self.rows, self.lens = 4, ints(0, 4), ints(1, CONTEXT - 4)


def trtllm_mla(device: str) -> Backend:
    backend = Backend(device, 32)
    new = lambda *shape: torch.full(shape, -9, dtype=torch.int32, device=device)  # noqa: E731
    meta = SimpleNamespace(
        seq_lens_k=new(4), global_seq_lens_k=new(4), block_kv_indices=new(4, CONTEXT // 32), seq_lens_q=new(4)
    )
    backend.decode_cuda_graph_metadata = {4: meta}
    return backend


def extracted(row: Any) -> Callable[..., Any]:
    return method(file_of("trtllm_mla"), row.cls, row.name, **kernels())


@pytest.mark.parametrize("row", table.METHODS, ids=lambda row: row.name)
def test_methods_are_known(row: Any) -> None:
    assert replace.code(extracted(row)) in row.codes


@pytest.mark.parametrize("what", ["decode", "verify"])
def test_trtllm_mla_in_a_graph(what: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = extracted(table.METHODS[1])
    found, builds = [], []
    for run in (theirs, lambda *a, **k: methods.apply_cuda_graph_metadata(theirs, *a, **k)):
        backend = trtllm_mla(device)
        meta = backend.decode_cuda_graph_metadata[4]
        if what == "decode" and not NEW:
            meta.seq_lens_k = None
        plan = {"plan": None} if NEW else {}
        given = {"bs": 4, "req_pool_indices": backend.rows, "seq_lens": backend.lens}
        with launches(kernel("create_flashmla_kv_indices_triton")) as seen:
            run(backend, **plan, **given, forward_mode=mode(what))
        builds.append(list(seen))
        tensors = (meta.seq_lens_k, meta.block_kv_indices, meta.global_seq_lens_k if NEW else None)
        found.append([x for x in tensors if x is not None])
    assert builds == [[], []]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if NEW or what == "verify":
        more = 4 * (what == "verify")
        assert torch.equal(found[1][0], (backend.lens[:4] + more).int())


def test_trtllm_mla_eager(device: str) -> None:
    theirs = extracted(table.METHODS[0])
    backend = Backend(device, 32)
    args = [4, 34, backend.rows[:4], backend.lens[:4], torch.device(device)]
    args = [None, *args] if NEW else args
    with launches(kernel("create_flashmla_kv_indices_triton")) as seen:
        want = theirs(backend, *args)
        got = methods.create_block_kv_indices(theirs, backend, *args)
    assert seen == []
    assert got.dtype is want.dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("why", ["translated", "ranks"])
def test_what_is_left_to_theirs(why: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = trtllm_mla(device)
    backend.kv_index_translator.is_translating = why == "translated"
    ranks = SimpleNamespace(dcp_enabled=why == "ranks")
    monkeypatch.setitem(globals(), "get_parallel", lambda: ranks)
    ran = []

    def create(self, batch_size, max_blocks, req_pool_indices, seq_lens, device):
        ran.append(batch_size)

    def apply(self, bs, req_pool_indices, seq_lens, forward_mode):
        ran.append(bs)

    tensors = (backend.rows[:4], backend.lens[:4])
    methods.create_block_kv_indices(create, backend, 4, 34, *tensors, device)
    methods.apply_cuda_graph_metadata(apply, backend, 4, *tensors, forward_mode=mode("decode"))
    assert ran == [4, 4]


def flashmla(path: Path, device: str, what: str, builder: bool) -> tuple[list[torch.Tensor], Any]:
    """Runs FlashMLA's step; returns its table's live rows and what it gives its scheduler."""
    lens = []

    def get_mla_metadata(x: torch.Tensor, heads: int, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        lens.append(x)
        return torch.zeros(3, 8, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)

    backend = Backend(device, 64)
    backend.xkv_builder = None
    backend.cuda_graph_kv_indices = torch.ones(6, 17, dtype=torch.int32, device=device)
    if builder:
        backend.xkv_builder = xkv.MetadataBuilder(
            "flashmla", backend.req_to_token, max_batch_size=6, max_context_len=CONTEXT
        )
        none = torch.zeros(6, dtype=torch.int32, device=device)
        backend.cuda_graph_kv_indices = backend.xkv_builder.build(none, none).page_table
    backend.cuda_graph_mla_metadata = torch.zeros(4, 8, dtype=torch.int32)
    backend.cuda_graph_draft_extend_seq_lens_k = torch.ones(6, dtype=torch.int32, device=device)
    backend.cuda_graph_num_splits = torch.zeros(7, dtype=torch.int32)
    backend.cuda_graph_mla_metadata_view = None
    step = method(
        path, "FlashMLABackend", "_apply_decode_target_verify_metadata", **kernels(),
        get_mla_metadata=get_mla_metadata, FlashMLADecodeMetadata=lambda *a: a,
    )  # fmt: skip
    step(
        backend, plan=None, bs=4, req_pool_indices=backend.rows, seq_lens=backend.lens, seq_lens_cpu=None,
        forward_mode=mode(what),
    )  # fmt: skip
    pages = -(-lens[0] // 64)
    rows = zip(backend.cuda_graph_kv_indices, pages.tolist(), strict=False)
    return [row[:n].clone() for row, n in rows], lens[0]


@only("0.5.23")
@pytest.mark.parametrize("what", ["decode", "verify", "extend"])
def test_call_site_of_flashmla(what: str, device: str) -> None:
    it = kernel("create_flashmla_kv_indices_triton")
    (ours, _), (theirs, _) = both(it, lambda: flashmla(file_of("flashmla"), device, what, False))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the backends with this version's patch applied."""
    patch = PATCHES / f"sglang-{version}.patch"
    root = tmp_path_factory.mktemp("patched")
    where = root / "sglang/srt/layers/attention"
    where.mkdir(parents=True)
    for name in ("flashmla", "aiter", "cutlass_mla"):
        if file_of(name).exists():
            (where / file_of(name).name).write_bytes(file_of(name).read_bytes())
    done = subprocess.run(
        ["git", "apply", "--verbose", str(patch)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return where


@only("0.5.23")
@pytest.mark.parametrize("what", ["decode", "verify", "extend"])
def test_patched_flashmla(what: str, patched: Path, device: str) -> None:
    it = kernel("create_flashmla_kv_indices_triton")
    theirs, lens = flashmla(file_of("flashmla"), device, what, False)
    with launches(it) as seen:
        ours, fused = flashmla(patched / "flashmla_backend.py", device, what, True)
    assert seen == []
    assert fused.dtype is torch.int32
    assert torch.equal(fused, lens.int())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@only("0.5.13")
def test_patched_cutlass_mla(patched: Path, device: str) -> None:
    def step(path: Path, **more: Any) -> Any:
        backend = Backend(device, 128)
        backend.cuda_graph_kv_indices = torch.ones(6, 9, dtype=torch.int32, device=device)
        backend.cuda_graph_mla_workspace = None
        for name, make in more.items():
            setattr(backend, name, make(backend))
        run = method(
            path, "CutlassMLABackend", "init_forward_metadata_out_graph", **kernels(128),
            CutlassMLADecodeMetadata=lambda workspace, ids: SimpleNamespace(table=ids),
        )  # fmt: skip
        batch = SimpleNamespace(
            batch_size=4, forward_mode=mode("decode"), spec_info=None, req_pool_indices=backend.rows,
            seq_lens=backend.lens,
        )  # fmt: skip
        run(backend, batch, in_capture=True)
        return backend

    make = lambda x: xkv.MetadataBuilder(  # noqa: E731
        "cutlass_mla", x.req_to_token, max_batch_size=6, max_context_len=CONTEXT, page_size=128
    )
    want = step(file_of("cutlass_mla"))
    got = step(patched / "cutlass_mla_backend.py", xkv_builder=make)
    assert torch.equal(got.forward_metadata.seq_lens, want.lens[:4].int())
    for b, n in enumerate((-(-want.lens[:4] // 128)).tolist()):
        assert torch.equal(got.forward_metadata.table[b, :n], want.forward_metadata.table[b, :n])


@only("0.5.23")
@pytest.mark.parametrize("pages", [False, True], ids=["mla", "page table"])
def test_patched_aiter(pages: bool, patched: Path, device: str) -> None:
    """Decode, up to what it hands on to its kernels."""

    def step(path: Path) -> Any:
        backend = Backend(device, 16)
        vars(backend).update({
            "kv_indptr": torch.zeros(7, dtype=torch.int32, device=device), "kv_last_page_len": None,
            "decode_uses_page_table": pages, "use_sliding_window_kv_pool": False, "use_mla": False,
            "dcp_world_size": 1, "qo_indptr_unified_decode": torch.arange(7, device=device),
            "_transform_table_1_to_real": lambda x: transform(backend, x),
            "_get_kv_indices_scratch": lambda n, at: torch.full((n,), -9, dtype=torch.int32, device=at),
        })  # fmt: skip
        names = kernels() | {
            "create_flashinfer_kv_indices_triton": kernel("create_flashinfer_kv_indices_triton"),
            "ForwardMetadata": lambda *a, **k: a, "reset_verify_attn_plan_cache": lambda: None,
        }  # fmt: skip
        transform = method(path, "AiterAttnBackend", "_transform_table_1_to_real", **names)
        lens = backend.lens[:4]
        batch = SimpleNamespace(
            batch_size=4, forward_mode=mode("decode"), spec_info=None, req_pool_indices=backend.rows[:4],
            seq_lens=lens, seq_lens_sum=int(lens.sum()), seq_lens_cpu=lens.cpu(), out_cache_loc=None,
        )  # fmt: skip
        batch.forward_mode.is_idle = lambda: False
        method(path, "AiterAttnBackend", "init_forward_metadata", **names)(backend, batch)
        return backend.forward_metadata[:3]

    theirs, ours = step(file_of("aiter")), step(patched / "aiter_backend.py")
    if pages:
        (a, b) = (x[1] for x in (theirs, ours))
        assert a.shape == b.shape
        lens = Backend(device, 16).lens[:4]
        for row, n in enumerate((-(-lens // 16)).tolist()):
            assert torch.equal(a[row, :n], b[row, :n])
    else:
        assert torch.equal(theirs[0], ours[0])
        assert torch.equal(theirs[1], ours[1])


