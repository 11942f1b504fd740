"""No extra installs or replaces a torch or a triton, whatever a node has; by pip and by uv."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import rocm_builds
import standins
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from standins import Node

pytestmark = [pytest.mark.repo, pytest.mark.slow]

# What a node has; its torch depends on the others.
NODES = {
    "amd-2.9": ["torch==2.9.1+rocm6.4", "pytorch-triton-rocm==3.5.1"],
    "amd-2.10": ["torch==2.10.0+rocm7.0", "triton-rocm==3.6.0"],
    "nvidia-2.9": ["torch==2.9.1+cu128", "triton==3.5.1", "nvidia-cublas-cu12==12.8.4.1"],
    "nvidia-2.10": ["torch==2.10.0+cu128", "triton==3.6.0", "nvidia-cublas-cu12==12.8.4.1"],
    "nvidia-2.11": ["torch==2.11.0+cu130", "triton==3.6.0", "nvidia-cublas==13.0.0.19"],
    "nvidia-2.14": ["torch==2.14.1+cu130", "triton==3.8.0", "nvidia-cublas==13.0.0.19"],
    "nvidia-3.0": ["torch==3.0.0+cu140", "triton==4.0.0", "nvidia-cublas==14.0.0.1"],
    "an engine's image": ["torch==2.11.0a0+git1b2c3d4", "triton==3.6.0+git9f8e7d6"],
    "no torch": [],
}
BUILDS = list(rocm_builds.builds())
AMDS = "2.9.1+rocm7.2.0.lw.git7e1940d4"
# Other packages' names for an extra like these; typed here, they must do no harm.
TYPED = {"cuda", "rocm", "cpu"}
ANY = re.compile(r"torch|triton|nvidia|cuda|rocm")


def newest(folder: Path) -> None:
    """Newer CUDA builds than any node has, were anybody to ask for them."""
    libraries = ["nvidia-cublas", "nvidia-cublas-cu12"]
    standins.torch(folder, "9.0.0", ["triton==9.0.0", *(f"{name}==99.0" for name in libraries)], cuda="99.0")
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm"):
        standins.triton(folder, "9.0.0", name)
    for name in libraries:
        standins.wheel(folder, name, "99.0", {})
    standins.wheel(folder, "numpy", "9.0.0", {})


def offer(folder: Path, requirements: list[str], extras: set[str], done: set[str]) -> None:
    """Stand-ins for what is required, with the requirements that they have in the running environment."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        name = canonicalize_name(requirement.name)
        if name in done or not (marker is None or any(marker.evaluate({"extra": e}) for e in extras)):
            continue
        done.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            # an environment without all extras, or a new one: what this package requires is unknown here
            version = next((each.version for each in requirement.specifier), "1")
            standins.wheel(folder, name, version, {})
            continue
        requires = found.requires or []
        if name == "packaging":
            standins.packaging_wheel(folder)
        else:
            standins.wheel(folder, name, found.version, {}, requires)
        offer(folder, requires, {"", *requirement.extras}, done)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(path).decode())


@pytest.fixture(scope="module")
def extras(metadata: Message) -> list[str]:
    """What to ask for: nothing, each extra of the metadata, and those that it lacks."""
    provided = metadata.get_all("Provides-Extra", [])
    missing = ",".join(sorted(TYPED - set(provided)))
    return ["", *provided, *[missing] * bool(missing)]


@pytest.fixture(scope="module")
def index(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path, metadata: Message, extras: list[str]
) -> Path:
    """What pip and uv could fetch."""
    folder = tmp_path_factory.mktemp("index")
    shutil.copy(wheel, folder)
    offer(folder, metadata.get_all("Requires-Dist", []), set(extras), set())
    newest(folder)
    return folder


def node(folder: Path, *packages: str) -> Node:
    """A node that has these, and a numpy that torch was built against."""
    made = Node(folder / "node")
    torch, *others = [*packages, "numpy==1.26.4"] if packages else [None]
    for package in others:
        name, version = package.split("==")
        made.unpack(standins.wheel(folder / "parts", name, version, {f"{name}.py": ""}))
    if torch is not None:
        made.unpack(standins.torch(folder / "parts", torch.partition("==")[2], others))
    return made


def by_pip(node: Node, index: Path, what: str, *options: str) -> set[str]:
    """What pip would install; it removes nothing else."""
    report = node.pip(
        "install", "-q", *options, "--dry-run", "--report", "-", "--no-index", "--no-cache-dir",
        "--find-links", index, what,
    )  # fmt: skip
    return {canonicalize_name(item["metadata"]["name"]) for item in json.loads(report)["install"]}


