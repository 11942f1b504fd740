"""SGLang's Triton decode and extend attention over the CSR of spec "triton" is attention over a dense cache.

XKV_ENGINES names a folder with SGLang's wheel, unpacked: see ci/engines.sh. On a GPU of either vendor, in the
interpreter, and as gfx942 machine code where XKV_AMD_EXECUTOR names what executes it. What is NaN there:
poisoned.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import executing
import pytest
import sglang_kernels as sglang
import torch
from foreign import EMULATED, GPU, INTERPRETER, launches
from poisoned import SIZES, Step, assert_attends, build, make_step

import xkv
from xkv.params import Build

__all__ = ["launches"]  # the fixture of both readers

WINDOW = 21


class Case(NamedTuple):
    """A kernel, and the tables that it reads."""

    read: str  # of sglang_kernels
    mode: str
    kind: str = "GQA"  # or MHA, a head for each of the query's, or MLA
    has_window: bool = False

    def __str__(self) -> str:
        return "-".join([self.read, self.mode, self.kind, *["window"] * self.has_window])

    @property
    def is_extend(self) -> bool:
        return self.read == "extend"

    def latent(self, place: str) -> tuple[int, int]:
        """Of MLA: SGLang's decode knows no smaller than this."""
        return SIZES[place].latent if self.is_extend or place == GPU else (256, 32)

    @property
    def window(self) -> int | None:
        """What a query token sees, itself included; when SGLang extends, its number is of those before."""
        return WINDOW + self.is_extend if self.has_window else None


CASES = [
    *(Case("decode", "decode", kind) for kind in ("GQA", "MHA", "MLA")),
    Case("decode", "decode", "GQA", has_window=True),
    *(Case("extend", mode, kind) for mode in ("verify", "mixed") for kind in ("GQA", "MLA")),
    *(Case("extend", mode, "GQA", has_window=True) for mode in ("verify", "mixed")),
]


def step_of(case: Case, place: str) -> tuple[Step, Any]:
    sizes = SIZES[place]
    item = {"GQA": None, "MHA": (2, sizes.heads, sizes.dim), "MLA": (sum(case.latent(place)),)}[case.kind]
    step = make_step(place, 1, case.mode, item=item, prefix_only=case.is_extend, window=case.window)
    meta = build(step, "triton", case.is_extend, sliding_window=WINDOW if case.has_window else None)
    if case.has_window:
        meta = SimpleNamespace(
            kv_indptr=meta.window.kv_indptr, kv_indices=meta.window.kv_indices, qo_indptr=meta.qo_indptr
        )
    return step, meta


def read(case: Case, step: Step, meta: xkv.Metadata, place: str) -> torch.Tensor:
    options: dict[str, Any] = {"latent": case.latent(place)[0]} if case.kind == "MLA" else {}
    if case.is_extend and case.has_window:
        options["window"] = WINDOW
    found: torch.Tensor = getattr(sglang, case.read)(step, meta, place, **options)
    return found


def compare(case: Case, out: torch.Tensor, step: Step, place: str) -> None:
    values = case.latent(place)[0] if case.kind == "MLA" else None
    assert_attends(out, step, values, case.window)


def check(case: Case, place: str) -> None:
    sglang.folder()
    step, meta = step_of(case, place)
    compare(case, read(case, step, meta, place), step, place)


@pytest.mark.kernel
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: Case, device: str) -> None:
    check(case, GPU if device == "cuda" else INTERPRETER)


@pytest.mark.kernel
@pytest.mark.parametrize("spoil", ["nobody's slot", "another's slots"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.has_window], ids=str)
def test_a_spoilt_table_is_found(case: Case, spoil: str, device: str) -> None:
    """The comparison sees one entry that names a slot of nobody, and entries of another row."""
    sglang.folder()
    place = GPU if device == "cuda" else INTERPRETER
    step, meta = step_of(case, place)
    shown = int(meta.kv_indptr[1])
    if spoil == "nobody's slot":
        empty = step.cache.paged.isnan().flatten(1).all(1)
        meta.kv_indices[shown - 2] = int(empty.nonzero()[0])
    else:
        other = int(meta.kv_indices[meta.kv_indptr[-2] - 1])
        meta.kv_indices[shown // 2 : shown] = other
    out = read(case, step, meta, place)
    with pytest.raises(AssertionError, match="row 0, "):
        compare(case, out, step, place)


@executing.machine_code
@pytest.mark.parametrize("case", CASES, ids=str)
def test_machine_code(case: Case, launches: list[list[Build]]) -> None:
    check(case, EMULATED)
    assert len(launches) == 1
