#!/usr/bin/env python3
"""Records which published engine versions have kernels that xkv replaces: docs/engines-support.{json,md}.

    ci/support.py            reads every version of the index that is not cached; writes both files
    ci/support.py --doc      writes the tables from the JSON file, as after a change of xkv's own tables
    ci/support.py --check    reads the newest three versions of each engine and compares with the JSON file

Needs the packages that ci/support.sh installs, except for --doc. Only the Python files of a wheel are read,
by HTTP range requests: 8 to 12 MB of vLLM's 300. The index is pip's (PIP_INDEX_URL, or `pip config`). Files
that define a kernel are stored in .engines, which git ignores; tests/engines/test_engine_texts.py compares
them with xkv's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from packaging.version import Version  # noqa: E402

from xkv.integrations.patching import finding  # noqa: E402
from xkv.integrations.patching.replacing import Replacement  # noqa: E402
from xkv.integrations.sglang import table as sglang  # noqa: E402
from xkv.integrations.vllm import table as vllm  # noqa: E402

CACHE = ROOT / ".engines"
JSON, DOC = ROOT / "docs" / "engines-support.json", ROOT / "docs" / "engines-support.md"
BEGIN, END = "<!-- ci/support.py writes from here", "<!-- to here -->"
NEWEST = 3

# for one version: the definitions of each name, as (module, code)
Definitions = dict[str, list[list[str]]]


class Engine(NamedTuple):
    """An engine: its title, its replaced kernels and methods, and the first version that is listed."""

    title: str
    rows: tuple[Replacement, ...]
    since: str


ENGINES = {
    "sglang": Engine("SGLang", sglang.REPLACED, "0.5.12"),  # the first with the plugin hooks that xkv uses
    "vllm": Engine("vLLM", (*vllm.KERNELS, *vllm.METHODS), "0.28"),
}


def index() -> str | None:
    """Returns the package index that pip is configured with; None: pip's default."""
    if os.environ.get("PIP_INDEX_URL"):
        return os.environ["PIP_INDEX_URL"]
    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(pip, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None  # 1: not configured


def published(name: str, since: str) -> dict[str, Any]:
    """Returns the final and post releases of an engine, oldest first, each with one wheel."""
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple

    wheels: dict[Version, Any] = {}
    with PyPISimple(index() or PYPI_SIMPLE_ENDPOINT) as client:
        for package in client.get_project_page(name).packages:
            if package.package_type != "wheel" or package.is_yanked or package.version is None:
                continue
            version = Version(package.version)
            if version.is_prerelease or version < Version(since):
                continue
            if version not in wheels or "x86_64" in package.filename:  # the Python files are the same
                wheels[version] = package
    return {str(version): wheels[version] for version in sorted(wheels)}


def read(name: str, version: str, wheel: Any, cache: Path = CACHE) -> Definitions:
    """Returns the definitions of the replaced names in a version; stores the files that define any."""
    folder = cache / f"{name}-{version}"
    if not (folder / "complete").is_file():
        import fsspec

        patterns = finding.worth_parsing(row.name for row in ENGINES[name].rows)
        with (
            fsspec.open(wheel.url, block_size=1 << 20, cache_type="readahead") as file,
            zipfile.ZipFile(file) as members,
        ):
            # in the order of the file, so that reading ahead helps
            for member in sorted(members.infolist(), key=lambda member: member.header_offset):
                if member.filename.startswith(f"{name}/") and member.filename.endswith(".py"):
                    text = members.read(member)
                    if any(pattern.search(text) for pattern in patterns):
                        path = folder / member.filename
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(text)
        (folder / "complete").write_text(f"{wheel.filename}\n")
    names = list(dict.fromkeys(row.name for row in ENGINES[name].rows))
    found = finding.definitions(name, [str(folder / name)], names)
    return {key: [list(place) for place in places] for key, places in found.items() if places}


def tables(record: dict[str, dict[str, Definitions]]) -> str:
    """Returns the tables of the Markdown file."""
    parts = []
    for name, engine in ENGINES.items():
        names = list(dict.fromkeys(row.name for row in engine.rows))
        lines = [
            f"| {engine.title} | {' | '.join(f'`{x}`' for x in names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for version in sorted(record[name], key=Version, reverse=True):
            cells = [_cell(row, record[name][version].get(row.name, [])) for row in engine.rows]
            lines.append(f"| {version} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
        parts.append(f"Where {engine.title} has them:\n\n" + "\n".join(_modules(names, record[name])))
    return "\n\n".join(parts)


def _cell(row: Replacement, places: list[list[str]]) -> str:
    cells = {"replaced" if code in row.codes else f"other text ({code})": None for _, code in places}
    return ", ".join(cells) or "-"


def _modules(names: list[str], versions: dict[str, Definitions]) -> list[str]:
    lines = []
    for name in names:
        where: dict[str, list[str]] = {}
        for version in sorted(versions, key=Version):
            for module, _ in versions[version].get(name, []):
                where.setdefault(module, []).append(version)
        spans = (f"`{m}` ({v[0]}{f' to {v[-1]}' if len(v) > 1 else ''})" for m, v in where.items())
        lines.append(f"* `{name}`: {', '.join(spans)}")
    return lines


def document(text: str, record: dict[str, dict[str, Definitions]]) -> str:
    """Returns the text of the Markdown file with the tables between its markers."""
    head, rest = text.split(BEGIN, 1)
    comment, _ = rest.split("-->\n", 1)
    return f"{head}{BEGIN}{comment}-->\n\n{tables(record)}\n\n{END}{rest.split(END, 1)[1]}"


def differences(
    record: dict[str, dict[str, Definitions]],
    versions: Callable[[str, str], dict[str, Any]] = published,
    reads: Callable[[str, str, Any], Definitions] = read,
) -> list[str]:
    """Returns the differences between the newest versions and the record."""
    found = []
    for name, engine in ENGINES.items():
        for version, wheel in list(versions(name, engine.since).items())[-NEWEST:]:
            if version not in record[name]:
                found.append(f"{engine.title} {version} is not in {JSON.name}: run ci/support.py")
            elif reads(name, version, wheel) != record[name][version]:
                found.append(f"{engine.title} {version} is not what {JSON.name} says")
    return found


def main(args: list[str] | None = None) -> int:
    """Returns 1 if --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--doc", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(args)
    if options.check:
        found = differences(json.loads(JSON.read_text()))
        print(*(found or [f"the newest {NEWEST} of each engine are as {JSON.name} says"]), sep="\n")
        return int(bool(found))
    if options.doc:
        record = json.loads(JSON.read_text())
    else:
        record = {}
        for name, engine in ENGINES.items():
            record[name] = {}
            for version, wheel in published(name, engine.since).items():
                record[name][version] = read(name, version, wheel)
                print(engine.title, version, len(record[name][version]), flush=True)
        JSON.write_text(json.dumps(record, indent=1) + "\n")
    DOC.write_text(document(DOC.read_text(), record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
