"""A step of a `MetadataBuilder` on tensors between guard words."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ...dispatch import specs_of
from ...launch.verify import WRITTEN
from ...metadata.builder import MetadataBuilder
from ...metadata.options import SlotMapping
from ...metadata.parts import GroupLaunches
from ...params import OUTPUTS, ROW_MAX, SLOTS, TABLE, Build, View
from ...platforms.specs import BackendSpec
from ...shard import local_length
from .case import Case, call_text, placed
from .families import I32, I64, Family
from .memory import Spec

_ADDED = 7  # tokens of each row that an extension adds


class BuilderCase(Case):
    """A builder's step, which writes between guard words instead of to the builder's own buffers."""

    def specs(self, rng: random.Random) -> dict[str, Spec]:
        """The tensors, in an order, with gaps and dtypes, that are drawn."""
        found = super().specs(rng)
        if self.spec.packed:
            found |= {k: x._replace(gap=0, shift=0) for k, x in found.items() if k.endswith("out")}
        return found

    @property
    def spec(self) -> BackendSpec:
        """The backend's contract."""
        assert self.family.spec is not None
        return self.family.spec

    def outputs(self) -> dict[str, Spec]:
        """The tensors that are written."""
        family, sizes, found = self.family, self.sizes, dict[str, Spec]()
        rows, page_size = sizes.max_batch_size * sizes.topk, family.page_size
        shard, names = family.shard, [*self.spec.outputs, *(["empty_rows"] if family.shard else [])]
        if family.form == TABLE:
            tokens = max(local_length(sizes.context, shard), 1)
            shape: tuple[int, ...] = (rows, self.spec.width(tokens, page_size))
        else:
            tokens = sizes.max_tokens if shard is None else shard.max_tokens(sizes.max_tokens, rows)
            shape = (self.spec.entries(tokens, rows, page_size),)
        for prefix in self.prefixes:
            found[prefix + "out"] = Spec(shape, family.dtype)
            # a window's rows begin anywhere
            starts = prefix or "kv_start" in family.options
            for name in (*names, *(["kv_start_offset"] if starts else [])):
                if not (prefix and name == "cu_seqlens_q"):
                    found[prefix + name] = Spec((rows + OUTPUTS[name],), I32)
        if family.options & {"window_is_absolute", "sink_tokens"}:
            del found["window.kv_start_offset"]
        for prefix in self.slots:
            found[prefix + "out"] = Spec((self._mapping.max_tokens,), I64)
        if "query_seqlens" in family.options:
            found["slots.query_seqlens"] = Spec((self._mapping.max_tokens,), I32)
        return found

    @property
    def _mapping(self) -> SlotMapping:
        sizes = self.sizes
        tokens = max(sizes.queries, sizes.batch * sizes.query_len, 1)
        return SlotMapping(
            tokens, "int64", sizes.numbers["pad_value"], sizes.numbers["max_position"],
            "query_seqlens" in self.family.options,
        )  # fmt: skip

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""
        found: dict[str, Any] = {"seq_lens_delta": self.sizes.delta, "query_lens": self.sizes.query_len}
        if "positions" in specs:
            found |= {"query_lens": 1, "positions": "positions", "query_start_loc": "query_start_loc"}
        return found | {name: name for name in self.vectors} | {"query_lens_sign": self.family.query_sign}

    @property
    def constructor(self) -> dict[str, Any]:
        """The builder's arguments, of the same form."""
        family, sizes = self.family, self.sizes
        found: dict[str, Any] = {
            "req_to_token": "req_to_token", "max_batch_size": sizes.max_batch_size,
            "max_context_len": sizes.context, "page_size": family.page_size, "max_tokens": sizes.max_tokens,
            "source_page_size": family.source_page_size, "sliding_window": sizes.window,
            "shard": family.shard,
        }  # fmt: skip
        maps = {
            "page_map": "page_map", "window_token_map": "window_map", "window_page_map": "window_page_map"
        }  # fmt: skip
        found |= {"window_is_absolute": True} if "window_is_absolute" in family.options else {}
        if "draft_tree" in family.options:
            found["draft"] = sizes.draft
        found |= {"sink_tokens": sizes.sink} if "sink_tokens" in family.options else {}
        found |= {"slot_mapping": self._mapping} if self.slots else {}
        return found | {k: name for k, name in maps.items() if name in family.options}

    def launch(self, t: Mapping[str, Tensor]) -> Build:
        """The launch that the call must equal, on these tensors."""
        family, sizes, spec = self.family, self.sizes, self.spec
        views = []
        for prefix in self.prefixes:
            outputs: dict[str, Any] = {
                name: t[prefix + name] for name in ("out", *OUTPUTS) if prefix + name in t
            }
            view = View(kv_start=t.get(f"{prefix}kv_start".replace(".", "_")), **outputs)
            if prefix:
                view.window, view.token_map = sizes.window, t.get("window_map")
                view.page_map = t.get("window_page_map")
                view.is_absolute = "window_is_absolute" in family.options
                view.sink = sizes.sink if "sink_tokens" in family.options else None
            else:
                view.page_map = t.get("page_map")
            views.append(view)
        deltas, queries = t.get("seq_lens_delta"), t.get("query_lens")
        return Build(
            t["req_to_token"], t["req_pool_indices"], t["seq_lens"], family.form, family.page_size,
            family.source_page_size, family.page_size, tuple(views), max_seq_len=sizes.context,
            seq_lens_delta=sizes.delta if deltas is None else 0, seq_lens_delta_rows=deltas,
            query_lens=queries, query_sign=family.query_sign,
            query_len=sizes.query_len if queries is None else 0, min_seq_len=spec.min_seq_len,
            min_last_page_len=spec.min_last_page_len, window_is_prefix_only=spec.window_is_prefix_only,
            starts_are_aligned=not spec.skips_tokens, missing_id=spec.pad_id,
            pad_value=spec.pad_id if spec.pad_to_tokens else None,
            pad_to_multiple_of=spec.pad_to_multiple_of(family.page_size), shard=family.shard,
            draft=sizes.draft if "draft_tree" in family.options else None, status=t["status"],
        )  # fmt: skip

    def launches(self, t: Mapping[str, Tensor]) -> list[Build]:
        """The views, and the slots of each that has some."""
        first = self.launch(t)
        first.query_start_loc = t.get("query_start_loc")
        mapping, builds = self._mapping, [first]
        for prefix in self.slots:
            of_window = prefix.startswith("window")
            view = View(
                t[prefix + "out"], token_map=t.get("window_map") if of_window else None,
                page_map=t.get("window_page_map" if of_window else "page_map"),
                kv_indptr=t.get("query_start_loc"), query_seqlens=t.get(prefix + "query_seqlens"),
            )  # fmt: skip
            positions = t.get("positions")
            builds.append(
                replace(
                    first, form=SLOTS, page_size=1, views=(view,), positions=positions, query_start_loc=None,
                    indptr_is_input=positions is not None, max_position=mapping.max_position, min_seq_len=0,
                    min_last_page_len=0, missing_id=-1, pad_value=mapping.pad_value, pad_to_multiple_of=None,
                )
            )  # fmt: skip
        return builds

    def _first_step(self, t: Mapping[str, Tensor]) -> dict[str, Any]:
        """The tensors of the step before an extension: of the same requests, some of them, or others."""
        first, last = self._first_rows
        return {name: t[name][first:last] for name in self.vectors}

    @property
    def _first_rows(self) -> tuple[int, int]:
        """Which rows of the batch the first step has."""
        batch = self.sizes.batch
        return int(batch % 3 == 2), batch - (batch % 3 == 1)

    @property
    def _first_delta(self) -> int:
        return max(self.sizes.delta - _ADDED, -ROW_MAX)

    def launches_before(self, t: Mapping[str, Tensor]) -> list[Build]:
        """The step before an extension, of shorter rows."""
        if "extends" not in self.family.options:
            return []
        builds = self.launches({**t, **self._first_step(t)})
        return [replace(build, seq_lens_delta=self._first_delta) for build in builds]

    def call(self, t: Mapping[str, Tensor]) -> Callable[[], Any]:
        """The call on these tensors."""
        builder = MetadataBuilder(self.spec, **placed(self.constructor, t))
        for view, prefix in zip(builder._views, self.prefixes, strict=True):
            for name in WRITTEN:
                if prefix + name in t:
                    setattr(view, name, t[prefix + name])
        for view, prefix in zip(builder.member.buffers.slot_views, self.slots, strict=True):
            view.out, view.query_seqlens = t[prefix + "out"], t.get(prefix + "query_seqlens")
        builder.status.word = t["status"]
        if builder._group:  # what the launch reads was written before the buffers were replaced
            builder._group = GroupLaunches([builder.member])
        now = placed(self.arguments, t)
        if "extends" not in self.family.options:
            return partial(builder.build, **now)
        before = now | self._first_step(t) | {"seq_lens_delta": self._first_delta}

        def build_and_extend() -> None:
            builder.build(**before)
            builder.extend(**now)

        return build_and_extend

    def text(self) -> str:
        """The call as lines of a program, on tensors ``t[name]``."""
        known = specs_of("cpu").get(self.spec.name) is self.spec
        backend = repr(self.spec.name) if known else f"xkv.{self.spec!r}"
        return _PROGRAM.format(
            made=call_text("xkv.MetadataBuilder", self.constructor, backend), slots=self.slots,
            again=_AGAIN if builder_in_parts(self.family) else "",
            prefixes=self.prefixes, written=WRITTEN, built=self._call_text(),
        )  # fmt: skip

    def _call_text(self) -> str:
        if "extends" not in self.family.options:
            return call_text("builder.build", self.arguments)
        first, last = self._first_rows
        return _EXTENSION.format(
            names=self.vectors, first=first, last=last,
            before=call_text("builder.build", self.arguments | {"seq_lens_delta": self._first_delta}),
            now=call_text("builder.extend", self.arguments),
        )  # fmt: skip


def builder_in_parts(family: Family) -> bool:
    """Whether the builder's launch is a group's, whose arguments are written when it is made."""
    return bool(family.options & {"slots", "window_is_absolute", "sink_tokens", "draft_tree"})


_PROGRAM = """\
builder = {made}
for view, prefix in zip(builder._views, {prefixes}):
    for name in {written}:
        if prefix + name in t:
            setattr(view, name, t[prefix + name])
for view, prefix in zip(builder.member.buffers.slot_views, {slots}):
    view.out, view.query_seqlens = t[prefix + "out"], t.get(prefix + "query_seqlens")
builder.status.word = t["status"]
{again}{built}"""
_EXTENSION = """\
whole, t = t, {{**t, **{{name: t[name][{first}:{last}] for name in {names}}}}}
{before}
t = whole
{now}"""
_AGAIN = """\
builder._group = type(builder._group)([builder.member])
"""
