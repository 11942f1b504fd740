"""Launches of any options at all, and buffers between guard words: what the kernel tests share."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from xkv.cli.check import values
from xkv.cli.check.case import Case
from xkv.cli.check.families import I32, I64, Family
from xkv.cli.check.memory import SENTINEL, Memory, Spec
from xkv.cli.check.sizes import Sizes
from xkv.launch.verify import WRITTEN
from xkv.params import CSR, OUTPUTS, SLOTS, TABLE, Build, View


def guarded(rows: int, width: int, stride: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A ``[rows, width]`` view with that row stride, between guard words in a storage of SENTINELs."""
    return _alone(Spec((rows, width), dtype, stride - width), device)


def guarded_1d(size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A ``[size]`` view between guard words in a storage of SENTINELs."""
    return _alone(Spec((size,), dtype), device)


def _alone(spec: Spec, device: str) -> torch.Tensor:
    x = Memory({"": spec}, device).tensors[""]
    whole(x).fill_(SENTINEL)
    return x


def whole(x: torch.Tensor) -> torch.Tensor:
    """The storage of which x is a view, guard words included."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def outputs(build: Build) -> dict[str, torch.Tensor]:
    """Every buffer that the build may write, by name."""
    found = {} if build.status is None else {"status": build.status}
    for n, view in enumerate(build.views):
        found |= {f"views[{n}].{name}": x for name in WRITTEN if (x := getattr(view, name)) is not None}
    return found


def twin(build: Build, device: str | None = None) -> Build:
    """The same build on copies of the buffers that it writes, their surroundings included.

    With a device what it reads is copied there, too.
    """

    def copied(x: Any, written: bool) -> Any:
        if not isinstance(x, torch.Tensor) or not (written or device):
            return x
        return torch.as_strided(whole(x).to(device, copy=True), x.shape, x.stride(), x.storage_offset())

    def copies(of: Build | View) -> dict[str, Any]:
        fields = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
        return {name: copied(x, name in (*WRITTEN, "status")) for name, x in fields.items()}

    other = copy.copy(build)
    other.views = tuple(dataclasses.replace(view, **copies(view)) for view in build.views)
    return dataclasses.replace(other, **copies(other))


def assert_same(got: Build, want: Build) -> None:
    """Equal bit for bit, guard words and untouched entries included."""
    for (name, a), b in zip(outputs(got).items(), outputs(want).values(), strict=True):
        a, b = whole(a).cpu(), whole(b).cpu()
        if not torch.equal(a, b):
            at = (a != b).nonzero().flatten()[:8]
            found = f"got {a[at].tolist()}, want {b[at].tolist()}"
            raise AssertionError(f"{name} differs at {at.tolist()}: {found}; {got}")


def paged_source(
    rng: random.Random, rows: int, width: int, unit: int, source_page_size: int,
    dtype: torch.dtype, device: str,
) -> torch.Tensor:  # fmt: skip
    """A table of ids whose tokens lie in ``unit``-sized pages scattered at random, in a wider buffer."""
    pages = -(-width * source_page_size // unit)
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    scattered = torch.randperm(rows * pages, generator=generator).view(rows, pages, 1)
    tokens = (scattered * unit + torch.arange(unit)).view(rows, -1)
    ids = tokens[:, ::source_page_size][:, :width] // source_page_size
    return guarded(rows, width, width + rng.choice([0, 1, 4]), dtype, device).copy_(ids)


class AnyLaunch(Case):
    """A launch of any form, options and dtypes, those that no op and no backend has among them.

    Args:
        seed: decides everything.
        hostile: whether its values may be.
        run: makes it.
        device: where its tensors lie.
    """

    def __init__(self, seed: int, hostile: bool, run: Callable[[Build], object], device: str) -> None:
        self.rng = rng = random.Random(seed)
        self.launched = run
        form = rng.choice([TABLE, CSR, SLOTS])
        page_size = 1 if form == SLOTS else rng.choice([1, 2, 4, 16, 32, 64, 128])
        unit = rng.choice([1, 1, 1, 2, 16, 64])
        names = ["seq_lens_delta", "token_map", "page_map", "status", "status", "status"]
        names += (
            [] if form == SLOTS else ["query_lens", "kv_start", "window", "window_map", "window_kv_start"]
        )
        options = frozenset(name for name in names if rng.random() < 0.35)
        dtypes = rng.choice([I32, I64]), rng.choice([I32, I64])
        sizes = Sizes(
            family := Family("launch", "", form, page_size, unit, *dtypes, options), rng, small=True
        )
        sizes.map_page_size = rng.choice([page_size, unit, 1, 16])
        pick = rng.choice
        self.fields: dict[str, Any] = {
            "seq_lens_delta": sizes.delta, "query_sign": pick([0, 1, -1]), "query_len": pick([0, 1, 4]),
            "min_seq_len": pick([0, 0, 0, 1, 5]) if form != SLOTS else 0, "min_last_page_len": pick([0, 1]),
            "max_seq_len": pick([None, None, rng.randint(0, sizes.tokens + 9)]),
            "window_is_prefix_only": pick([False, False, True]), "starts_are_aligned": pick([False, True]),
            "pad_value": pick([None, 0, -1]), "missing_id": pick([-1, 0, 7]),
            "report_missing": pick([True, False]),
        }  # fmt: skip
        if self.fields["pad_value"] is not None:
            self.fields["pad_to_multiple_of"] = pick([None, 1, 3, 4, 64])
        self.windows = [
            pick([None, rng.randint(0, sizes.tokens)]) if form != SLOTS else None for _ in range(2)
        ]
        super().__init__(f"launch {seed}", family, sizes, device)
        values.fill(self, rng, sane=not hostile)

    def outputs(self) -> dict[str, Spec]:
        form, rows = self.family.form, self.sizes.max_batch_size
        names = {"cache_seqlens", "kv_last_page_len"} | ({"kv_start_offset"} if form != SLOTS else set())
        names |= {TABLE: {"cu_seqlens_k"}, CSR: {"kv_indptr"}, SLOTS: set()}[form]
        found = {}
        for prefix in self.prefixes:
            shape = (rows, self.sizes.room) if form == TABLE else (self.sizes.stream,)
            found[prefix + "out"] = Spec(shape, self.rng.choice([I32, I64]))
            for name in sorted(names if prefix else names | {"cu_seqlens_q"}):
                if self.rng.random() < 0.5:
                    found[prefix + name] = Spec((rows + OUTPUTS[name],), I32)
        return found

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        return {}

    def launch(self, t: Mapping[str, torch.Tensor]) -> Build:
        views = []
        for prefix, window in zip(self.prefixes, self.windows, strict=False):
            written = {name: t[prefix + name] for name in WRITTEN if prefix + name in t}
            start, tokens = (
                t.get(f"{prefix}kv_start".replace(".", "_")),
                t.get("window_map" if prefix else "token_map"),
            )
            views.append(
                View(**written, kv_start=start, window=window, token_map=tokens, page_map=t.get("page_map"))
            )
        family = self.family
        return Build(
            t["req_to_token"], t["req_pool_indices"], t["seq_lens"], family.form, family.page_size,
            family.source_page_size, self.sizes.map_page_size, tuple(views), **self.fields,
            seq_lens_delta_rows=t.get("seq_lens_delta"), query_lens=t.get("query_lens"),
            status=t.get("status"),
        )  # fmt: skip

    def call(self, t: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
        return partial(self.launched, self.launch(t))

    def text(self) -> str:
        return f"AnyLaunch, {self}: {self.build}"
