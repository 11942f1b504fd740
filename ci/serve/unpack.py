"""Unpacks the archives of ``serve.pack`` on a node that has only Python.

    PYTHONPATH=ci python -m serve.unpack FOLDER TARGET PART...

Each part is unpacked into TARGET/PART, or into the part that ci/engines.toml names for it (``into``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve.pack import parts


def extract(archive: Path, folder: Path) -> None:
    """Extracts an archive over existing files."""
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which("xz"):
        with tarfile.open(archive, "r:xz") as opened:
            opened.extractall(folder)  # created by our own pack.py
        return
    xz = subprocess.Popen(["xz", "-dc", "-T0", str(archive)], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-C", str(folder), "-xf", "-"], stdin=xz.stdout, check=True)
    if xz.wait():
        raise RuntimeError(f"xz failed on {archive}")


def unpack(archive: Path, target: Path) -> None:
    """Extracts an archive into a folder that exists only once it is complete."""
    if target.is_dir():
        return
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    extract(archive, unfinished)
    unfinished.rename(target)


def main(arguments: list[str]) -> int:
    """Unpacks the named parts in parallel, then those that belong into another part."""
    if len(arguments) < 3:
        print("usage: ci/serve.sh unpack FOLDER TARGET PART...", file=sys.stderr)
        return 2
    folder, target, names = Path(arguments[0]), Path(arguments[1]), arguments[2:]
    into = {name: part["into"] for name, part in parts().items() if "into" in part}
    archives = {name: folder / f"{name}.tar.xz" for name in names}
    own = [name for name in names if name not in into]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: unpack(archives[name], target / name), own))
    for name in names:
        if name in into:
            extract(archives[name], target / into[name])
    for name in own:
        print(target / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
