"""Looks up tuning rows and backend specs: by platform, access pattern and batch size, or by name."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import cuda, rocm
from .platforms.detect import Platform, platform
from .platforms.specs import TRITON, BackendSpec
from .platforms.tuning import CPU_CHOSEN, CPU_ROWS, AccessPattern, ChosenTuning, Tuning

if TYPE_CHECKING:
    import torch

VENDORS: dict[str, Any] = {"cuda": cuda, "hip": rocm}  # by Triton's back-end name

_log = logging.getLogger("xkv")


def tuning_row(target: Platform, access_pattern: AccessPattern, batch: int) -> Tuning:
    """Returns the first row that serves the batch: of the exact arch, else the family, else the vendor.

    Args:
        target: the device.
        access_pattern: see `xkv.platforms.tuning.access_pattern`.
        batch: requests.

    Raises:
        LookupError: the arch's table has no such row. Every table of xkv has one for any batch.
    """
    for row in _rows_of_pattern(target, access_pattern):
        if row.max_batch is None or batch <= row.max_batch:
            return row
    raise LookupError(f"no tuning row for {access_pattern} at batch {batch} on {target}")


@functools.cache
def _rows_of_pattern(target: Platform, access_pattern: AccessPattern) -> tuple[Tuning, ...]:
    return tuple(row for row in rows_of(target)[1] if row.access_pattern == access_pattern)


def chosen_sizes(target: Platform) -> list[int]:
    """Returns numbers of query tokens, one for each row that a translation of chosen positions may have."""
    return sorted({row.max_tokens or 1 << 30 for row in _chosen_rows(target)})


def _chosen_rows(target: Platform) -> tuple[ChosenTuning, ...]:
    vendor = VENDORS.get(target.vendor)
    if vendor is None:
        return CPU_CHOSEN
    rows: tuple[ChosenTuning, ...] = vendor.CHOSEN[_arch_of(target)]
    return rows


@functools.lru_cache(maxsize=4096)
def chosen_row(target: Platform, tokens: int, whole_rows: bool) -> ChosenTuning:
    """Returns the first row that serves a translation of so many query tokens' chosen positions.

    Args:
        target: the device.
        tokens: query tokens.
        whole_rows: see `ChosenTuning`.
    """
    return next(
        row for row in _chosen_rows(target)
        if row.whole_rows == whole_rows and (row.max_tokens is None or tokens <= row.max_tokens)
    )  # fmt: skip


@functools.cache
def rows_of(target: Platform) -> tuple[str, Sequence[Tuning]]:
    """Returns the arch whose rows serve a platform (or "cpu"), and the rows. Logs a substitute once."""
    vendor = VENDORS.get(target.vendor)
    if vendor is None:
        return "cpu", CPU_ROWS
    arch = _arch_of(target)
    return arch, vendor.TUNING[arch]


@functools.cache
def _arch_of(target: Platform) -> str:
    """The arch whose rows serve a GPU. Logs a substitute once."""
    vendor, arch = VENDORS[target.vendor], target.arch
    if arch in vendor.TUNING:
        return arch
    found: str = vendor.family(target.arch) or vendor.DEFAULT_ARCH
    if vendor.family(target.arch):
        _log.info("xkv has no tuning rows for %s: using those of %s", target.arch, found)
    else:
        _log.warning("xkv does not know %s: using the tuning rows of %s", target.arch, found)
    return found


def specs_of(vendor: str) -> dict[str, BackendSpec]:
    """Returns a vendor's specs by name; on a CPU both vendors', so that either can be developed there."""
    serving = [VENDORS[vendor]] if vendor in VENDORS else list(VENDORS.values())
    return {spec.name: spec for spec in (*(s for v in serving for s in v.SPECS), TRITON)}


def backends(device: torch.device | str | int | None = None) -> tuple[BackendSpec, ...]:
    """Returns the specs of the backends that run on a device. Does not sync.

    Args:
        device: as in `xkv.platform`.

    Returns:
        The specs; on a CPU those of both vendors.

    Raises:
        UnsupportedPlatformError: as in `xkv.platform`.

    Examples:
        >>> import xkv
        >>> for spec in xkv.backends("cpu")[:3]:
        ...     print(spec.name, spec.form, spec.page_size)
        flashmla table 64
        cutlass_mla table 128
        trtllm_mla table 64
    """
    return tuple(specs_of(platform(device).vendor).values())


def backend(name: str | BackendSpec, vendor: str) -> BackendSpec:
    """Returns the spec of that name; a spec as it is, whatever the vendor.

    Raises:
        TypeError: it is neither a str nor a spec.
        ValueError: the vendor has no such backend; the message lists those it has.
    """
    if isinstance(name, BackendSpec):
        return name
    if not isinstance(name, str):
        raise TypeError(f"backend must be a str or a BackendSpec, got {type(name).__name__}")
    have = specs_of(vendor)
    if name in have:
        return have[name]
    known = ", ".join(have)
    if name in specs_of("cpu"):
        raise ValueError(f"backend {name!r} does not run on {vendor!r}, which has: {known}")
    raise ValueError(f"backend must be one of {known} on {vendor!r}, got {name!r}")
