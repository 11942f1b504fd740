"""Aiter's Triton attention over tables from the ``aiter_*`` specs is attention over a dense cache.

XKV_AITER names a checkout of Aiter: see ci/readers.sh. On a GPU of either vendor, in the interpreter, and as
gfx942 machine code where XKV_AMD_EXECUTOR names what executes it. What is NaN there: poisoned.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import aiter_kernels as aiter
import executing
import pytest
import torch
from foreign import EMULATED, GPU, INTERPRETER, launches
from poisoned import FINITE, MODES, NAN, SIZES, Step, assert_attends, build, make_step, slopes

import xkv
from xkv.params import Build

__all__ = ["launches"]  # the fixture of both readers

NO_NVIDIA = "a tl.dot over 1 key: Triton's NVIDIA back end requires 16"
WINDOW = 21


class Case(NamedTuple):
    """A kernel, and the tables that it reads."""

    read: str  # of aiter_kernels
    spec: str
    page_size: int
    mode: str
    tail: float = NAN
    options: Mapping[str, Any] = MappingProxyType({})  # of the reader
    window: str = ""  # "layer": the kernel's alone; "view": also the table's
    has_slopes: bool = False  # the order of pages matters
    is_mla: bool = False
    one_head_a_group: bool = False
    prefix_only: bool = False  # the query tokens' keys and values are passed beside the cache
    prefix_table: bool = False  # and not in the table
    no_nvidia: str = ""

    def __str__(self) -> str:
        own = [str(x) for name, x in self.options.items() if name != "window" and not isinstance(x, bool)]
        names = [self.read, *own, self.spec.removeprefix("aiter_"), str(self.page_size), self.mode]
        marks = {
            f"window {self.window}": self.window, "slopes": self.has_slopes, "MHA": self.one_head_a_group,
            "prefill": self.prefix_only,
        }  # fmt: skip
        return "-".join([*names, *(name for name, has in marks.items() if has)])


def cases() -> Iterator[Case]:
    for path in ("2d", "3d"):
        for page_size in (1, 16, 64):
            for mode in MODES:
                # tiles of 64 tokens, or of one page, whose values are loaded to the end
                pages = path == "3d" or mode == "decode"
                if path == "3d" and page_size == 1 and mode != "decode":
                    continue  # long in the interpreter
                yield Case(
                    "unified", "aiter_unified", page_size, mode, FINITE if pages or page_size == 64 else NAN,
                    {"path": path}, no_nvidia=NO_NVIDIA if pages and page_size == 1 else "",
                )  # fmt: skip
    for page_size in (1, 16, 64):
        for mode in MODES:
            for window in ("layer", "view"):
                pages = mode == "decode"
                yield Case(
                    "unified", "aiter_unified", page_size, mode, FINITE if pages or page_size == 64 else NAN,
                    {"path": "2d"}, window, no_nvidia=NO_NVIDIA if pages and page_size == 1 else "",
                )  # fmt: skip
    for version in ("v1", "v2"):
        for page_size in (1, 16, 32):
            skipped = NO_NVIDIA if page_size == 1 else ""
            yield Case(
                "pa_decode", "aiter_pa", page_size, "decode", options={"version": version}, no_nvidia=skipped
            )
        # with larger pages its masked loads of values have no `other`: what is multiplied by 0 is undefined
        yield Case("pa_decode", "aiter_pa", 1, "decode", options={"version": version}, one_head_a_group=True)
    for page_size in (1, 16, 64):
        for mode in MODES:
            # its kernel for one query token loads whole pages
            yield Case("chunked", "aiter_unified", page_size, mode, FINITE, {"prefill_only": False})
        yield Case("chunked", "aiter_unified", page_size, "mixed", FINITE, {"prefill_only": False}, "view")
        for window in ("", "view"):
            yield Case(
                "chunked", "aiter_unified", page_size, "mixed", NAN, {"prefill_only": True}, window,
                prefix_only=True,
            )  # fmt: skip
    for spec in ("aiter_mla", "aiter_batch_prefill"):
        for mode in ("verify", "mixed"):
            yield Case("extend", spec, 1, mode, prefix_only=True, prefix_table=True)
    for spec, sizes in (("aiter_mla", (1, 64)), ("aiter_unified", (1, 16, 64))):
        for page_size in sizes:
            yield Case("mla_decode", spec, page_size, "decode", is_mla=True)
    yield Case("mla_decode_rope", "aiter_mla", 1, "decode", is_mla=True)
    for page_size in (1, 16, 64):
        for mode in MODES:
            skipped = NO_NVIDIA if page_size == 1 else ""
            yield Case("mla", "aiter_unified", page_size, mode, FINITE, is_mla=True, no_nvidia=skipped)


def ordered() -> Iterator[Case]:
    """Some of them with a bias by which the order of tokens is seen."""
    for case in cases():
        if case.read in ("unified", "pa_decode", "chunked") and not case.window and case.mode != "verify":
            yield case._replace(has_slopes=True)


CASES = [*cases(), *ordered()]


def step_of(case: Case, place: str) -> tuple[Step, xkv.Metadata]:
    sizes = SIZES[place]
    item: tuple[int, ...] | None = None
    if case.is_mla:
        item = (sum(sizes.latent),)
    elif case.one_head_a_group:
        item = (2, sizes.heads, sizes.dim)
    view = case.window == "view"
    step = make_step(
        place, case.page_size, case.mode, item=item, tail=case.tail,
        prefix_only=case.prefix_only, window=WINDOW if view else None,
    )  # fmt: skip
    options = {"sliding_window": WINDOW, "window_is_absolute": True} if view else {}
    meta = build(step, case.spec, case.prefix_table, **options)
    if view:  # the prefix sum of query tokens is one for both
        window, of_both = meta.window, meta.cu_seqlens_q
        meta = SimpleNamespace(
            page_table=window.page_table, cache_seqlens=window.cache_seqlens, cu_seqlens_q=of_both,
            max_seq_len=window.max_seq_len,
        )  # fmt: skip
    return step, meta


def read(case: Case, step: Step, meta: xkv.Metadata, place: str) -> torch.Tensor:
    options = dict(case.options)
    if case.window:
        options["window"] = WINDOW
    if case.has_slopes:
        options["slopes"] = slopes(step)
    if case.is_mla:
        options["latent"] = SIZES[place].latent[0]
    found: torch.Tensor = getattr(aiter, case.read)(step, meta, place, **options)
    return found


def check(case: Case, place: str) -> None:
    aiter.folder()
    step, meta = step_of(case, place)
    compare(case, read(case, step, meta, place), step, place)


def compare(case: Case, out: torch.Tensor, step: Step, place: str) -> None:
    values = SIZES[place].latent[0] if case.is_mla else None
    # the chunked decode kernel multiplies queries and keys in bf16: an H200's scores are off by up to 2 %
    atol = 3e-2 if case.read == "chunked" and not case.options["prefill_only"] else 8e-3
    assert_attends(out, step, values, WINDOW if case.window else None, case.has_slopes, atol)


@pytest.mark.kernel
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: Case, device: str) -> None:
    if device == "cuda" and torch.version.hip is None and case.no_nvidia:
        pytest.skip(case.no_nvidia)
    check(case, GPU if device == "cuda" else INTERPRETER)


def spoilt() -> Iterator[tuple[Case, str]]:
    """Of each kernel a case, and what is wrong with the table of one of its rows."""
    for case in CASES:
        ordered = case.read in ("unified", "pa_decode", "chunked")  # those that take a bias
        page_size = 1 if case.prefix_table or case.read == "mla_decode_rope" else 16
        if (
            case.page_size != page_size or case.window or case.one_head_a_group or case.mode == "verify"
            or case.has_slopes != ordered
        ):  # fmt: skip
            continue
        yield case, "nobody's page"
        if ordered:
            yield case, "pages exchanged"
        if page_size > 1:  # of CSR, lengths are prefix sums
            yield case, "shorter"


@pytest.mark.kernel
@pytest.mark.parametrize(("case", "spoil"), list(spoilt()), ids=str)
def test_a_spoilt_table_is_found(case: Case, spoil: str, device: str) -> None:
    check_spoilt(case, spoil, GPU if device == "cuda" else INTERPRETER)


def check_spoilt(case: Case, spoil: str, place: str) -> None:
    """The comparison sees a wrong entry, a wrong length and, where there is a bias, a wrong order."""
    aiter.folder()
    step, meta = step_of(case, place)
    # of the first row, which is the longest, one of the last pages, which the bias hides least
    shown = step.lens[0] - (step.queries[0] if case.prefix_only else 0)
    last = -(-shown // case.page_size) - 2
    ids = meta.kv_indices if meta.page_table is None else meta.page_table[0]
    assert ids is not None
    if spoil == "pages exchanged":
        ids[last - 1 : last + 1] = ids[last - 1 : last + 1].flip(0)
    elif spoil == "nobody's page":
        empty = step.cache.paged.isnan().flatten(1).all(1)
        ids[last] = int(empty.nonzero()[0])
    else:
        assert meta.cache_seqlens is not None
        meta.cache_seqlens[1] -= 5  # of a short row, of which so many tokens are a part that is seen
    out = read(case, step, meta, place)
    with pytest.raises(AssertionError, match="row 1, " if spoil == "shorter" else "row 0, "):
        compare(case, out, step, place)


@executing.machine_code
@pytest.mark.parametrize("case", CASES, ids=str)
def test_machine_code(case: Case, launches: list[list[Build]]) -> None:
    check(case, EMULATED)
    assert len(launches) == 1


@executing.machine_code
@pytest.mark.parametrize(("case", "spoil"), list(spoilt()), ids=str)
def test_machine_code_over_a_spoilt_table(case: Case, spoil: str, launches: list[list[Build]]) -> None:
    check_spoilt(case, spoil, EMULATED)
    assert len(launches) == 1
