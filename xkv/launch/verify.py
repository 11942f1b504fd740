"""A build beside its oracle, for XKV_CHECK=1: slow, syncs, and finds what nobody thought of."""

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
    """What was built differs from the oracle's: a fault of xkv, to be reported."""


def capturing(tensor: Tensor) -> bool:
    """Whether the current stream is being captured, so that nothing may sync."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def run_checked(build: Build, status: Status) -> None:
    """Launches the build, compares all that it wrote with the oracle's, and reads the status word.

    Raises:
        MismatchError: an entry differs, an untouched one included.
        StatusError: a row had to be cut.
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
                f"xkv built a wrong {name}: at {at} {got[tuple(at)].item()}, the oracle has"
                f" {expected[tuple(at)].item()}; please report it with this line and xkv info's output"
            )
    status.check()


def _clone(view: View) -> View:
    copies = {name: getattr(view, name) for name in WRITTEN}
    return replace(view, **{k: v.clone() for k, v in copies.items() if v is not None})
