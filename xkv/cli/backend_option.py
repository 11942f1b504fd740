"""The option ``--backend``: a backend of xkv by name, or a `BackendSpec` of the user's own from a module."""

from __future__ import annotations

import importlib

from .. import dispatch
from ..platforms.specs import BackendSpec


def load(text: str, vendor: str) -> BackendSpec:
    """Returns the spec that the option names.

    Args:
        text: a name that `xkv.backends` lists, or "package.module:NAME" of a spec.
        vendor: of the device, or "cpu".

    Raises:
        ValueError: there is no such backend, module or name in the module, or it is no `BackendSpec`.
    """
    module, colon, name = text.partition(":")
    if not colon:
        return dispatch.backend(text, vendor)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"module {module!r} cannot be imported: {error}") from error
    spec = getattr(found, name, None)
    if not isinstance(spec, BackendSpec):
        got = f"a {type(spec).__name__}" if hasattr(found, name) else "nothing of that name"
        raise ValueError(f"{text!r} must name a BackendSpec, got {got}")
    return spec
