"""What is taken out of a report's files: where things lie on the user's machine, and whose it is."""

from __future__ import annotations

import os
import platform
import re

# The folders of an absolute path: "/", a name, "/", and so on; not behind a word, ":" or "/" ("a/b", a URL).
_FOLDERS = re.compile(r"(?<![\w./:>-])/(?:[^\s/\"'\\:<>|]+/)+")
_PACKAGES = re.compile(r".*/(?:site|dist)-packages/")
_SHORTEST = 3  # letters of a name: a shorter one would be found in other words' places


def cleaned(text: str, is_json: bool = False) -> str:
    """Returns the text without folders, and without the names of user and host.

    Args:
        text: a file's.
        is_json: whether it is JSON, whose keys must stay: names are left alone. xkv writes none there.
    """
    text = _FOLDERS.sub(_kept, text)
    for what, name in () if is_json else _names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", f"<{what}>", text)
    return text


def _kept(folders: re.Match[str]) -> str:
    """What follows the folder of the installed packages; of other paths no folder."""
    path = folders[0]
    return _PACKAGES.sub("", path) if _PACKAGES.match(path) else ""


def _names() -> list[tuple[str, str]]:
    """Names of the user and of the host, the longest first."""
    host = platform.node()
    home = os.path.basename(os.path.expanduser("~"))
    found = {os.environ.get("USER", ""): "user", os.environ.get("LOGNAME", ""): "user", home: "user"}
    found |= {host: "host", host.partition(".")[0]: "host"}
    names = [(what, name) for name, what in found.items() if len(name) >= _SHORTEST]
    return sorted(names, key=lambda each: -len(each[1]))
