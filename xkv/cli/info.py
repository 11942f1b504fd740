"""`python -m xkv info`: platform, versions, backends and tuning rows, and what is wrong with the install."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import os
import platform as python
import sys
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from .. import __version__, dispatch
from ..platforms import detect, tuning
from ..platforms.detect import Platform
from ..platforms.specs import BackendSpec
from . import backend_option, kernels  # compiles, and so imports torch and Triton, when asked to

_SWITCHES = ("XKV_ARCH", "TRITON_INTERPRET")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `info`.

    Args:
        parser: the parser of the `info` command.
    """
    add = parser.add_argument
    add("--kernels", action="store_true", help="what the kernels take of a GPU, compiled without it")
    add(
        "--arch", nargs="+", choices=kernels.ARCHES, default=(), metavar="ARCH",
        help=f"implies --kernels, for these alone: {', '.join(kernels.ARCHES)}",
    )  # fmt: skip
    add(
        "--backend", metavar="NAME",
        help="implies --kernels, for this backend alone: a name, or MODULE:NAME of a BackendSpec of your own",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Prints what was found: versions first, lest a missing torch hide them.

    Args:
        args: what add_arguments defines.

    Returns:
        The exit status: 0; with --kernels 1 if they do not compile for an arch; 2 for an unknown backend.

    Raises:
        xkv.UnsupportedPlatformError: what is installed or plugged in cannot run xkv.
    """
    if args.kernels or args.arch or args.backend is not None:
        try:
            spec = None if args.backend is None else backend_option.load(args.backend, "cpu")
        except ValueError as error:
            print(f"xkv info: --backend: {error}", file=sys.stderr)
            return 2
        return _kernels(args.arch or kernels.ARCHES, spec)
    print(_aligned(_versions()))
    for warning in _warnings():
        print(f"\nwarning: {warning}")
    found = _devices()
    print(f"\n{_aligned((name, str(what)) for name, what in found)}")
    for vendor in dict.fromkeys(what.vendor for _, what in found):
        print(f"\nattention backends of {vendor}")
        print(_aligned(_backends(vendor)))
    for where in dict.fromkeys(what for _, what in found):
        print(f"\ntuning rows of {where.arch}: {_origin(where)}")
        print(_aligned(_rows(where)))
    return 0


def _kernels(arches: Iterable[str], spec: BackendSpec | None) -> int:
    """Prints a table an arch; one that this Triton cannot compile for does not hide the others."""
    kernels.require()
    print(kernels.LEGEND)
    status = 0
    for arch in dict.fromkeys(arches):
        try:
            table = kernels.table(arch, spec)
        except Exception as error:
            # Triton, LLVM and ptxas have no exception in common
            said = next(iter(str(error).splitlines()), type(error).__name__)
            print(f"xkv info: {arch} does not compile here: {said}", file=sys.stderr)
            status = 1
        else:
            print(f"\n{arch}\n{_aligned(table)}", flush=True)
    return status


def _versions() -> Iterator[tuple[str, str]]:
    yield "xkv", __version__
    yield "python", python.python_version()
    for name in ("torch", "triton"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # of a broken install, name what it lacks
            yield name, "not installed" if error.name == name else f"does not import: {error}"
        except (ImportError, OSError) as error:
            yield name, f"does not import: {error}"
        else:
            yield name, _version(module)
    for name in _SWITCHES:
        if name in os.environ:
            yield name, repr(os.environ[name])


def _version(module: Any) -> str:
    version = getattr(module, "__version__", None)
    if version is None:
        # an empty folder of that name in the working directory passes for the package
        return f"has no version: {list(module.__path__)} is not it"
    if module.__name__ != "torch":
        return str(version)
    toolkits = {"CUDA": module.version.cuda, "HIP": module.version.hip}
    built = [f"{name} {number}" for name, number in toolkits.items() if number]
    return f"{version} ({', '.join(built) or 'built without CUDA and HIP'})"


def _warnings() -> Iterator[str]:
    """What is installed and cannot be right."""
    owners = sorted(set(importlib.metadata.packages_distributions().get("triton", ())))
    if len(owners) < 2:
        return
    named = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in owners)
    kept = _required_by_torch(owners)
    if len(kept) == 1:
        keep, drop = kept[0], " ".join(name for name in owners if name not in kept)
        why = f"torch requires {keep}: "
    else:
        keep, drop = "the other", "the one that did not come with torch"
        why = ""
    yield (
        f"{named} lie over one another in the folder triton. {why}pip uninstall {drop}, then"
        f" reinstall {keep} (--force-reinstall --no-deps, from where torch came from), as the first"
        " takes shared files with it"
    )


def _required_by_torch(names: Iterable[str]) -> list[str]:
    """Those distributions that the installed torch asks for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        lines = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    required = {canonicalize_name(Requirement(line).name) for line in lines}
    return [name for name in names if canonicalize_name(name) in required]


def _devices() -> list[tuple[str, Platform]]:
    """Every GPU, or the CPU where there is none, with its name."""
    first = detect.platform()  # says what is wrong where torch is missing or too old
    import torch

    if not torch.cuda.is_available():
        return [("no GPU", first)]
    return [
        (f"GPU {i}: {torch.cuda.get_device_name(i)}", detect.platform(i))
        for i in range(torch.cuda.device_count())
    ]


def _backends(vendor: str) -> Iterator[list[str]]:
    """The backends that `MetadataBuilder` knows, and what each reads."""
    yield ["backend", "form", "page_sizes", "ids", "outputs"]
    for spec in dispatch.specs_of(vendor).values():
        sizes = spec.page_sizes
        # more than four: all powers of two between the first and the last
        shown = ", ".join(map(str, sizes)) if len(sizes) < 5 else f"{sizes[0]} to {sizes[-1]}"
        yield [spec.name, spec.form, shown, spec.id_dtype, ", ".join(spec.outputs)]


def _origin(where: Platform) -> str:
    """Whose rows `dispatch.tuning_row` gives."""
    arch, _ = dispatch.rows_of(where)
    if where.vendor not in dispatch.VENDORS:
        return "used under TRITON_INTERPRET=1; else the torch reference serves CPU tensors"
    if arch == where.arch:
        return "its own"
    if arch == dispatch.VENDORS[where.vendor].family(where.arch):
        return f"those of its family, {arch}"
    return f"the vendor's default, those of {arch}; xkv does not know {where.arch}"


def _rows(where: Platform) -> Iterator[list[str]]:
    """The rows that `dispatch.tuning_row` gives, one for every access pattern and class of batch sizes."""
    fields = [f.name for f in dataclasses.fields(tuning.Tuning)]
    fields = [name for name in fields if name not in ("access_pattern", "max_batch")]
    yield ["access_pattern", "batch", *fields]
    for pattern in get_args(tuning.AccessPattern):
        batch: int | None = 1
        while batch is not None:
            row = dispatch.tuning_row(where, pattern, batch)
            most = row.max_batch
            span = f"{batch} and more" if most is None else f"{batch} to {most}"
            yield [pattern, span, *(str(getattr(row, name)) for name in fields)]
            batch = None if most is None else most + 1


def _aligned(rows: Iterable[Iterable[str]]) -> str:
    """Rows as columns, two spaces apart."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in padded)
