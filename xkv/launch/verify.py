"""Compares a build with the torch reference, for XKV_CHECK=1. Slow, and syncs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import reference
from ..params import OUTPUTS, Build, View
from ..status import Status
from . import launch

WRITTEN = ("out", *OUTPUTS, "record", "query_seqlens")  # of a view
WRITTEN_ONCE = ("status", "window_out_cache_loc")  # of a build


class MismatchError(RuntimeError):
    """The kernel's output differs from the torch reference: a bug of xkv, please report it."""


class StaleTableError(RuntimeError):
    """An extended table is not what a build writes: the promise of `MetadataBuilder.extend` was broken."""


def capturing(tensor: Tensor) -> bool:
    """Whether the current stream is being captured, during which nothing may sync."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def run_checked(build: Build, status: Status) -> None:
    """Launches the build, compares all of its outputs with the reference's, and reads the status word.

    Raises:
        MismatchError, StaleTableError: as in `run_compared`.
        StatusError: a row was cut.
    """
    run_compared([build], lambda: launch.run(build))
    status.check()


def run_compared(builds: Sequence[Build], run: Callable[[], object]) -> None:
    """Runs what writes these builds, and compares all of their outputs with the reference's.

    Raises:
        MismatchError: an entry differs; one that should have been left unwritten counts too.
        StaleTableError: an extended table has an entry that a build would replace.
    """
    words = {id(build.status): build.status.clone() for build in builds if build.status is not None}
    wanted = [
        replace(build, status=words.get(id(build.status)), views=tuple(map(_clone, build.views)))
        for build in builds
    ]
    run()
    for want in wanted:
        reference.run(want)
    for n, (build, want) in enumerate(zip(builds, wanted, strict=True)):
        prefix = f"parts[{n}]." if len(builds) > 1 else ""
        pairs: list[tuple[str, Tensor | None, Tensor | None]] = [("status", build.status, want.status)]
        for k, (a, b) in enumerate(zip(build.views, want.views, strict=True)):
            pairs += [(f"views[{k}].{name}", getattr(a, name), getattr(b, name)) for name in WRITTEN]
        for name, got, expected in pairs:
            if got is not None and expected is not None and not torch.equal(got, expected):
                at = torch.ne(got, expected).nonzero()[0].tolist()
                raise MismatchError(
                    f"xkv built a wrong {prefix}{name}: {got[tuple(at)].item()} at {at}, expected"
                    f" {expected[tuple(at)].item()}; please report this line and the output of xkv info"
                )
    for build in builds:
        if build.extends:
            _refuse_stale(build)


def _refuse_stale(build: Build) -> None:
    """Raises a StaleTableError if a build would write another table than the extension left."""
    whole = replace(build, extends=False, status=None, views=tuple(map(_clone, build.views)))
    reference.run(whole)
    for view, want in zip(build.views, whole.views, strict=True):
        if not torch.equal(view.out, want.out):
            b, j = torch.ne(view.out, want.out).nonzero()[0].tolist()
            raise StaleTableError(
                f"row {b} of the batch is stale: entry {j} of its table is {int(view.out[b, j])}, and a build"
                f" writes {int(want.out[b, j])}. Its past has changed, or its pool index was given to another"
                " request: call build after an admission, a finish or a preemption"
            )


def _clone(view: View) -> View:
    copies = {name: getattr(view, name) for name in WRITTEN}
    return replace(view, **{k: v.clone() for k, v in copies.items() if v is not None})
