"""From a platform to its tuning rows and backends: one dictionary, and the ways to look things up in it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import cuda, rocm
from .platforms.detect import Platform, platform
from .platforms.specs import TRITON, BackendSpec
from .platforms.tuning import CPU_ROWS, Kind, Tuning

if TYPE_CHECKING:
    import torch

VENDORS: dict[str, Any] = {"cuda": cuda, "hip": rocm}  # by the name of Triton's back end

_log = logging.getLogger("xkv")


def tuning_row(where: Platform, kind: Kind, batch: int) -> Tuning:
    """Returns the first row that serves the batch: exact arch, then family, then vendor default.

    Args:
        where: the device.
        kind: see `xkv.platforms.tuning.kind_of`.
        batch: requests.

    Raises:
        LookupError: a table without such a row; every table of xkv has them all.
    """
    for row in _rows_of_kind(where, kind):
        if row.max_batch is None or batch <= row.max_batch:
            return row
    raise LookupError(f"no tuning row for {kind} at batch {batch} on {where}")


@functools.cache
def _rows_of_kind(where: Platform, kind: Kind) -> tuple[Tuning, ...]:
    return tuple(row for row in rows_of(where)[1] if row.kind == kind)


@functools.cache
def rows_of(where: Platform) -> tuple[str, Sequence[Tuning]]:
    """Whose rows serve a platform (an arch, or "cpu"), and the rows; a stand-in is logged once."""
    vendor = VENDORS.get(where.vendor)
    if vendor is None:
        return "cpu", CPU_ROWS
    arch: str = where.arch
    if arch not in vendor.TUNING:
        arch = vendor.family(where.arch) or vendor.DEFAULT_ARCH
        if vendor.family(where.arch):
            _log.info("xkv has no tuning rows for %s: using those of %s", where.arch, arch)
        else:
            _log.warning("xkv does not know %s: using the tuning rows of %s", where.arch, arch)
    return arch, vendor.TUNING[arch]


def specs_of(vendor: str) -> dict[str, BackendSpec]:
    """The specs that serve a vendor; on a CPU those of both, so that either can be prepared there."""
    serving = [VENDORS[vendor]] if vendor in VENDORS else list(VENDORS.values())
    return {spec.name: spec for spec in (*(s for v in serving for s in v.SPECS), TRITON)}


def backends(device: torch.device | str | int | None = None) -> tuple[BackendSpec, ...]:
    """Lists the backends for the platform at hand.

    Args:
        device: as in `xkv.platform`.

    Returns:
        Their specs; on a CPU those of both vendors.

    Examples:
        >>> import xkv
        >>> for spec in xkv.backends("cpu")[:3]:
        ...     print(spec.name, spec.form, spec.page_size)
        flashmla table 64
        cutlass_mla table 128
        trtllm_mla table 64
    """
    return tuple(specs_of(platform(device).vendor).values())


def backend(name: str, vendor: str) -> BackendSpec:
    """Returns the spec of that name.

    Raises:
        TypeError: the name is none.
        ValueError: there is none for this vendor; the message lists what there is.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend must be a str, got {type(name).__name__}")
    have = specs_of(vendor)
    if name in have:
        return have[name]
    known = ", ".join(have)
    if name in specs_of("cpu"):
        raise ValueError(f"backend {name!r} does not run on {vendor!r}; there: {known}")
    raise ValueError(f"backend {name!r} is unknown; on {vendor!r} there are: {known}")
