"""Unpacks parts that ``serve.pack`` made: on the node, with nothing but Python.

    PYTHONPATH=ci python -m serve.unpack FOLDER TARGET PART...

Each lies in TARGET/PART afterwards; what is there already stays.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def unpack(archive: Path, target: Path) -> None:
    """One archive into a folder that is there only once all of it is."""
    if target.is_dir():
        return
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if shutil.which("xz"):
        xz = subprocess.Popen(["xz", "-dc", "-T0", str(archive)], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-C", str(unfinished), "-xf", "-"], stdin=xz.stdout, check=True)
        if xz.wait():
            raise RuntimeError(f"xz failed on {archive}")
    else:
        with tarfile.open(archive, "r:xz") as opened:
            opened.extractall(unfinished)  # made by our own pack.py
    unfinished.rename(target)


def main(arguments: list[str]) -> int:
    """Unpacks the parts named, side by side."""
    if len(arguments) < 3:
        print("usage: unpack.py FOLDER TARGET PART...", file=sys.stderr)
        return 2
    folder, target = Path(arguments[0]), Path(arguments[1])
    with ThreadPoolExecutor() as pool:
        names = arguments[2:]
        list(pool.map(lambda name: unpack(folder / f"{name}.tar.xz", target / name), names))
    for name in names:
        print(target / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
