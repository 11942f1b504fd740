"""The README and the pages: their programs print what they show, and what they list is what there is."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

import xkv

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.repo


def names(text: str) -> set[str]:
    return set(re.findall(r"\bXKV_[A-Z_]*[A-Z]\b", text))


def test_the_starts_of_the_attention_backends() -> None:
    blocks = re.findall(
        r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", (DOCS / "readers.md").read_text(), re.S
    )
    assert len([shown for _, shown in blocks if shown]) >= 6
    program: dict[str, object] = {}
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, program)
        assert printed.getvalue() == shown


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(r"^::: xkv\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted([*xkv.__all__, "CapturedBuild"])


def test_every_reason_is_explained() -> None:
    listed = re.findall(r"^\| `([A-Z_]+)` \|", (DOCS / "concepts.md").read_text(), re.MULTILINE)
    assert listed == [reason.name for reason in xkv.Reason]  # in order: of several the first is reported


def test_every_environment_variable_is_listed() -> None:
    files = [path for folder in ("xkv", "ci", "tests", ".github") for path in (ROOT / folder).rglob("*")]
    used = {
        name for path in files if path.suffix in (".py", ".sh", ".yml") for name in names(path.read_text())
    }
    listed = names((DOCS / "environment.md").read_text())
    assert "XKV_DISABLE" in listed
    assert listed == used


def test_the_readme_in_its_order() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    parts = [
        "# xkv", "![", "## Install", "## Example", "## Start", "## Support", "## Speed", "## Two commands",
        "## Links",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert re.findall(r"^## .*", text, re.MULTILINE) == [part for part in parts if part.startswith("## ")]
    assert re.search(r"^    ci/run\.sh demo ", text, re.MULTILINE)
    assert re.search(r"^    ci/run\.sh test ", text, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "tests/README.md", "ci/README.md"])
def test_links(page: str) -> None:
    """Those of docs/ are checked by ci/run.sh docs."""
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]*)(?:#([\w-]*))?\)", path.read_text())
    assert links
    for target, anchor in links:
        there = path.parent / target
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_what_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"(?:xkv|ci|tests|docs|examples)/[\w*./-]*", text)
    assert len(paths) > 30
    for path in paths:
        assert list(ROOT.glob(path.rstrip("./"))), path


def test_the_issue_form_asks_for_info() -> None:
    (form,) = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    fields = {field.get("id"): field for field in yaml.safe_load(form.read_text())["body"]}
    assert fields["info"]["attributes"]["label"] == "python -m xkv info"
    assert fields["info"]["validations"]["required"] is True


def test_pre_commit_runs_what_lint_runs() -> None:
    """Out of lint's environment: no version stands there."""
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    (lint,) = re.findall(r"^lint\(\) \{\n(.*?)^\}", (ROOT / "ci" / "run.sh").read_text(), re.S | re.MULTILINE)
    assert [hook["id"] for hook in repo["hooks"]] == re.findall(r"^    tier ([\w-]+) ", lint, re.MULTILINE)
    commands = re.findall(r'^    tier [\w-]+ "?(.*)', lint, re.MULTILINE)
    for hook, command in zip(repo["hooks"], commands, strict=True):
        words = [word for word in hook["entry"].removeprefix(".venv/bin/").split() if word != "python"]
        wanted = command.replace("$py", "").replace("$bin/", "").replace('"', " ").split()
        assert words == [word for word in wanted if word in words], hook["id"]
        # a hook is given the files, and ruff's may write them
        assert all(re.match(r"\.|ci/|--check$|--quiet$", word) for word in wanted if word not in words), hook[
            "id"
        ]


def test_one_tool_has_one_version() -> None:
    pins = re.findall(
        r'^ +"([\w-]+)==([\w.]+)",', (ROOT / "pyproject.toml").read_text().split("[tool.")[0], re.MULTILINE
    )
    found: dict[str, set[str]] = {}
    for name, version in pins:
        found.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in found.items() if len(versions) > 1} == {}
    assert {"ruff", "mkdocs"} <= set(found)
