#!/usr/bin/env python3
"""What ci/sanitize.sh runs under compute-sanitizer: a slice that must be clean, and planted faults.

    ci/sanitized.py slice                runs the slice and compares it with the definition
    ci/sanitized.py read | write | unwritten | barriers      runs one planted fault, without a comparison

Needs PYTORCH_NO_CUDA_MEMORY_CACHING=1: every tensor then has its own allocation and ends where the allocation
ends, so that the checkers find an access to one entry too many.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

import xkv
from xkv.cli.check import hostile
from xkv.cli.check.families import Family, families
from xkv.params import Build, View

DEVICE = "cuda"
_EACH = 4  # hostile cases a family


def slice_() -> int:
    """Runs hostile cases of every op and some modes of every backend, and cases of `needed_alone`.

    Returns:
        The number of cases.
    """
    found = families(xkv.platform(DEVICE).vendor)
    cases = _hostile(found[::5])
    with hostile.small_blocks():
        cases += _hostile(found[2::6])
    for op, page_size, unit in (
        ("build_page_table", 64, 1), ("build_page_table", 16, 64), ("build_kv_indices", 1, 1),
        ("build_kv_indices", 64, 16), ("build_slot_mapping", 1, 16),
    ):  # fmt: skip
        needed_alone(op, page_size, unit)
        cases += 1
    return cases


def _hostile(found: list[Family]) -> int:
    cases = 0
    for number, family in enumerate(found):
        for _, check in hostile.checks(family, _EACH, number, DEVICE, small=False, apart=True):
            check()
            cases += 1
    return cases


def needed_alone(op: str, page_size: int, unit: int) -> None:
    """Runs an op on a source in which only the entries that it needs are initialized."""
    rows, width, batch = 5, 1 + 700 // unit, 40
    generator = torch.Generator().manual_seed(page_size)
    ids = torch.randint(1 << 20, (rows, width), dtype=torch.int32, generator=generator)
    index = torch.arange(batch) % rows
    lens = torch.randint(width * unit + 1, (batch,), generator=generator)
    lens[:3] = torch.tensor([0, width * unit, 1])
    call: dict[str, Any] = {"source_page_size": unit}
    if op == "build_slot_mapping":
        call["query_lens"] = lens.clamp(max=9)
        first = (lens - 9).clamp(min=0)
    else:
        first = torch.zeros_like(lens)
        call["page_size"] = page_size
    source = torch.empty(rows, width, dtype=torch.int32, device=DEVICE)
    for row, begin, end in zip(index.tolist(), first.tolist(), lens.tolist(), strict=True):
        for entry in {t // unit for t in range(begin, end, page_size)}:
            source[row, entry : entry + 1].copy_(ids[row, entry : entry + 1])
    want = getattr(xkv, op)(ids, index, lens, **call)
    placed = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    got = getattr(xkv, op)(source, index.to(DEVICE), lens.to(DEVICE), **placed)
    pairs = zip(got, want, strict=True) if isinstance(want, xkv.KVIndices) else [(got, want)]
    assert all(torch.equal(a.cpu(), b) for a, b in pairs), op


def _csr(source: torch.Tensor, tokens: int, room: int) -> None:
    """Builds CSR of 40 rows of ``tokens`` tokens, which include the last row of the source."""
    batch = 40
    lens = torch.full((batch,), tokens, dtype=torch.int32).to(DEVICE)
    rows = (torch.arange(batch, dtype=torch.int32) % source.shape[0]).to(DEVICE)
    made = [torch.zeros(n, dtype=torch.int32).to(DEVICE) for n in (batch + 1, room, batch)]
    xkv.build_kv_indices(source, rows, lens, out=xkv.KVIndices(*made), status=xkv.Status(DEVICE))
    torch.cuda.synchronize()


def read() -> None:
    """Makes the source one entry wider than it is: an entry past the allocation is read."""
    honest = Build.source_tokens.fget  # type: ignore[attr-defined]
    Build.source_tokens = property(lambda build: honest(build) + 1)  # type: ignore[assignment]
    _csr(torch.zeros(5, 99, dtype=torch.int32).to(DEVICE), 100, 4001)


def write() -> None:
    """Makes the output one entry larger than it is: an entry past the allocation is written."""
    honest = View.capacity

    def one_more(view: View, form: int) -> int:
        return honest(view, form) + 1

    View.capacity = one_more  # type: ignore[method-assign, assignment]
    _csr(torch.zeros(5, 99, dtype=torch.int32).to(DEVICE), 99, 1000)


def unwritten() -> None:
    """Leaves the last entry of the last row uninitialized."""
    source = torch.empty(5, 99, dtype=torch.int32, device=DEVICE)
    source.view(-1)[: 5 * 99 - 1].copy_(torch.zeros(5 * 99 - 1, dtype=torch.int32))
    _csr(source, 99, 4000)


def barriers() -> None:
    """Removes the barriers of the kernel."""
    from triton.backends.nvidia.compiler import CUDABackend

    honest = CUDABackend.make_cubin

    def without(self: Any, src: str, *args: Any, **options: Any) -> Any:
        bare, count = re.subn(r"\bbar(rier)?(\.cta)?\.sync[^;]*;", "", src)
        assert count, "the kernel has no barrier to drop"
        return honest(self, bare, *args, **options)

    CUDABackend.make_cubin = without
    # in a table no address depends on a prefix sum, so that wrong sums cause no invalid access
    source = torch.zeros(5, 512, dtype=torch.int32).to(DEVICE)
    builder = xkv.MetadataBuilder("flash_attention", source, max_batch_size=40, max_context_len=512)
    builder.build(*torch.ones(2, 40, dtype=torch.int32).to(DEVICE))
    torch.cuda.synchronize()


FAULTS: dict[str, Callable[[], None]] = {f.__name__: f for f in (read, write, unwritten, barriers)}


def main(what: str) -> int:
    """Runs the slice or one fault.

    Args:
        what: "slice" or a fault's name.

    Returns:
        The exit status.
    """
    if what == "slice":
        print(f"{slice_()} cases")
        return 0
    if what not in FAULTS:
        print(f"usage: ci/sanitized.py slice | {' | '.join(FAULTS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # no other process may load a kernel without barriers
        FAULTS[what]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
