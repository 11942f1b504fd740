"""The calls of the engines' plugins on hostile data: they give prefix sums, which an op computes itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...integrations.sglang import kv_indices, page_tables
from ...integrations.sglang import metadata as graph_metadata
from ...integrations.vllm import indices
from ...integrations.vllm.launching import served
from ...launch import launch
from ...params import CSR, OUTPUTS, Build, View
from . import wild
from .kinds import I32, INDICES, METADATA, POOL_TABLES, STREAMS, TABLES
from .memory import Layout
from .setting import Setting
from .snippet import call_text

SUMS = ("begins", "sums")  # where a stream's rows begin: of each row, or of each and the end of the last


class EngineSetting(Setting):
    """A setting whose call is a plugin's, with the arguments that the engine has for its own kernel."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Before the names of the outputs of each view."""
        return ("", "window.") if "window_map" in self.kind.has else ("",)

    @property
    def room_of_sums(self) -> int:
        """Entries of the stream."""
        return self.memory.places["out"].shape[0]

    def _layout(self, rng: random.Random) -> Layout:
        kind, has, layout = self.kind, self.kind.has, Layout()
        if kind.form == CSR:  # mostly several rows, and room for some of them
            self.batch = rng.choice([self.batch, *range(2, 7)])
            self.stream = max(self.stream, rng.choice([0, 1, 1, 2]) * self.tokens)
        if kind.call == INDICES:  # row b is row b of the table, and no row at all is left to vLLM
            self.batch = max(self.batch, 1)
            self.rows = self.batch + rng.randint(0, 2)
        self.delta = self.delta if "delta" in has else 0
        batch = self.batch

        def either() -> torch.dtype:
            return rng.choice([I32, torch.int64])

        def gap() -> int:
            return rng.choice([0, 0, 1, 5])

        found: list[tuple[str, tuple[int, ...], torch.dtype, int]]
        found = [("req_to_token", (self.rows, self.width), kind.ids, gap())]
        if kind.call != INDICES:
            names = ("req_pool_indices", "seq_lens", *sorted({"kv_start", "query_lens"} & has))
            found += [(name, (batch,), either(), gap()) for name in names]
        for name in sorted({"token_map", "window_map"} & has):
            found.append((name, (max(self.top - rng.randint(0, 9), 0),), kind.dtype, gap()))
        if kind.form == CSR:
            assert kind.sums is not None
            sums = ("sums", (batch + 1,)) if kind.call == INDICES else ("begins", (batch,))
            found += [(*sums, kind.sums, gap()), ("out", (int(self.stream),), kind.dtype, gap())]
        else:
            self.pages = rng.choice([self.room, rng.randint(0, self.room)])
            between = gap()
            for prefix in self.prefixes:
                between = gap() if kind.call == METADATA else between  # elsewhere both have one stride
                found.append((prefix + "out", (max(self.most, 1), self.room), kind.dtype, between))
        if kind.call == METADATA:
            names = ("cache_seqlens", "cu_seqlens_k", *(["cu_seqlens_q"] if self._q_mode else []))
            found += [(name, (self.most + OUTPUTS[name],), I32, gap()) for name in names]
        rng.shuffle(found)
        for name, shape, dtype, between in found:
            layout.add(name, shape, dtype, between)
        return layout

    @property
    def _q_mode(self) -> int:
        has = self.kind.has
        return (
            graph_metadata.Q_CUMSUM
            if "query_lens" in has
            else graph_metadata.Q_STRIDED
            if "query" in has
            else 0
        )

    def _build(self) -> Build:
        kind, host, has = self.kind, self.memory.host, self.kind.has
        source, size = host["req_to_token"], kind.page_size
        if kind.call == INDICES:
            sums, every = host["sums"], torch.arange(self.batch)
            view = View(host["out"], kv_indptr=sums[: self.batch])
            return Build(
                source, every, sums[1:], CSR, 1, kind.source_page_size, 1, (view,),
                query_lens=sums[: self.batch], query_sign=-1, report_missing=False, indptr_is_input=True,
            )  # fmt: skip
        start, metadata = host.get("kv_start"), kind.call == METADATA
        build = Build(
            source, host["req_pool_indices"], host["seq_lens"], kind.form, size, kind.source_page_size, size,
            (),
            seq_lens_delta=self.delta, seq_lens_delta_rows=start, query_lens=host.get("query_lens"),
            query_len=self.query if self._q_mode == graph_metadata.Q_STRIDED else 0, report_missing=False,
            indptr_is_input=metadata or kind.form == CSR,
        )  # fmt: skip
        if size > 1 and not (metadata and "window_map" in has):
            build.missing_id = 0  # what a division toward 0 makes of the token -1
        for prefix in self.prefixes:
            out = host[prefix + "out"]
            view = View(out[:, : self.pages] if metadata else out)
            if prefix:
                view.token_map = host["window_map"]
            else:
                view.kv_start, view.token_map = start, host.get("token_map")
                view.kv_indptr = host.get("begins")
                for name in OUTPUTS:
                    if name in host:
                        setattr(view, name, host[name])
            build.views += (view,)
        return build

    def _arguments(self) -> dict[str, Any]:
        kind, places = self.kind, self.memory.places
        maybe: dict[str, str | None] = {
            name: name if name in places else None
            for name in ("kv_start", "query_lens", "token_map", "window_map", "window.out", "cu_seqlens_q")
        }
        two, stride = maybe["window_map"] is not None, places["req_to_token"].stride[0]
        rows = {"req_to_token_ptr": "req_to_token", "req_pool_indices_ptr": "req_pool_indices"}
        found: dict[str, Any] = {"grid": (self.batch,)}
        if kind.call == INDICES:
            return found | {
                "page_indices": "out", "block_table": "req_to_token", "block_table_stride_0": stride,
                "block_table_stride_1": 1, "cu_num_tokens": "sums", "num_real_tokens": "sums",
                "KERNEL_BLOCK_SIZE": kind.source_page_size, "BLOCK_SIZE": 1024,
            }  # fmt: skip
        if kind.call == STREAMS:
            return found | rows | {
                "page_kernel_lens_ptr": "seq_lens", "kv_indptr": "begins", "kv_start_idx": maybe["kv_start"],
                "kv_indices_ptr": "out", "req_to_token_ptr_stride": stride,
                "ENTRY_PAGE_SIZE": kind.source_page_size, "token_mapping": maybe["token_map"],
            }  # fmt: skip
        out_stride = places["out"].stride[0]
        if kind.call == TABLES:
            return found | rows | {
                "page_kernel_lens_ptr": "seq_lens", "kv_start_idx": maybe["kv_start"],
                "kv_indices_ptr": "out", "req_to_token_ptr_stride": stride,
                "kv_indices_ptr_stride": out_stride, "PAGED_SIZE": kind.page_size,
            }  # fmt: skip
        found |= rows | {
            "seq_lens_ptr": "seq_lens", "page_table_ptr": "out", "req_to_token_stride": stride,
            "page_table_stride": out_stride, "PAGE_SIZE": kind.page_size, "HAS_SWA": two,
        }  # fmt: skip
        if kind.call == POOL_TABLES:
            return found | {
                "sw_page_table_ptr": maybe["window.out"], "swa_slot_mapping_ptr": maybe["window_map"],
                "DRAFT_NUM": self.delta, "BLOCK_SIZE": 256,
            }  # fmt: skip
        return found | {
            "swa_mapping_ptr": maybe["window_map"], "out_cache_loc_ptr": None,
            "qlens_ptr": maybe["query_lens"], "cache_seqlens_ptr": "cache_seqlens",
            "cu_seqlens_k_ptr": "cu_seqlens_k", "cu_seqlens_q_ptr": maybe["cu_seqlens_q"],
            "swa_page_table_ptr": maybe["window.out"], "swa_out_cache_loc_ptr": None,
            "bs": self.batch, "seqlen_offset": self.delta,
            "max_seq_pages": self.pages, "q_stride": self.query, "num_out_tokens": 0, "swa_out_len": 0,
            "swa_page_table_stride": places["window.out"].stride[0] if two else 0, "HAS_SWA_OUT": False,
            "Q_MODE": self._q_mode, "PAGE_BLOCK": 64, "BS_BLOCK": 16,
        }  # fmt: skip

    def _call(self) -> Callable[[], Any]:
        t = self.memory.tensors
        given = {k: t[v] if isinstance(v, str) else v for k, v in self.arguments.items()}
        return partial(launched, self.kind.call, **given)

    def call_text(self) -> str:
        """The call as lines of a program, on tensors ``t[name]``."""
        called = call_text("launched", self.arguments, repr(self.kind.call))
        return f"from xkv.cli.check.engines import launched\n{called}"

    def fill_sums(self, rng: random.Random, heat: float) -> None:
        """Rows one behind the other, apart from each other in any order, or anywhere; some are hostile."""
        (name,) = self.memory.host.keys() & set(SUMS)
        to, room, lens = self.memory.host[name], self.room_of_sums, [0] * self.batch
        for b in range(self.batch):
            lens[b] = rng.randint(0, self.tokens)
            if name == "begins":
                lens[b] = max(0, min(int(self.memory.host["seq_lens"][b]), self.tokens))
        order, apart, at = list(range(len(to))), name == "begins" and rng.random() < 0.5, 0
        if apart:
            rng.shuffle(order)
        sane = [0] * len(to)
        for b in order:
            sane[b] = at
            at += (lens[b] if b < self.batch else 0) + (rng.choice([0, 2]) if apart else 0)
        anywhere = wild.vector(rng, [room] * len(to), to.dtype, 0, room + 1)
        odd = wild.vector(rng, [0] * len(to), to.dtype, 1, room + 1).tolist()
        share = rng.choice([0, 0, 0.3, 1])
        for b in range(len(to)):
            value = int(anywhere[b]) if rng.random() < share else sane[b]
            # a row across either end, and what is sane where half of it is read alone
            near = [-rng.randint(1, 9), room - rng.randint(0, 3)]
            if to.dtype == torch.int64:
                near += [value + (high << 32) for high in (1, rng.choice([-1, 1 << 30, -(1 << 31)]))]
            hostile = odd[b] if rng.random() < 0.3 else rng.choice(near)
            to[b] = hostile if rng.random() < heat else value


def launched(name: str, **arguments: Any) -> None:
    """Makes a plugin's launch, by the reference where the plugin leaves CPU tensors to the engine.

    Args:
        name: the plugin's function.
        **arguments: its arguments.

    Raises:
        RuntimeError: the plugin leaves the call to the engine's own kernel.
    """
    if name == INDICES and served(arguments["page_indices"]) is None:
        table, sums = arguments["block_table"], arguments["cu_num_tokens"]
        (batch,) = arguments["grid"]
        assert indices._rows_there(table.device)
        view = View(arguments["page_indices"], kv_indptr=sums[:batch])
        launch.run(indices._as_build(batch, view, table, sums, arguments["KERNEL_BLOCK_SIZE"]))
        return
    if not _function(name)(**arguments):
        raise RuntimeError(f"{name} left the call to the engine's own kernel")


def _function(name: str) -> Any:
    modules = page_tables, kv_indices, graph_metadata, indices
    return next(vars(module)[name] for module in modules if name in vars(module))


def forget() -> None:
    """Forgets what the plugins remember of calls."""
    for calls in (page_tables.tables, kv_indices.indices, graph_metadata.metadata):
        calls.clear()
    indices.forget()
