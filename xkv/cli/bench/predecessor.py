"""The kernel before: in an engine a build follows whatever wrote the lengths, and not another build."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import kernels

_TILE = 512


def add(lens: Tensor) -> None:
    """The in-place add of torch, of 0: the next kernel starts when it has ended."""
    lens.add_(0)


def early(lens: Tensor, use_pdl: bool = True) -> None:
    """The same by a Triton kernel that lets the next one start at once, by programmatic dependent launch.

    Args:
        lens: ``[batch]`` int64.
        use_pdl: False: without that signal, where it cannot run.
    """
    grid = (-(-lens.shape[0] // _TILE),)
    kernels.early_add[grid](lens, 0, lens.shape[0], TILE=_TILE, USE_PDL=use_pdl)


PREDECESSORS: dict[str, Callable[[Tensor], None]] = {"add": add, "early": early}
"""By the names that ``--predecessor`` takes."""
