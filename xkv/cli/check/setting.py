"""One kind of build with sizes: tensors between guard words, the call on them, and what it must do."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ... import ops
from ...launch.verify import WRITTEN
from ...metadata.builder import MetadataBuilder
from ...params import OUTPUTS, SLOTS, TABLE, Build, View
from ...status import Status
from .kinds import I32, I64, Kind
from .memory import Layout, Memory
from .snippet import call_text

VECTORS = ("seq_lens_delta", "query_lens", "kv_start", "window_kv_start")  # beside rows and lengths
_DELTAS = [0, 0, 0, 1, 4, 5, -3, -5, (1 << 28) - 1, 1 - (1 << 28)]
_OWN_OUTPUTS = {"build_kv_indices": ("kv_indptr", "kv_last_page_len")}


class Setting:
    """A kind with sizes: tensors that stay where they are, and the call on them.

    Args:
        kind: the kind.
        seed: decides everything, with ``number``.
        number: which of the seed's settings.
        device: where the tensors lie.
        small: sizes for Triton's interpreter.
        apart: every tensor at the end of an allocation of its own.

    Attributes:
        run: makes the call.
    """

    def __init__(
        self, kind: Kind, seed: int, number: int, device: str, small: bool, apart: bool = False
    ) -> None:
        self.kind, self.device = kind, device
        self._name = f"{kind}, seed {seed}, setting {number}"
        rng = random.Random(self._name)
        has, page_size, unit = kind.has, kind.page_size, kind.source_page_size
        span = max(page_size, unit)
        longest = rng.randint(1, rng.choice([2, 4] if small else [2, 6, 40])) * span + rng.randrange(span)
        self.width = longest // unit + 1
        self.tokens = self.width * unit
        self.rows = rng.randint(1, 6)
        self.batch = rng.randint(0, rng.choice([1, 3, 6] if small else [1, 3, 9, 30]))
        self.top = self.rows * self.tokens + span  # sane token ids are below it
        self.map_page_size = rng.choice([1, 16]) if "map_page_size" in has else page_size
        self.window = rng.randint(1, self.tokens) if "window" in has else None
        self.context = rng.randint(1, self.tokens)
        self.room = rng.choice([self.tokens // page_size + 1, rng.randint(0, self.tokens // page_size + 2)])
        self.longest = min(self.context, self.room * page_size)  # a host bound that the output has room for
        self.stream = rng.choice([1, rng.random()]) * self.room * max(self.batch, 1)
        self.most = self.batch + rng.choice([0, 1, 3])
        if kind.spec is not None:
            self.most = max(self.most, 1)
        self.delta = rng.choice(_DELTAS)
        self.query = rng.choice([0, 1, 4])
        self.max_tokens = rng.randint(1, self.room * page_size * self.most + 1)
        self.missing = rng.choice([-1, 0, 7])
        self.fill = rng.choice([0, -1, 5])
        self.tile = rng.choice([1, 4, 64])
        self.memory = Memory(self._layout(rng), device, apart)
        self.build = self._build()
        self.arguments = self._arguments()
        self.run: Callable[[], Any] = self._call()

    def __str__(self) -> str:
        return self._name

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Before the names of the outputs of each view."""
        return ("", "window.") if "window" in self.kind.has else ("",)

    def _layout(self, rng: random.Random) -> Layout:
        """Where everything lies, in an order that is drawn too."""
        kind, batch, layout = self.kind, self.batch, Layout()
        has, spec = kind.has, kind.spec

        def either() -> torch.dtype:
            return rng.choice([I32, I64])

        def gap() -> int:
            return rng.choice([0, 0, 1, 5])

        found: list[tuple[str, tuple[int, ...], torch.dtype, int]] = [
            ("req_to_token", (self.rows, self.width), kind.ids, gap()), ("status", (1,), I64, 0),
        ]  # fmt: skip
        vectors = [name for name in VECTORS if name in has or (name == "query_lens" and kind.form == SLOTS)]
        found += [(n, (batch,), either(), gap()) for n in ("req_pool_indices", "seq_lens", *vectors)]
        maps = {"token_map": 1, "window_map": 1, "page_map": self.map_page_size}
        for name, size in maps.items():
            if name in has:
                found.append((name, (max(self.top // size - rng.randint(0, 9), 0),), kind.dtype, gap()))
        for prefix in self.prefixes:
            if kind.form == TABLE:
                width = self.room if spec is None else spec.width(self.context, kind.page_size)
                packed = spec is not None and spec.packed
                found.append((prefix + "out", (self.most, width), kind.dtype, 0 if packed else gap()))
            elif spec is None:
                found.append((prefix + "out", (int(self.stream),), kind.dtype, gap()))
            else:
                room = self.max_tokens // kind.page_size + 2 * self.most * (kind.page_size > 1)
                found.append((prefix + "out", (room,), kind.dtype, gap()))
            names = [*(_OWN_OUTPUTS.get(kind.group, ()) if spec is None else spec.outputs)]
            if self._has_offsets(prefix):
                names.append("kv_start_offset")
            for name in names:
                if not (prefix and name == "cu_seqlens_q"):
                    found.append((prefix + name, (self.most + OUTPUTS[name],), I32, gap()))
        rng.shuffle(found)
        for name, shape, dtype, between in found:
            layout.add(name, shape, dtype, between)
        return layout

    def _has_offsets(self, prefix: str) -> bool:
        """Whether the view whose outputs' names begin so says where in their first page rows begin."""
        has = self.kind.has
        if self.kind.spec is None:
            return "kv_start_offset" in has
        # the sliding window's rows begin anywhere; a window that is only another pool's begins where a row
        # does
        return "kv_start" in has if not prefix else bool(has & {"window", "window_kv_start"})

    def _build(self) -> Build:
        """What the definition is asked for: on the image, so that it always says what that holds."""
        kind, host, has = self.kind, self.memory.host, self.kind.has
        spec, tail = kind.spec, "pad_value" in kind.has
        build = Build(
            host["req_to_token"], host["req_pool_indices"], host["seq_lens"], kind.form, kind.page_size,
            kind.source_page_size, self.map_page_size, (),
            seq_lens_delta=0 if "seq_lens_delta" in has else self.delta,
            seq_lens_delta_rows=host.get("seq_lens_delta"), query_lens=host.get("query_lens"),
            query_sign=kind.sign, query_len=0 if "query_lens" in has else self.query,
        )  # fmt: skip
        if spec is None:
            build.pad_value = self.fill if tail else None
            build.pad_to_multiple_of = self.tile if "pad_to_multiple_of" in has else None
            if "missing_id" in has:
                build.missing_id, build.report_missing = self.missing, False
            build.max_seq_len = self.longest if "max_seq_len" in has else None
            build.min_last_page_len = int("min_last_page_len" in has)
        else:
            build.max_seq_len, build.starts_are_aligned = self.context, not spec.skips_tokens
            build.window_is_prefix_only = spec.window_is_prefix_only
            build.min_seq_len, build.min_last_page_len = spec.min_seq_len, spec.min_last_page_len
            build.missing_id, build.pad_value = spec.fill_id, spec.fill_id if tail else None
            build.pad_to_multiple_of = spec.pad_to_multiple_of(kind.page_size)
        build.status = host["status"] if "status" in has else None
        for prefix in self.prefixes:
            view = View(host[prefix + "out"])
            for name in OUTPUTS:
                setattr(view, name, host.get(prefix + name))
            if prefix:
                view.window, view.token_map = self.window, host.get("window_map")
                view.kv_start = host.get("window_kv_start")
            else:
                view.token_map, view.page_map = host.get("token_map"), host.get("page_map")
                view.kv_start = host.get("kv_start")
            build.views += (view,)
        return build

    def _arguments(self) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""
        kind, has = self.kind, self.kind.has
        found: dict[str, Any] = {name: name for name in ("req_pool_indices", "seq_lens")}
        found |= {name: name for name in VECTORS if name in self.memory.places}
        found.setdefault("seq_lens_delta", self.delta)
        if kind.spec is not None:
            found.setdefault("query_lens", self.query)
            return found | {"query_lens_sign": kind.sign}
        found |= {"req_to_token": "req_to_token", "source_page_size": kind.source_page_size}
        found |= {name: name for name in ("token_map", "page_map", "kv_start_offset") if name in has}
        numbers = {
            "page_size": kind.page_size, "map_page_size": self.map_page_size, "missing_id": self.missing,
            "pad_value": self.fill, "pad_to_multiple_of": self.tile, "max_seq_len": self.longest,
            "min_last_page_len": 1,
        }  # fmt: skip
        wanted = has | ({"page_size"} if kind.form != SLOTS else set())
        return found | {name: value for name, value in numbers.items() if name in wanted}

    def _constructor(self) -> dict[str, Any]:
        """The same of a `MetadataBuilder`."""
        kind, has = self.kind, self.kind.has
        found: dict[str, Any] = {
            "req_to_token": "req_to_token", "max_batch_size": self.most, "max_context_len": self.context,
            "page_size": kind.page_size, "source_page_size": kind.source_page_size,
            "max_tokens": self.max_tokens, "sliding_window": self.window,
        }  # fmt: skip
        found |= {"page_map": "page_map"} if "page_map" in has else {}
        return found | ({"window_token_map": "window_map"} if "window_map" in has else {})

    def _call(self) -> Callable[[], Any]:
        t = self.memory.tensors

        def placed(arguments: dict[str, Any]) -> dict[str, Any]:
            return {k: t[v] if isinstance(v, str) else v for k, v in arguments.items()}

        given = placed(self.arguments)
        if self.kind.spec is not None:
            builder = MetadataBuilder(self.kind.group, **placed(self._constructor()))
            for view, prefix in zip(builder._views, self.prefixes, strict=True):
                for name in WRITTEN:
                    if prefix + name in t:  # between the guard words, instead of where it lies
                        setattr(view, name, t[prefix + name])
            builder.status.word = t["status"]
            return partial(builder.build, **given)
        if "status" in self.kind.has:
            given["status"] = Status(self.device)
            given["status"].word = t["status"]
        out: Any = t["out"]
        if self.kind.group == "build_kv_indices":
            out = ops.KVIndices(t["kv_indptr"], out, t["kv_last_page_len"])
        return partial(getattr(ops, self.kind.group), **given, out=out)

    def call_text(self) -> str:
        """The call as lines of a program, on tensors ``t[name]``."""
        kind = self.kind
        if kind.spec is not None:
            return _BUILDER.format(
                made=call_text("xkv.MetadataBuilder", self._constructor(), repr(kind.group)),
                prefixes=self.prefixes, written=WRITTEN, built=call_text("builder.build", self.arguments),
            )  # fmt: skip
        out, status = "t['out']", ""
        if kind.group == "build_kv_indices":
            out = "xkv.KVIndices(t['kv_indptr'], t['out'], t['kv_last_page_len'])"
        if "status" in kind.has:
            status = f"status = xkv.Status({self.device!r})\nstatus.word = t['status']\n"
            out += ", status=status"
        return status + call_text(f"xkv.{kind.group}", self.arguments, f"out={out}")


_BUILDER = """\
builder = {made}
for view, prefix in zip(builder._views, {prefixes}):
    for name in {written}:
        if prefix + name in t:
            setattr(view, name, t[prefix + name])
builder.status.word = t["status"]
{built}"""
