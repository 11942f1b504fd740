"""The README's example prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

TEXT = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_example() -> None:
    code = re.search(r"```python\n([^`]*)```\n\n((?:    .*\n)+)", TEXT)
    assert code is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], {})
    assert printed.getvalue() == re.sub(r"^    ", "", code[2], flags=re.MULTILINE)
