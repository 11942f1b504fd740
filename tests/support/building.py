"""Random and curated builds, with every buffer between guard words: what the kernel tests share."""

from __future__ import annotations

import copy
import dataclasses
import random

import torch

from xkv.launch.verify import WRITTEN
from xkv.params import CSR, SLOTS, TABLE, Build, View

SENTINEL = -1234567
GUARD = 24  # elements on either side of each buffer
FORMS = {"table": TABLE, "csr": CSR, "slots": SLOTS}


def guarded(rows: int, width: int, stride: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A ``[rows, width]`` view with that row stride, inside one buffer of sentinels."""
    whole = torch.full((GUARD + rows * stride + GUARD,), SENTINEL, dtype=dtype, device=device)
    return whole[GUARD : GUARD + rows * stride].view(rows, stride)[:, :width]


def guarded_1d(size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A ``[size]`` view inside one buffer of sentinels."""
    return guarded(1, size, size, dtype, device)[0]


def whole(x: torch.Tensor) -> torch.Tensor:
    """The buffer of which x is a view, guard words included."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def outputs(build: Build) -> dict[str, torch.Tensor]:
    """Every buffer that the build may write, by name."""
    found = {} if build.status is None else {"status": build.status}
    for n, view in enumerate(build.views):
        for field in dataclasses.fields(view):
            value = getattr(view, field.name)
            if field.name in WRITTEN and value is not None:
                found[f"views[{n}].{field.name}"] = value
    return found


def twin(build: Build) -> Build:
    """The same build on copies of the buffers that it writes, their surroundings included."""
    other = copy.copy(build)
    if build.status is not None:
        other.status = _copy(build.status)
    other.views = tuple(
        dataclasses.replace(
            view,
            **{k: _copy(v) for k in WRITTEN if (v := getattr(view, k)) is not None},
        )
        for view in build.views
    )
    return other


def _copy(x: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(whole(x).clone(), x.shape, x.stride(), x.storage_offset())


def assert_same(got: Build, want: Build) -> None:
    """Equal bit for bit, guard words and untouched entries included."""
    for (name, a), b in zip(outputs(got).items(), outputs(want).values(), strict=True):
        a, b = whole(a).cpu(), whole(b).cpu()
        if not torch.equal(a, b):
            where = (a != b).nonzero().flatten()[:8]
            raise AssertionError(
                f"{name} differs at {where.tolist()}: got {a[where].tolist()}, want"
                f" {b[where].tolist()}; {describe(got)}"
            )


def describe(build: Build) -> str:
    """The build, small tensors spelled out."""
    parts = []
    for field in dataclasses.fields(build):
        value = getattr(build, field.name)
        if isinstance(value, torch.Tensor) and value.dim() == 1 and value.numel() < 40:
            value = f"{value.dtype} {value.tolist()}"
        elif isinstance(value, torch.Tensor):
            value = f"{value.dtype} {tuple(value.shape)} strides {value.stride()}"
        parts.append(f"{field.name}={value}")
    return ", ".join(parts)


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
    table = guarded(rows, width, width + rng.choice([0, 1, 4]), dtype, "cpu")
    table.copy_(ids)
    return torch.as_strided(whole(table).to(device), table.shape, table.stride(), table.storage_offset())


def random_build(rng: random.Random, device: str, *, hostile: bool = False, big: int = 1) -> Build:
    """Any build: every form, option and dtype; hostile device data where asked."""
    pick = rng.choice
    either = lambda: pick([torch.int32, torch.int64])  # noqa: E731
    form = pick([TABLE, CSR, SLOTS])
    page_size = 1 if form == SLOTS else pick([1, 2, 4, 16, 32, 64, 128])
    source_page_size = pick([1, 1, 1, 2, 16, 64])
    unit = max(page_size, source_page_size)
    rows, batch = rng.randint(1, 8), rng.randint(0, pick([1, 3, 9, 24 * big]))
    width = rng.randint(1, pick([3, 40, 120 * big]))
    tokens = width * source_page_size
    source = paged_source(rng, rows, width, unit, source_page_size, either(), device)

    def ints(low: int, high: int, wild: bool = True) -> torch.Tensor:
        values = [rng.randint(low, max(low, high)) for _ in range(batch)]
        if hostile and wild:
            odd = [-1, -5, 0, tokens + 1, 2**31 - 1, -(2**31), 2**31 - 7, tokens * 3, rng.getrandbits(31)]
            values = [pick(odd) if rng.random() < 0.2 else v for v in values]
        dtype = either()
        if dtype == torch.int64 and hostile and wild:
            values = [v + pick([0, 0, 0, 2**40, -(2**62), 2**62]) for v in values]
        return torch.tensor(values, dtype=dtype, device=device)

    def maps(size: int) -> torch.Tensor | None:
        if rng.random() < 0.6:
            return None
        size = max(size - (rng.randint(0, 9) if hostile else 0), 0)
        ids = [rng.randint(-1 if rng.random() < 0.3 else 0, size + 5) for _ in range(size)]
        if hostile and ids:
            ids[rng.randrange(len(ids))] = -(2**31)
        return torch.tensor(ids, dtype=either(), device=device)

    if hostile:
        flat = whole(source)
        for _ in range(rng.randint(0, 6)):
            flat[rng.randrange(flat.numel())] = pick([-1, -7, 2**31 - 1, rng.getrandbits(31)])
        if source.dtype == torch.int64 and rng.random() < 0.3:
            flat[rng.randrange(flat.numel())] = pick([2**48, 2**62, 2**40])
    build = Build(
        source, ints(0, rows - 1), ints(0, tokens), form, page_size, source_page_size,
        pick([page_size, unit, 1, 16]), (),
        seq_lens_delta=pick([0, 0, 1, 4, -3]) if not hostile else pick([0, 5, -5, 2**28 - 1]),
        min_seq_len=pick([0, 0, 0, 1, 5]) if form != SLOTS else 0,
        min_last_page_len=pick([0, 1]), max_seq_len=pick([None, None, rng.randint(0, tokens + 9)]),
        window_is_prefix_only=pick([False, False, True]), starts_are_aligned=pick([False, True]),
        pad_value=pick([None, 0, -1]),
        missing_id=pick([-1, 0, 7]), report_missing=pick([True, False]),
    )  # fmt: skip
    if rng.random() < 0.3:
        build.seq_lens_delta_rows = ints(0, 9)
    if form == SLOTS or rng.random() < 0.3:
        build.query_lens = ints(0, 9)
        build.query_sign = pick([0, 1, -1])
    build.query_len = pick([0, 1, 4])
    if build.pad_value is not None:
        build.pad_to_multiple_of = pick([None, 1, 3, 4, 64])
    if rng.random() < 0.7:
        build.status = guarded_1d(1, torch.int64, device)
        build.status.fill_(2**63 - 1)

    def view(first: bool) -> View:
        room = pick([tokens // page_size + 1, rng.randint(0, tokens // page_size + 3)])
        if form == TABLE:
            out = guarded(batch, room, room + pick([0, 0, 1, 5]), either(), device)
        else:
            out = guarded_1d(rng.randint(0, pick([3, room * max(batch, 1) + 5])), either(), device)
        made = View(out, token_map=maps(rows * tokens + unit), page_map=None)
        made.page_map = maps((rows * tokens + unit) // build.map_page_size + 2)
        if form != SLOTS and rng.random() < 0.4:
            made.kv_start = ints(0, tokens)
        if form != SLOTS and rng.random() < 0.3:
            made.window = rng.randint(0, tokens)
        extra = lambda n: guarded_1d(n, torch.int32, device) if rng.random() < 0.5 else None  # noqa: E731
        made.cache_seqlens, made.kv_last_page_len = extra(batch + 1), extra(batch)
        if form != SLOTS:
            made.kv_start_offset = extra(batch)
        if form == TABLE:
            made.cu_seqlens_k = extra(batch + 1)
        if form == CSR:
            made.kv_indptr = extra(batch + 2)
        if first:
            made.cu_seqlens_q = extra(batch + 1)
        return made

    build.views = (view(True),) if rng.random() < 0.7 else (view(True), view(False))
    return build
