"""The README's example prints what the README says."""

import contextlib
import io
import re
from fnmatch import fnmatch
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_example() -> None:
    code = re.search(r"```python\n([^`]*)```\n\n((?:    .*\n)+)", TEXT)
    assert code is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], {})
    assert printed.getvalue() == re.sub(r"^    ", "", code[2], flags=re.MULTILINE)


def test_what_tests_share_is_listed() -> None:
    folder = Path(__file__).resolve().parents[1]
    listed = re.findall(r"`([\w*]+\.py)`", (folder / "README.md").read_text().split("What they share")[1])
    shared = [p.name for p in (folder / "support").glob("*.py")]
    assert {name for name in shared if not any(fnmatch(name, pattern) for pattern in listed)} == set()
    assert {pattern for pattern in listed if not any(fnmatch(name, pattern) for name in shared)} == set()
