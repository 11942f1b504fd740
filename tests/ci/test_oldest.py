"""The oldest torch and Triton that xkv takes: any text that names them says what `platforms.detect` says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xkv.platforms.detect import MIN_TORCH, MIN_TRITON

ROOT = Path(__file__).resolve().parents[2]
OLDEST = {"torch": MIN_TORCH, "triton": MIN_TRITON}
PATTERNS = (
    # torch>=2.9, "torch from 2.9 on", "Triton since 3.5", "at least torch 2.9"
    r"\b(torch|triton)\b[\s`\"']*(?:>=?|~=|from|since)[\s`\"']*v?(\d+(?:\.\d+)*)",
    r"\bat least (torch|triton) (\d+(?:\.\d+)*)",
    # "Triton 3.5 or newer", "torch (2.9 and later)", "torch 2.9+"
    r"\b(torch|triton)\b[^\w.|]{1,5}(\d+(?:\.\d+)*)(?:\+(?!\w)|\s+(?:or|and)\s+(?:newer|later|above|up))",
)

pytestmark = pytest.mark.repo


def named(text: str) -> set[tuple[str, str]]:
    """What a text says of the oldest: ("torch", "2.9"), ..."""
    found = (match for pattern in PATTERNS for match in re.findall(pattern, text, re.IGNORECASE))
    return {(name.lower(), version) for name, version in found}


TEXTS = [
    path
    for pattern in (
        "*.md",
        "*.toml",
        "docs/**/*.md",
        "ci/*",
        "tests/*.md",
        "examples/*",
        "xkv/**/*.py",
        ".github/**/*.yml",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_text_that_names_the_oldest(path: Path) -> None:
    assert named(path.read_text()) <= set(OLDEST.items())


def test_the_readme_names_both() -> None:
    assert named((ROOT / "README.md").read_text()) == set(OLDEST.items())


@pytest.mark.parametrize(
    "text",
    [
        '"torch>=2.11"', "torch >= 2.11", "torch from 2.11 on", "torch from\n2.11", "`torch` from 2.11",
        "torch 2.11+", "torch 2.11 or newer", "torch (2.11 and later)", "Torch ~=2.11", "at least torch 2.11",
    ],
)  # fmt: skip
def test_what_is_looked_for_would_be_found(text: str) -> None:
    assert named(text) == {("torch", "2.11")}


@pytest.mark.parametrize(
    "text", ["torch 2.11.0+cu130", "torch 2.11 on an H100", "Triton 3.5 to 3.9", "torch==2.13.0"]
)
def test_what_is_not_the_oldest(text: str) -> None:
    assert named(text) == set()
