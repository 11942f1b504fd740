"""What users install: one pure wheel, `packaging` alone beneath it, and an import that is free."""

import json
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.repo


@pytest.fixture(scope="module")
def files(wheel) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}


def dist_info(files: dict[str, str], name: str) -> str:
    (text,) = (text for path, text in files.items() if path.endswith(f".dist-info/{name}"))
    return text


@pytest.fixture(scope="module")
def metadata(files) -> Message:
    return Parser().parsestr(dist_info(files, "METADATA"))


@pytest.fixture(scope="module")
def extras(metadata) -> dict[str, set[str]]:
    """Extra (or "") -> what it requires, without the markers."""
    found: dict[str, set[str]] = {"": set()} | {
        extra: set() for extra in metadata.get_all("Provides-Extra", [])
    }
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        mine = [e for e in found if e and f'extra == "{e}"' in str(requirement.marker)] or [""]
        requirement.marker = None
        for extra in mine:
            found[extra].add(str(requirement))
    return found


def names(requirements: set[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


def test_wheel_is_pure(wheel, files):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true" in dist_info(files, "WHEEL")


def test_wheel_holds_the_package_and_nothing_else(files):
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "xkv").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in files if ".dist-info/" not in name} == source
    assert "xkv/py.typed" in source
    assert "xkv/__main__.py" in source
    assert dist_info(files, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_entry_point(files):
    assert "xkv = xkv.__main__:main" in dist_info(files, "entry_points.txt").splitlines()


def test_base_dependency_is_packaging_alone(metadata, extras):
    assert extras[""] == {"packaging"}
    assert metadata["Requires-Python"] == ">=3.10"


def test_extras(extras):
    # None for a vendor: a node's torch and triton stay (tests/ci/test_extras.py)
    assert set(extras) == {"", "bench", "test", "plot", "lint"}
    assert names(extras["bench"]) == {"tqdm", "tabulate", "matplotlib", "msgspec"}


def in_fresh_process(code: str) -> dict:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# The audit hook sees every file opened, library loaded and process started on the way.
IMPORT = """
import json, sys
before, seen, calls = set(sys.modules), [], [0]
sys.addaudithook(lambda event, args: seen.append((event, str(args[:1]))))
def count(frame, event, arg):
    calls[0] += event in ("call", "c_call")
sys.setprofile(count)
import xkv
sys.setprofile(None)
events = [f"{event} {what}" for event, what in seen
          if event in ("ctypes.dlopen", "subprocess.Popen", "os.system")
          or event == "open" and what.startswith("('/dev/")]
print(json.dumps({"calls": calls[0], "modules": sorted(set(sys.modules) - before), "events": events,
                  "version": xkv.__version__}))
"""


def test_import_is_free():
    """One module of ours, a few of Python's own, few calls. Counted: a time depends on the machine."""
    run = in_fresh_process(IMPORT)
    others = {name.partition(".")[0] for name in run["modules"]} - set(sys.stdlib_module_names)
    assert others == {"xkv"}
    assert [name for name in run["modules"] if name.startswith("xkv")] == ["xkv"]
    assert run["events"] == []
    assert len(run["modules"]) < 60  # 29 with Python 3.11
    assert run["calls"] < 50_000  # 10,000 with Python 3.11; importing torch makes millions


def test_version_is_the_metadata_version(metadata):
    assert in_fresh_process(IMPORT)["version"] == metadata["Version"]
