"""Launches of any options at all, and buffers between guard words: what the kernel tests share."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from xkv.cli.check import values
from xkv.cli.check.case import Case
from xkv.cli.check.families import I32, I64, Family
from xkv.cli.check.memory import Spec, guarded, whole
from xkv.cli.check.sizes import Sizes
from xkv.launch.verify import WRITTEN, WRITTEN_ONCE
from xkv.params import CSR, OUTPUTS, SLOTS, TABLE, Build, View
from xkv.shard import Shard


def outputs(build: Build) -> dict[str, torch.Tensor]:
    """Every buffer that the build may write, by name."""
    found = {name: x for name in WRITTEN_ONCE if (x := getattr(build, name)) is not None}
    for n, view in enumerate(build.views):
        found |= {f"views[{n}].{name}": x for name in WRITTEN if (x := getattr(view, name)) is not None}
    return found


def twin(build: Build, device: str | None = None) -> Build:
    """The same build on copies of the buffers that it writes, their surroundings included.

    With a device what it reads is copied there, too.
    """

    storages: dict[int, torch.UntypedStorage] = {}

    def copied(x: Any, written: bool) -> Any:
        if not isinstance(x, torch.Tensor) or not (written or device):
            return x
        storage = x.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.cpu().clone() if device == "cpu" else storage.clone()
        made = torch.empty(0, dtype=x.dtype, device=device or x.device)
        return made.set_(storages[storage.data_ptr()], x.storage_offset(), x.shape, x.stride())

    def copies(of: Build | View) -> dict[str, Any]:
        fields = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
        return {name: copied(x, name in (*WRITTEN, *WRITTEN_ONCE)) for name, x in fields.items()}

    other = copy.copy(build)
    other.views = tuple(dataclasses.replace(view, **copies(view)) for view in build.views)
    return dataclasses.replace(other, **copies(other))


def assert_same(got: Build, want: Build) -> None:
    """Equal bit for bit, guard words and untouched entries included."""
    written = outputs(got)
    for (name, x), y in zip(written.items(), outputs(want).values(), strict=True):
        a, b = whole(x).cpu(), whole(y).cpu()
        if not torch.equal(a, b):
            at = (a != b).nonzero().flatten()[:8]
            first = x.untyped_storage().data_ptr() + int(at[0]) * x.element_size()
            before = {out.data_ptr(): other for other, out in written.items() if out.data_ptr() <= first}
            name = before[max(before)] if before else name  # others may lie in the same storage
            found = f"got {a[at].tolist()}, want {b[at].tolist()}"
            raise AssertionError(f"{name} differs at {at.tolist()}: {found}; {_described(got)}")


def _described(build: Build) -> str:
    """The build, small tensors spelled out."""
    fields = {field.name: getattr(build, field.name) for field in dataclasses.fields(build)}
    small = {name: x.tolist() for name, x in fields.items() if isinstance(x, torch.Tensor) and x.numel() < 40}
    shapes = {name: tuple(x.shape) for name, x in fields.items() if isinstance(x, torch.Tensor)}
    return str({name: x for name, x in fields.items() if name != "views"} | shapes | small)


def paged_source(
    rng: random.Random, rows: int, width: int, unit: int, source_page_size: int,
    dtype: torch.dtype, device: str,
) -> torch.Tensor:  # fmt: skip
    """A table of `paged_ids` in a wider buffer."""
    ids = paged_ids(rng, rows, width, unit, source_page_size)
    return guarded(rows, width, width + rng.choice([0, 1, 4]), dtype, device).copy_(ids)


def paged_ids(rng: random.Random, rows: int, width: int, unit: int, source_page_size: int) -> torch.Tensor:
    """Ids of a source whose tokens lie in ``unit``-sized pages scattered at random."""
    pages = -(-width * source_page_size // unit)
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    scattered = torch.randperm(rows * pages, generator=generator).view(rows, pages, 1)
    tokens = (scattered * unit + torch.arange(unit)).view(rows, -1)
    return tokens[:, ::source_page_size][:, :width] // source_page_size


class Launch(Case):
    """A launch of its own, with options that no op and no backend need have.

    Args:
        name: says which it is, and decides how its tensors lie.
        family: its form, page sizes and options.
        sizes: their sizes.
        explicit: tensors beside those that the options say, or in their place; the outputs among them.
        fields: numbers of its `Build`.
        windows: of its views.
        run: makes it.
        device: where its tensors lie.
    """

    def __init__(
        self, name: str, family: Family, sizes: Sizes, explicit: Mapping[str, Spec], fields: dict[str, Any],
        windows: Sequence[int | None], run: Callable[[Build], object], device: str,
    ) -> None:  # fmt: skip
        self.explicit, self.fields, self.windows, self.launched = explicit, fields, windows, run
        super().__init__(name, family, sizes, device)

    def specs(self, rng: random.Random) -> dict[str, Spec]:
        found = super().specs(rng)
        return found | {name: spec for name, spec in self.explicit.items() if name in found}

    def outputs(self) -> dict[str, Spec]:
        names = {prefix + name for prefix in self.prefixes for name in WRITTEN}
        return {name: spec for name, spec in self.explicit.items() if name in names}

    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        return {}

    def launch(self, t: Mapping[str, torch.Tensor]) -> Build:
        views = []
        for prefix, window in zip(self.prefixes, self.windows, strict=False):
            view = View(**{name: t[prefix + name] for name in WRITTEN if prefix + name in t}, window=window)
            view.kv_start = t.get(f"{prefix}kv_start".replace(".", "_"))
            view.token_map, view.page_map = t.get("window_map" if prefix else "token_map"), t.get("page_map")
            if "positions" in t:
                view.kv_indptr = t["query_start_loc"]
            views.append(view)
        family = self.family
        return Build(
            t["req_to_token"], t["req_pool_indices"], t["seq_lens"], family.form, family.page_size,
            family.source_page_size, self.sizes.map_page_size, tuple(views),
            **{"shard": family.shard} | self.fields,
            seq_lens_delta_rows=t.get("seq_lens_delta"), query_lens=t.get("query_lens"),
            positions=t.get("positions"), indptr_is_input="positions" in t, status=t.get("status"),
        )  # fmt: skip

    def call(self, t: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
        return partial(self.launched, self.launch(t))

    def text(self) -> str:
        return f"{self}: {self.build}"


def any_shard(rng: random.Random, page_size: int, unit: int) -> Shard:
    """A shard of any size that goes with these page sizes."""
    size = rng.choice([2, 3, 8])
    sources = {"local": unit, "global": 4 * page_size if unit == 1 else 0}
    source = rng.choice([name for name, most in sources.items() if most])
    runs = [run for run in (1, 1, 2, 3, 4, 16, 64) if sources[source] % run == 0]
    if source == "global":
        runs = [run for run in runs if page_size % run == 0 or run % page_size == 0]
    return Shard(size, rng.randrange(size), rng.choice(runs), source)


def any_launch(seed: int, hostile: bool, run: Callable[[Build], object], device: str) -> Launch:
    """Any form, options, sizes, dtypes and values; hostile ones where asked."""
    rng = random.Random(seed)
    pick = rng.choice
    form = pick([TABLE, CSR, SLOTS])
    page_size = 1 if form == SLOTS else pick([1, 2, 4, 16, 32, 64, 128])
    unit = pick([1, 1, 1, 2, 16, 64, 3 * page_size])
    shard = any_shard(rng, page_size, unit) if rng.random() < 0.4 else None
    names = ["seq_lens_delta", "token_map", "page_map", "status", "status", "status"]
    if form == SLOTS:
        names.append("positions")
    else:
        names += ["query_lens", "kv_start", "window", "window_map", "window_kv_start"]
    options = frozenset(name for name in names if rng.random() < 0.35)
    ids = pick([I32, I64])
    family = Family("launch", "", form, page_size, unit, ids, pick([I32, I64]), options, shard=shard)
    sizes = Sizes(family, rng, small=True)
    sizes.map_page_size = pick([page_size, unit, 1, 16])
    fields: dict[str, Any] = {
        "seq_lens_delta": sizes.delta, "query_sign": pick([0, 1, -1]), "query_len": pick([0, 1, 4]),
        "min_seq_len": pick([0, 0, 0, 1, 5]) if form != SLOTS else 0, "min_last_page_len": pick([0, 1]),
        "max_seq_len": pick([None, None, rng.randint(0, sizes.tokens + 9)]),
        "window_is_prefix_only": pick([False, False, True]), "starts_are_aligned": pick([False, True]),
        "pad_value": pick([None, 0, -1]), "missing_id": pick([-1, 0, 7]),
        "report_missing": pick([True, False]),
    }  # fmt: skip
    if "positions" in options:
        fields["max_position"] = pick([None, rng.randint(0, sizes.tokens)])
    if fields["pad_value"] is not None:
        fields["pad_to_multiple_of"] = pick([None, 1, 3, 4, 64])
    extra = {"cache_seqlens", "kv_last_page_len"} | (
        {"kv_start_offset", "empty_rows"} if form != SLOTS else set()
    )
    extra |= {TABLE: {"cu_seqlens_k"}, CSR: {"kv_indptr"}, SLOTS: set()}[form]
    outputs = {}
    for prefix in ("", "window."):
        shape = (sizes.max_batch_size, sizes.room) if form == TABLE else (sizes.stream,)
        outputs[prefix + "out"] = Spec(shape, pick([I32, I64]))
        for name in sorted(extra if prefix else extra | {"cu_seqlens_q"}):
            if rng.random() < 0.5:
                outputs[prefix + name] = Spec((sizes.max_batch_size + OUTPUTS[name],), I32)
    windows = [pick([None, rng.randint(0, sizes.tokens)]) if form != SLOTS else None for _ in range(2)]
    launch = Launch(f"launch {seed}", family, sizes, outputs, fields, windows, run, device)
    values.fill(launch, rng, sane=not hostile)
    return launch
