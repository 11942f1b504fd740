"""Packs an engine for a GPU node without a package index: one small archive for each part.

    PYTHONPATH=ci python -m serve.pack FOLDER [PART...]

A part is a table of ci/engines.toml (serve): published wheels for Python 3.12 without their dependencies,
without files that no case needs, and without code for GPUs other than XKV_SERVE_ARCH (90). ``unpack.py``
unpacks it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from serve.fatbin import blank

ROOT = Path(__file__).resolve().parents[2]
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # pip needs the name of each platform version


def project() -> dict[str, Any]:
    """Returns the contents of pyproject.toml."""
    return _toml(ROOT / "pyproject.toml")


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    with path.open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)
    return found


def parts() -> dict[str, dict[str, Any]]:
    """Returns the parts by name."""
    found: dict[str, dict[str, Any]] = _toml(ROOT / "ci" / "engines.toml")["serve"]
    return found


def download(wheels: list[str], folder: Path) -> None:
    """Downloads wheels for the node's Python, without their dependencies."""
    platforms = [f"manylinux_2_{n}_x86_64" for n in GLIBC] + [
        "manylinux2014_x86_64",
        "manylinux1_x86_64",
        "any",
    ]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    command += [x for abi in ("cp312", "abi3", "none") for x in ("--abi", abi)]
    command += [x for platform in platforms for x in ("--platform", platform)]
    subprocess.run([*command, "-d", str(folder), *wheels], check=True)


def stand_in(site: Path, module: str, names: list[str]) -> None:
    """Creates a module from which an engine imports names that it does not use here."""
    at = site
    for name in module.split("."):
        at = at / name
        at.mkdir(exist_ok=True)
        (at / "__init__.py").touch()
    (at / "__init__.py").write_text("".join(f"{name} = None\n" for name in names))


def fill(part: dict[str, Any], common: list[str], site: Path, work: Path) -> None:
    """Writes the files of a part as they will be on the node."""
    wheels = [*part["wheels"], *(common if part.get("common", True) else [])]
    download(wheels, work / "wheels")
    for wheel in sorted((work / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    only = part.get("only")
    if only:
        keep = {path for pattern in only for path in site.glob(pattern)}
        for path in [p for p in site.rglob("*") if p.is_file() and p not in keep]:
            path.unlink()
    for pattern in part.get("unused", []):
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for entry in part.get("standins", []):
        module, names = entry.split(":")
        stand_in(site, module, names.split(","))
    no_ptx = {path for pattern in part.get("no_ptx", []) for path in site.glob(pattern)}
    arch = int(os.environ.get("XKV_SERVE_ARCH", "90"))
    for library in site.rglob("*.so*"):
        if library.stat().st_size > 1 << 20:
            blank(library, arch, keep_ptx=library not in no_ptx)


def pack(name: str, part: dict[str, Any], common: list[str], folder: Path) -> Path:
    """Creates the archive of a part."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        site = work / "site"
        site.mkdir()
        fill(part, common, site, work)
        out, unfinished = folder / f"{name}.tar.xz", work / "part"
        with unfinished.open("wb") as file:
            tar = subprocess.Popen(["tar", "-C", str(site), "-cf", "-", "."], stdout=subprocess.PIPE)
            subprocess.run(["xz", "-8", "-T0"], stdin=tar.stdout, stdout=file, check=True)
            if tar.wait():
                raise RuntimeError(f"tar failed on {name}")
        unfinished.replace(out)
    return out


def main(arguments: list[str]) -> int:
    """Packs the named parts, or all."""
    known = parts()
    common = known.pop("common")["wheels"]
    unknown = set(arguments[1:]) - set(known)
    if not arguments or unknown:
        print(f"usage: pack.py FOLDER [PART...]; parts: {' '.join(known)}", file=sys.stderr)
        return 2
    folder = Path(arguments[0]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments[1:] or known:
        out = pack(name, known[name], common, folder)
        print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