def uv(node: Node, index: Path, *arguments: str) -> str:
    """Runs `uv pip install`; returns what it says."""
    binary = pytest.importorskip("uv").find_uv_bin()
    command = [binary, "pip", "install", "--no-config", "--no-cache", "--offline", "--no-index", *arguments]
    command += ["--find-links", index, "--python", node.python]
    done = subprocess.run(command, env=standins.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def by_uv(node: Node, index: Path, what: str, *options: str) -> set[str]:
    """What uv would install, replace or remove."""
    return changes(uv(node, index, "--dry-run", *options, what))


def changes(said: str) -> set[str]:
    """What uv says that it installed, replaced or removed, or would."""
    return {canonicalize_name(name) for name in re.findall(r"^ [-+~] ([\w.-]+)==", said, re.MULTILINE)}


def everything(extras: list[str]) -> str:
    """All extras at once."""
    return f"xkv[{','.join(filter(None, extras))}]"


INSTALLERS = {"pip": by_pip, "uv": by_uv}
Installer = Callable[..., set[str]]


every_node = pytest.mark.parametrize("packages", NODES.values(), ids=NODES)


def wrong(changed: set[str], node: Node) -> set[str]:
    """Of what an install of xkv changes, what it must not: what the node has, and any torch or triton."""
    assert "xkv" in changed
    owned = {canonicalize_name(line.partition("==")[0]) for line in node.listed()}
    return {name for name in changed if name in owned or ANY.search(name)}


@every_node
def test_each_extra_by_uv(packages: list[str], tmp_path: Path, index: Path, extras: list[str]) -> None:
    there = node(tmp_path, *packages)
    asked = {extra: f"xkv[{extra}]" if extra else "xkv" for extra in extras}
    found = {extra: wrong(by_uv(there, index, what), there) for extra, what in asked.items()}
    assert found == {extra: set() for extra in extras}


@every_node
def test_all_extras_by_pip(packages: list[str], tmp_path: Path, index: Path, extras: list[str]) -> None:
    """At once, as pip takes seconds where uv takes a tenth of one.

    What one alone would bring comes then as well: of all but torch, the tritons and numpy, the index has
    one version.
    """
    there = node(tmp_path, *packages)
    assert wrong(by_pip(there, index, everything(extras)), there) == set()


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_every_build_for_rocm_by_uv(
    build: rocm_builds.Build, tmp_path: Path, index: Path, extras: list[str]
) -> None:
    """Without extras as a dry run, then with all of them, for real: every file is as it was."""
    there = node(tmp_path, *build.packages)
    files = there.files()
    found = [by_uv(there, index, "xkv"), changes(uv(there, index, everything(extras)))]
    for changed in found:
        assert "xkv" in changed
        assert not [name for name in changed if ANY.search(name)]
    after = there.files()
    assert {path: after.get(path) for path in files} == files


# pip takes seconds: each name of triton with the oldest torch, the newest, and one of AMD's.
BY_PIP = [build for build in BUILDS if build.torch in (BUILDS[0].torch, AMDS, BUILDS[-1].torch)]


@pytest.mark.parametrize("build", BY_PIP, ids=str)
def test_builds_for_rocm_by_pip(
    build: rocm_builds.Build, tmp_path: Path, index: Path, extras: list[str]
) -> None:
    there = node(tmp_path, *build.packages)
    assert wrong(by_pip(there, index, everything(extras)), there) == set()


@pytest.mark.parametrize("installer", INSTALLERS.values(), ids=INSTALLERS)
def test_what_is_looked_for_would_be_found(installer: Installer, tmp_path: Path, index: Path) -> None:
    """Else the tests above could not fail: a torch that is asked for comes with all that it brings."""
    there = node(tmp_path, *NODES["amd-2.9"])
    brought = {"torch", "triton", "nvidia-cublas", "nvidia-cublas-cu12"}
    assert installer(there, index, "torch>=2.11") == brought
    assert installer(there, index, "numpy", "--upgrade") == {"numpy"}
    assert installer(there, index, "torch>=2.9") == set()


@pytest.mark.parametrize("with_uv", [False, True], ids=["pip", "uv"])
@pytest.mark.parametrize("kind", ["amd-2.10", "nvidia-2.9"])
def test_all_extras_installed(
    kind: str, with_uv: bool, tmp_path: Path, index: Path, extras: list[str]
) -> None:
    """No dry run: every file that the node had is as it was."""
    there = node(tmp_path, *NODES[kind])
    files, listed = there.files(), there.listed()
    if with_uv:
        uv(there, index, everything(extras))
    else:
        there.install("--no-compile", "--find-links", index, everything(extras))
    after = there.files()
    assert {path: after.get(path) for path in files} == files
    added = there.listed() - listed
    assert any(line.startswith("xkv==") for line in added)
    assert not [line for line in added if ANY.search(line.lower())]
    assert there.run("-m", "xkv", "--version").returncode == 0
