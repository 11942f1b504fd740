"""Compares a build with the torch reference, for XKV_CHECK=1. Slow, and syncs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import reference
from ..params import OUTPUTS, Build, View
from ..status import Status
from . import launch

WRITTEN = ("out", *OUTPUTS)


class MismatchError(RuntimeError):
    """The kernel's output differs from the torch reference: a bug of xkv, please report it."""


def capturing(tensor: Tensor) -> bool:
    """Whether the current stream is being captured, during which nothing may sync."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def run_checked(build: Build, status: Status) -> None:
    """Launches the build, compares all of its outputs with the reference's, and reads the status word.

    Raises:
        MismatchError: an entry differs; one that should have been left unwritten counts too.
        StatusError: a row was cut.
    """
    want = replace(build, status=status.word.clone(), views=tuple(map(_clone, build.views)))
    launch.run(build)
    reference.run(want)
    pairs: list[tuple[str, Tensor | None, Tensor | None]] = [("status", status.word, want.status)]
    for n, (a, b) in enumerate(zip(build.views, want.views, strict=True)):
        pairs += [(f"views[{n}].{name}", getattr(a, name), getattr(b, name)) for name in WRITTEN]
    for name, got, expected in pairs:
        if got is not None and expected is not None and not torch.equal(got, expected):
            at = torch.ne(got, expected).nonzero()[0].tolist()
            raise MismatchError(
                f"xkv built a wrong {name}: {got[tuple(at)].item()} at {at}, expected"
                f" {expected[tuple(at)].item()}; please report this line and the output of xkv info"
            )
    status.check()


def _clone(view: View) -> View:
    copies = {name: getattr(view, name) for name in WRITTEN}
    return replace(view, **{k: v.clone() for k, v in copies.items() if v is not None})
