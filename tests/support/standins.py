"""Stand-ins for what a GPU node has installed: wheels that hold next to nothing, and nodes made of them."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import packaging

# As much of torch as `xkv info` asks for on a node whose GPUs are not to be seen.
TORCH = """
from types import SimpleNamespace
__version__ = "{version}"
version = SimpleNamespace(cuda={cuda!r}, hip={hip!r})
cuda = SimpleNamespace(is_available=lambda: False)
device = lambda where: SimpleNamespace(type=where, index=None)
"""


def wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()
) -> Path:
    """Writes a pure wheel of these files."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        **files,
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: xkv\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    folder.mkdir(exist_ok=True)
    out = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return out


def torch(folder: Path, version: str, requires: Sequence[str] = (), **toolkit: str) -> Path:
    source = TORCH.format(version=version, cuda=toolkit.get("cuda"), hip=toolkit.get("hip"))
    return wheel(folder, "torch", version, {"torch/__init__.py": source}, requires)


def triton(folder: Path, version: str, name: str = "triton") -> Path:
    """A distribution that provides the module triton, under the name it goes by."""
    return wheel(folder, name, version, {"triton/__init__.py": f'__version__ = "{version}"\n'})


def packaging_wheel(folder: Path) -> Path:
    """The running environment's own packaging: nothing is fetched."""
    top = Path(packaging.__file__).parent
    files = {f"packaging/{p.relative_to(top).as_posix()}": p.read_text() for p in top.rglob("*.py")}
    return wheel(folder, "packaging", packaging.__version__, files)


def environment(**extra: str) -> dict[str, str]:
    """The environment of a process that knows neither this checkout nor any package index."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "PYTHON", "XKV_", "TRITON_"))
    }
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **extra}


class Node:
    """A virtual environment without pip, and the running environment's pip to fill it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)

    def pip(self, *arguments: object) -> str:
        command = [sys.executable, "-m", "pip", "--python", self.python, *map(str, arguments)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *arguments: object) -> None:
        self.pip("install", "-q", "--no-index", *arguments)

    def unpack(self, *wheels: Path) -> None:
        """What `install` does, in no time: these wheels need no installer."""
        (packages,) = (self.folder / "lib").glob("python3*/site-packages")
        for each in wheels:
            with zipfile.ZipFile(each) as archive:
                archive.extractall(packages)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, *arguments]
        return subprocess.run(
            command, env=environment(), cwd="/", capture_output=True, text=True, check=False
        )

    def files(self) -> dict[str, str]:
        """Every installed file with its hash; what Python compiled is not installed."""
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

    def listed(self) -> set[str]:
        """What `pip list` lists; to ask pip takes a second each time."""
        code = "import importlib.metadata as m; [print(f'{d.name}=={d.version}') for d in m.distributions()]"
        return set(self.run("-c", code).stdout.split())
